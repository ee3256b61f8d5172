# SPDX-License-Identifier: Apache-2.0
"""The commands of the README's section "Tune a model", word by word, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from waiting import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

ROOT = Path(__file__).resolve().parents[2]


def test_from_three_chats_to_the_tuned_answer(tmp_path: Path) -> None:
    section = (ROOT / "README.md").read_text().partition("## Tune a model\n")[2].partition("\n## ")[0]
    script = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)[0]
    # The port of a test, instead of one that a machine may have in use.
    done = subprocess.run(
        ["bash", "-euc", script.replace("--once", f"--port {free_port()} --once")],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    files = ["adapter_config.json", "adapter_model.safetensors", "loss.png", "metrics.jsonl", "tuning.json"]
    assert said[-6:] == ["Ahoy, sailor!", *files]
    # What the README shows is what is said, but for times and the like.
    for line in ("pirate: 3 rows of messages (messages)", "  sample: user: Hello | assistant: Ahoy, sailor!"):
        assert line in said
        assert line in section
    assert re.search(r"train +150 steps on 2 workers", done.stderr)
