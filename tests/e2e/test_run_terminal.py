# SPDX-License-Identifier: Apache-2.0
"""`kaito-ray run` of a tuning manifest as a person sees it: on a terminal, with a bar that moves, ended by Ctrl-C."""

import fcntl
import os
import re
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path

import psutil
import pytest
import yaml

from tune_rig import MODEL, a_training_config, chats
from waiting import free_port, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

ROWS, COLUMNS = 40, 100
STEP = re.compile(r"(\d+)/2000 loss \S+ epoch \S+ lr \S+ \d+ tokens/s eta [\d:]+ [\d:]+ so far")
CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


def manifest(folder: Path) -> str:
    def volume(name: str) -> dict[str, object]:
        return {"volumeSource": {"hostPath": {"path": str(folder / name)}}}

    (folder / "data").mkdir()
    (folder / "data" / "chats.jsonl").write_text(chats())
    workspace = {
        "apiVersion": "kaito.sh/v1beta1",
        "kind": "Workspace",
        "metadata": {"name": "pirate"},
        "resource": {"labelSelector": {"matchLabels": {"app": "pirate"}}},
        "tuning": {
            "preset": {"name": MODEL},
            "method": "lora",
            "config": "training",
            "input": volume("data"),
            "output": volume("output"),
        },
    }
    data = a_training_config(TrainingArguments={"max_steps": 2000, "logging_steps": 5})
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "training"}, "data": data}
    return yaml.safe_dump_all([workspace, config])


class Terminal:
    """A terminal with a command in it; `shown` is all that was written to it, without colours and movements."""

    def __init__(self, *command: str) -> None:
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        os.set_blocking(self._master, False)
        self.process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "TERM": "xterm-256color"},
        )
        os.close(slave)
        self._written = b""

    @property
    def shown(self) -> str:
        """What was written so far."""
        try:
            while piece := os.read(self._master, 65536):
                self._written += piece
        except (BlockingIOError, OSError):
            pass  # nothing more for now, or nobody is left who could write
        return CONTROL.sub("", self._written.decode(errors="replace"))

    def press(self, key: bytes) -> None:
        """As a person would."""
        os.write(self._master, key)

    def close(self) -> None:
        """Whatever still runs in it is ended."""
        for process in psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else ():
            process.kill()
        self.process.wait(10)
        os.close(self._master)


def test_a_bar_moves_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    if shutil.which("setsid") is None:
        pytest.skip("needs setsid")
    file = tmp_path / "workspace.yaml"
    file.write_text(manifest(tmp_path))
    command = str(Path(sys.executable).with_name("kaito-ray"))
    terminal = Terminal(command, "run", str(file), "--port", str(free_port()))
    try:
        until(lambda: len({found[1] for found in STEP.finditer(terminal.shown)}) >= 3, 200, lambda: terminal.shown)
        steps = [int(found[1]) for found in STEP.finditer(terminal.shown)]
        assert steps == sorted(steps)
        assert "━━━" in terminal.shown
        assert "2000 steps on 1 worker\r" in terminal.shown
        started = psutil.Process(terminal.process.pid).children(recursive=True)
        assert any("raylet" in process.name() for process in started)

        terminal.press(b"\x03")
        assert terminal.process.wait(15) == 0
        assert re.search(r"train +the same command goes on from its last checkpoint .*\n", terminal.shown)
        assert re.search(r"stop +interrupted\r\n$", terminal.shown)
        assert "Traceback" not in terminal.shown
        assert [process for process in started if process.is_running()] == []
    finally:
        terminal.close()
