# SPDX-License-Identifier: Apache-2.0
"""What a tuning job says, and what is understood of any piece of its log."""

import pytest

from kaito_ray.tuning_event import (
    Data,
    Event,
    Failed,
    Finished,
    Started,
    Step,
    Waiting,
    parse_event,
    parse_events,
    progress_of,
)

EVENTS: tuple[Event, ...] = (
    Data(rows=6, format="messages (messages)", tokens=129, summary=("6 rows",), samples=("user: hé",)),
    Started(attempt=2, workers=2, total_steps=300, resumed_from=150),
    Step(step=160, total_steps=300, epoch=1.5, time="2026-11-21T03:26:26Z", loss=3.21, tokens_per_second=512.0),
    Waiting(reason="ConnectionFailed", message="the registry is down"),
    Finished(digest="sha256:aa", image="registry.example/a:1", loss=0.9, steps=300),
    Failed(reason="LossDiverged", message="line one\nline two"),
)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.event)
@pytest.mark.parametrize("before", ["", "(driver pid=12) ", "2026-11-21 03:26:26,000 INFO "])
def test_an_event_survives_its_line(event: Event, before: str) -> None:
    line = before + event.line()
    assert "\n" not in line
    assert parse_event(line) == event


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Traceback (most recent call last):",
        "kaito-ray-tuning {",
        "kaito-ray-tuning []",
        'kaito-ray-tuning {"event":"later"}',
        'kaito-ray-tuning {"event":"step"}',
        EVENTS[2].line()[:-20],
    ],
)
def test_foreign_and_cut_lines_are_passed_over(line: str) -> None:
    assert parse_event(line) is None


def test_fields_of_a_newer_release_are_passed_over() -> None:
    assert parse_event('kaito-ray-tuning {"event":"failed","reason":"A","message":"b","advice":"c"}') == Failed(
        "A", "b"
    )


def test_the_state_is_what_is_still_true() -> None:
    data, started, step, waiting, finished, failed = EVENTS
    log = "\n".join(["noise", *(event.line() for event in EVENTS[:4])])
    progress = progress_of(parse_events(log))
    assert (progress.data, progress.started, progress.step, progress.waiting) == (data, started, step, waiting)
    assert progress_of((waiting, step)).waiting is None
    assert progress_of((failed, started)).failed is None
    done = progress_of((started, step, waiting, finished))
    assert (done.finished, done.waiting) == (finished, None)
    assert progress_of((started, failed)).failed == failed


@pytest.mark.parametrize(
    ("step", "shown"),
    [
        (
            Step(20, 300, 0.2, "", loss=3.2149, learning_rate=1.8e-4, tokens_per_second=511.6, eta_seconds=42),
            "step 20/300 loss 3.215 epoch 0.20 lr 1.8e-04 512 tokens/s eta 0:42",
        ),
        (Step(1, 2, 0.5, "", eval_loss=1.5, gpu_memory_gib=7.25), "step 1/2 eval loss 1.5 epoch 0.50 7.2 GiB"),
        (Step(1, 9, 0.0, "", eta_seconds=7322), "step 1/9 epoch 0.00 eta 2:02:02"),
        (
            Step(1, 9, 0.1, "", loss=0.69314, reward_accuracy=0.625, reward_margin=0.01234),
            "step 1/9 loss 0.6931 prefers 62% margin 0.0123 epoch 0.10",
        ),
    ],
)
def test_steps_as_people_read_them(step: Step, shown: str) -> None:
    assert step.shown() == shown
