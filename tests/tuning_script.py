# SPDX-License-Identifier: Apache-2.0
"""What simulated tuning jobs say and do (cluster/ray_job_simulator.py), and the tuning that they do it for."""

from dataclasses import replace
from typing import Any

from cluster.ray_job_simulator import Running
from kaito_ray.tuning_event import Data, Event, Finished, Started, Step
from workspace_rig import a_serving

IMAGE = "registry.example.com/phi:0.0.1"
PUSH_SECRET: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Secret",
    "metadata": {"name": "push", "namespace": "default"},
    "type": "kubernetes.io/dockerconfigjson",
    "data": {".dockerconfigjson": "e30="},
}
DATA = Data(rows=15011, format="messages", tokens=3_000_000, summary=("15,011 rows",))
STARTED = Started(attempt=1, workers=1, total_steps=300)
STEP = Step(
    step=20,
    total_steps=300,
    epoch=0.2,
    time="2026-11-21T05:00:00Z",
    loss=3.21,
    learning_rate=1.8e-4,
    tokens_per_second=512.0,
    eta_seconds=840,
    gpu_memory_gib=11.5,
)
DIGEST = "sha256:" + "a" * 64


def a_tuning(name: str, **overrides: Any) -> dict[str, Any]:
    """A Workspace that tunes phi-3-mini on nodes with the label `apps: <name>`."""
    document = a_serving(name, name, **overrides)
    del document["inference"]
    document["tuning"] = {
        "preset": {"name": "phi-3-mini-4k-instruct"},
        "method": "qlora",
        "input": {"urls": ["https://example.com/data/train.parquet"]},
        "output": {"image": IMAGE, "imagePushSecret": PUSH_SECRET["metadata"]["name"]},
    }
    return document


def log(*events: Event) -> str:
    """A driver's log: its own lines among others."""
    return "\n".join(["2026-11-21 INFO worker.py: Connected to Ray", *(event.line() for event in events), "a warning"])


def running(*events: Event) -> Running:
    """A job that has said so much and goes on."""
    return Running(run_s=None, log=log(*events))


def finished(digest: str = DIGEST, image: str = IMAGE, started: Started = STARTED) -> Running:
    """A job that has pushed its adapter."""
    return Running(log=log(DATA, started, STEP, Finished(digest, image=image, steps=300)))


def resumed(attempt: int, step: int) -> tuple[Event, ...]:
    """What an attempt says that goes on from the checkpoint of a step, ten steps later."""
    return DATA, replace(STARTED, attempt=attempt, resumed_from=step), replace(STEP, step=step + 10)
