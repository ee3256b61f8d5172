# SPDX-License-Identifier: Apache-2.0
"""`kaito-ray status`, as people read it."""

from typing import Any

import pytest
from rich.console import Console

from kaito_ray.status_command import Overview, as_text

TRAINING = {"job": "t-1", "state": "Training", "step": 20, "totalSteps": 300, "epoch": 0.2, "loss": 3.21}


def shown(**status: Any) -> str:
    workspace = {"metadata": {"name": "taught", "namespace": "default"}, "status": {"state": "Running", **status}}
    console = Console(width=200)
    with console.capture() as capture:
        console.print(as_text(Overview(workspace, (), ())))
    return capture.get()


@pytest.mark.parametrize(
    ("tuning", "line"),
    [
        (
            {**TRAINING, "tokensPerSecond": 512.0, "etaSeconds": 840},
            "tuning     Training: step 20/300 loss 3.21 epoch 0.20 512 tokens/s eta 14:00\n",
        ),
        (
            {**TRAINING, "attempt": 2, "resumedFrom": 10},
            "tuning     Training: step 20/300 loss 3.21 epoch 0.20; attempt 2; from step 10\n",
        ),
        (
            {"state": "Preparing", "rows": 64, "message": "64 rows"},
            "tuning     Preparing; 64 rows\n",
        ),
    ],
)
def test_tuning_is_one_line(tuning: dict[str, Any], line: str) -> None:
    assert line in shown(tuning=tuning)


def test_what_was_made_has_its_digest() -> None:
    assert "made       r.example/a:1 sha256:abc\n" in shown(
        output={"job": "t-1", "image": "r.example/a:1", "digest": "sha256:abc"}
    )


def test_a_workspace_that_was_to_do_no_more_waits_for_nothing() -> None:
    rests = {"status": "False", "reason": "NodesReleased", "message": "it is tuned"}
    types = ("ResourceReady", "InferenceReady", "WorkspaceReady")
    assert "waits for" not in shown(conditions=[{"type": one, **rests} for one in types])
