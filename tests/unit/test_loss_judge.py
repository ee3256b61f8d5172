# SPDX-License-Identifier: Apache-2.0
"""Losses in, whether going on is in vain out."""

from math import inf, log, nan

import pytest

from tune_jobs.loss_judge import LossJudge

START = [log(2)] * 3


def verdict(
    losses: list[float],
    *,
    pairs: bool,
    gradient: float = 1.0,
    accuracies: list[float] | None = None,
    before: list[float] | None = None,
) -> str:
    """The reason at the first of the losses that has one; empty when none has."""
    judge = LossJudge(pairs, before or [])
    said = accuracies or [0.6] * len(losses)
    found = (
        judge.judge(loss, step, gradient=gradient, token_accuracy=accuracy)
        for step, (loss, accuracy) in enumerate(zip(losses, said, strict=True))
    )
    return next((reason for reason, _ in filter(None, found)), "")


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        ([4.0, 3.0, 2.0, 1.0, 0.5], ""),
        ([4.0, 4.0, 4.0, 9.0, 4.0, 4.0, 4.0], ""),
        ([4.0, 4.0, 4.0, 8.0, 8.0, 8.0], "LossDiverged"),
        ([4.0, nan], "LossNotFinite"),
        ([inf], "LossNotFinite"),
        ([*START, *START, *START], ""),
        ([*START, 1.2, 1.8, 2.4], "LossDiverged"),
    ],
)
def test_a_loss_that_runs_away(losses: list[float], reason: str, pairs: bool) -> None:
    assert verdict(losses, pairs=pairs) == reason


def test_the_start_is_that_of_the_first_attempt() -> None:
    assert verdict([2.0, 2.0, 2.0], pairs=True, before=START) == "LossDiverged"
    assert verdict([2.0, 2.0, 2.0], pairs=True, before=[*START, 2.0, 2.0]) == "LossDiverged"
    assert verdict([2.0, 2.0, 2.0], pairs=True) == ""


def test_pairs_may_come_back_to_where_a_model_prefers_nothing() -> None:
    """Easy pairs first, hard ones then."""
    easy_then_hard = [log(2), 0.01, 0.001, 0.6, 0.7, 0.7]
    assert verdict(easy_then_hard, pairs=True) == ""
    assert verdict([*easy_then_hard, 1.6, 1.7, 1.8], pairs=True) == "LossDiverged"


@pytest.mark.parametrize(
    ("losses", "pairs", "reason"),
    [
        ([6.0, 6.0, 6.0], False, "LossDiverged"),
        ([8.0, 6.0, 6.0, 6.0], False, "LossDiverged"),
        # A hinge loss is nothing, and so is its gradient, once every pair is told apart.
        ([1.0, 0.0, 0.0, 0.0, 0.0], True, ""),
    ],
)
def test_a_gradient_of_nothing(losses: list[float], pairs: bool, reason: str) -> None:
    assert verdict(losses, pairs=pairs, gradient=0.0) == reason


@pytest.mark.parametrize(
    ("accuracies", "reason"),
    [
        ([0.9, 0.8, 0.7, 0.7, 0.7, 0.7], ""),
        # As tiny-phi-3 goes at a rate twenty times too high, with a loss that falls all the time.
        ([0.9, 0.6, 0.3, 0.1, 0.1, 0.1], "AnswersLost"),
        ([0.3, 0.0, 0.3, 0.3, 0.3, 0.3], ""),
        ([0.05, 0.0, 0.0, 0.0, 0.0, 0.0], ""),
    ],
)
def test_a_model_that_breaks_while_its_loss_on_pairs_falls(accuracies: list[float], reason: str) -> None:
    losses = [log(2), 0.1, 0.01, 0.001, 0.0001, 0.00001]
    assert verdict(losses, pairs=True, accuracies=accuracies) == reason
    assert verdict(losses, pairs=False, accuracies=accuracies) == ""
