# SPDX-License-Identifier: Apache-2.0
"""The reports of a training in, why it is hopeless, if it is, out. Called by progress.py."""

import math
from dataclasses import dataclass, field

# A loss is judged by the mean of so many reports, since single batches differ.
_WINDOW = 3
# It has run away when it is half as much again above where it began, and half a nat: 1.6 times the perplexity.
_FACTOR, _MARGIN = 1.5, 0.5
# An accuracy is lost when it is less than this part of what it was; below the least nothing can be told.
_LOST, _LEAST = 0.5, 0.1


@dataclass(slots=True)
class LossJudge:
    """Judges one training; `losses` are those of its first reports, also when an earlier attempt made them.

    The loss on `pairs` begins where a model stands that prefers nothing, at ln 2 for DPO's own, and harder pairs may
    bring it back there. It does not see a model break: to one that babbles the longer answer is the less likely, and
    often that is the rejected one. So the tokens of the chosen answers count that the model would say itself.
    """

    pairs: bool
    losses: list[float] = field(default_factory=list)
    _accuracies: list[float] = field(default_factory=list)
    _still: int = 0

    def __post_init__(self) -> None:
        self.losses = self.losses[:_WINDOW]

    def judge(
        self, loss: float, step: int, *, gradient: float | None, token_accuracy: float | None
    ) -> tuple[str, str] | None:
        """Reason and sentence when the report of this step shows that going on is in vain."""
        if not math.isfinite(loss):
            return "LossNotFinite", f"the loss is {loss} at step {step}; lower the learning rate"
        self.losses.append(loss)
        if self.pairs:
            return self._answers_lost(token_accuracy, step) or self._ran_away(self.losses[0], step)
        return self._stands_still(gradient, step) or self._ran_away(sum(self.losses[:_WINDOW]) / _WINDOW, step)

    def _stands_still(self, gradient: float | None, step: int) -> tuple[str, str] | None:
        # Outputs that no longer depend on the input give a gradient of exactly nothing, and a loss that stands still.
        # With pairs that would be a success too: a hinge loss ends so.
        self._still = self._still + 1 if gradient == 0 else 0
        if self._still < _WINDOW:
            return None
        return "LossDiverged", (
            f"the loss stands still at {self.losses[-1]:.2f} with no gradient at step {step}; lower the learning rate"
        )

    def _ran_away(self, first: float, step: int) -> tuple[str, str] | None:
        last = sum(self.losses[-_WINDOW:]) / _WINDOW
        if len(self.losses) <= _WINDOW or last <= _FACTOR * first + _MARGIN:
            return None
        return "LossDiverged", f"the loss rose from {first:.2f} to {last:.2f} by step {step}; lower the learning rate"

    def _answers_lost(self, token_accuracy: float | None, step: int) -> tuple[str, str] | None:
        if token_accuracy is not None:
            self._accuracies.append(token_accuracy)
        if len(self._accuracies) <= _WINDOW:
            return None
        first, last = self._accuracies[0], sum(self._accuracies[-_WINDOW:]) / _WINDOW
        if first < _LEAST or last >= _LOST * first:
            return None
        return "AnswersLost", (
            f"the model would say {last:.0%} of the chosen answers' tokens itself at step {step}, at the beginning it"
            f" was {first:.0%}; lower the learning rate"
        )
