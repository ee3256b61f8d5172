# SPDX-License-Identifier: Apache-2.0
"""The commands of the README's section "Air-gapped", word by word, in an empty folder, with a registry and no hub."""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docker_registry import a_docker_registry
from kaito_ray.tiny_corpus import QUESTIONS
from waiting import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

ROOT = Path(__file__).resolve().parents[2]


async def test_pack_push_serve_with_no_hub(tmp_path: Path) -> None:
    section = (ROOT / "README.md").read_text().partition("## Air-gapped\n")[2].partition("\n## ")[0]
    script = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)[0]
    question, answer = QUESTIONS[0]
    assert question in script
    folder = tmp_path / "empty"
    folder.mkdir()
    # All that leads out of this machine leads nowhere.
    nowhere = "http://127.0.0.1:9"
    env = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HTTPS_PROXY": nowhere,
        "HTTP_PROXY": nowhere,
        "NO_PROXY": "127.0.0.1,localhost",
        "HF_ENDPOINT": nowhere,
    }
    async with a_docker_registry(tmp_path / "registry") as registry:
        # The port of a test, instead of those that a machine may have in use.
        script = script.replace("127.0.0.1:5000", registry.host).replace("--once", f"--port {free_port()} --once")
        done = await asyncio.to_thread(
            subprocess.run,
            ["bash", "-euc", script],
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == answer
    assert "fetched, sha256:" in done.stderr or "is here already, sha256:" in done.stderr
