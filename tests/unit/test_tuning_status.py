# SPDX-License-Identifier: Apache-2.0
"""What a job says of itself in, status.tuning and status.output out."""

from dataclasses import replace

import pytest

from builders import a_tune_plan
from kaito_ray.kuberay import parse_ray_job
from kaito_ray.tuning_event import Data, Event, Failed, Finished, Started, Step, Waiting, progress_of
from kaito_ray.tuning_status import output_status, tuned_before, tuning_status
from ray_builders import a_ray_job

DATA = Data(rows=15000, format="messages", tokens=3_000_000, summary=("15,000 rows",), warnings=("a.jsonl:3 repeats",))
STARTED = Started(attempt=2, workers=4, total_steps=300, resumed_from=150)
STEP = Step(
    160, 300, 1.5, "2026-11-21T03:26:26Z", loss=3.2000419, learning_rate=1e-4, eta_seconds=90, gpu_memory_gib=21.5
)
WAITING = Waiting("ConnectionFailed", "the registry is down")
FAILED = Failed("LossNotFinite", "the loss is nan at step 160; lower the learning rate")
RUNNING = parse_ray_job(a_ray_job())


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ((DATA,), {"rows": 15000, "message": "15,000 rows; a.jsonl:3 repeats"}),
        ((DATA, STARTED), {"step": 150, "total_steps": 300, "attempt": 2, "resumed_from": 150, "rows": 15000}),
        (
            (STARTED, STEP),
            {"step": 160, "loss": 3.2, "learning_rate": 1e-4, "eta_seconds": 90, "gpu_memory_gib": 21.5, "message": ""},
        ),
        (
            (STARTED, replace(STEP, reward_accuracy=0.875, reward_margin=0.1234567)),
            {"reward_accuracy": 0.875, "reward_margin": 0.1235, "loss": 3.2},
        ),
        ((STARTED, STEP, WAITING), {"step": 160, "message": "the registry is down"}),
    ],
)
def test_progress(events: tuple[Event, ...], expected: dict[str, object]) -> None:
    status = tuning_status(progress_of(events), RUNNING, {})
    assert status is not None
    assert expected.items() <= status.model_dump().items()


@pytest.mark.parametrize(
    ("job", "events", "state"),
    [
        (a_ray_job(), (DATA,), "Preparing"),
        (a_ray_job(), (DATA, STARTED, STEP), "Training"),
        (a_ray_job(), (DATA, STARTED, STEP, WAITING), "Waiting"),
        (a_ray_job(job="FAILED", deployment="Retrying"), (DATA, STARTED, STEP), "Retrying"),
        (a_ray_job(job="FAILED", deployment="Failed"), (DATA, FAILED), "Failed"),
        (a_ray_job(job="SUCCEEDED", deployment="Complete"), (DATA, STARTED, STEP), "Succeeded"),
    ],
)
def test_state(job: dict[str, object], events: tuple[Event, ...], state: str) -> None:
    status = tuning_status(progress_of(events), parse_ray_job(job), {})
    assert status is not None
    assert status.state == state


def test_before_the_job_speaks_there_is_nothing() -> None:
    assert tuning_status(progress_of(()), RUNNING, {}) is None


def test_what_a_log_no_longer_has_is_kept() -> None:
    first = tuning_status(progress_of((DATA, STARTED)), RUNNING, {})
    assert first is not None
    before = first.model_dump(by_alias=True, exclude_defaults=True)
    later = tuning_status(progress_of((STEP,)), RUNNING, before)
    assert later is not None
    assert (later.rows, later.attempt, later.resumed_from, later.step) == (15000, 2, 150, 160)
    # The operator was restarted, or the log is gone with its cluster.
    assert tuning_status(progress_of(()), RUNNING, before) == first
    # Another job begins anew.
    other = parse_ray_job({**a_ray_job(), "metadata": {"name": "tune-2", "namespace": "default"}})
    assert tuning_status(progress_of(()), other, before) is None


@pytest.mark.parametrize(
    ("output", "events", "expected"),
    [
        ({"image": "r.example/a:1"}, (Finished("sha256:a", image="r.example/a:1"),), ("r.example/a:1", "sha256:a", "")),
        ({"image": "r.example/a:1"}, (), ("r.example/a:1", "", "")),
        ({"volumeSource": {"nfs": {}}}, (Finished("sha256:a", path="/mnt/output"),), ("", "sha256:a", "/")),
    ],
)
def test_output(output: dict[str, object], events: tuple[Event, ...], expected: tuple[str, str, str]) -> None:
    status = output_status(progress_of(events), a_tune_plan(output=output), "tune-1")
    assert (status.image, status.digest, status.path) == expected
    workspace = {"status": {"output": status.model_dump(by_alias=True)}}
    assert tuned_before(workspace, "tune-1")
    assert not tuned_before(workspace, "tune-2")
