# SPDX-License-Identifier: Apache-2.0
"""What a job says of itself in, status.tuning and status.output out."""

import pytest

from builders import a_tune_plan
from kaito_ray.tuning_event import Data, Event, Finished, Started, Step, Waiting, progress_of
from kaito_ray.tuning_status import output_status, tuning_status

DATA = Data(rows=15000, format="messages", tokens=3_000_000, summary=("15,000 rows",), warnings=("a.jsonl:3 repeats",))
STARTED = Started(attempt=2, workers=4, total_steps=300, resumed_from=150)
STEP = Step(160, 300, 1.5, "2026-11-21T03:26:26Z", loss=3.2, learning_rate=1e-4, eta_seconds=90, gpu_memory_gib=21.5)
WAITING = Waiting("ConnectionFailed", "the registry is down")


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ((DATA,), {"rows": 15000, "message": "15,000 rows; a.jsonl:3 repeats"}),
        ((DATA, STARTED), {"step": 150, "total_steps": 300, "attempt": 2, "rows": 15000}),
        (
            (STARTED, STEP),
            {"step": 160, "loss": 3.2, "learning_rate": 1e-4, "eta_seconds": 90, "gpu_memory_gib": 21.5, "message": ""},
        ),
        ((STARTED, STEP, WAITING), {"step": 160, "message": "the registry is down"}),
    ],
)
def test_progress(events: tuple[Event, ...], expected: dict[str, object]) -> None:
    status = tuning_status(progress_of(events))
    assert status is not None
    assert expected.items() <= status.model_dump().items()


def test_before_the_job_speaks_there_is_nothing() -> None:
    assert tuning_status(progress_of(())) is None
    assert output_status(progress_of((STARTED, STEP)), a_tune_plan()) is None


@pytest.mark.parametrize(
    ("output", "finished", "expected"),
    [
        ({"image": "r.example/a:1"}, Finished("sha256:a", image="r.example/a:1"), ("r.example/a:1", "sha256:a", "")),
        ({"volumeSource": {"nfs": {}}}, Finished("sha256:a", path="/mnt/output"), ("", "sha256:a", "/")),
    ],
)
def test_output(output: dict[str, object], finished: Finished, expected: tuple[str, str, str]) -> None:
    status = output_status(progress_of((finished,)), a_tune_plan(output=output))
    assert status is not None
    assert (status.image, status.digest, status.path) == expected
