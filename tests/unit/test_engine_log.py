# SPDX-License-Identifier: Apache-2.0
"""The log of an engine that failed in, one sentence out; and vLLM's command line."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from serve_apps.engine import command_line
from serve_apps.engine_log import why

FAILED = "Engine core initialization failed. See root cause above. Failed core proc(s): {}"
KV_CACHE = """
INFO 11-21 04:05:12 [core.py:107] Initializing a V1 LLM engine
(EngineCore pid=3363) ERROR 11-21 04:05:14 [core.py:1510]     raise ValueError(
(EngineCore pid=3363) ERROR 11-21 04:05:14 [core.py:1510] ValueError: To serve a request of 2048 tokens, 1 GiB of \
KV cache memory is needed.
Process EngineCore:
Traceback (most recent call last):
ValueError: To serve a request of 2048 tokens, 1 GiB of KV cache memory is needed.
"""
WORKER = """
(Worker_TP0 pid=7) ERROR 11-21 04:05:14 [multiproc_executor.py:900] WorkerProc failed to start.
(Worker_TP0 pid=7) ERROR 11-21 04:05:14 [multiproc_executor.py:900] torch.OutOfMemoryError: CUDA out of memory. Tried.
(EngineCore pid=3) ERROR 11-21 04:05:15 [core.py:1510] Exception: WorkerProc initialization failed due to an \
exception in a background process. See stack trace for root cause.
"""
MISSING = "OSError: org/model is not a local folder and is not a valid model identifier\n"


@pytest.mark.parametrize(
    ("failure", "log", "words"),
    [
        (FAILED, KV_CACHE, ["2048", "1 GiB", "lower max-model-len"]),
        (FAILED, WORKER, ["CUDA out of memory", "lower max-model-len"]),
        (FAILED, MISSING, ["org/model is not a local folder"]),
        (FAILED, "", [FAILED]),
        ("Failed core proc(s): {'EngineCore': -9}", "INFO loading", ["-9", "memory runs out", "lower max-model-len"]),
        ("--max-model-len is wrong", "INFO nothing", ["--max-model-len is wrong"]),
    ],
)
def test_the_reason_is_found(failure: str, log: str, words: list[str]) -> None:
    said = why(failure, log)
    assert all(word in said for word in words), said
    assert "\n" not in said
    assert "WorkerProc initialization" not in said


def test_only_what_was_written_since(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys; from serve_apps.engine_log import EngineLog; print('before', flush=True);"
        "log = EngineLog(); subprocess.run([sys.executable, '-c', 'import sys; sys.exit(\"after\")']);"
        "open(sys.argv[1], 'w').write(log.text())"
    )
    found = tmp_path / "found"
    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        subprocess.run([sys.executable, "-c", program, str(found)], stdout=out, stderr=err, check=True)
    assert found.read_text().split() == ["after"]


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ({}, []),
        ({"max-model-len": 512}, ["--max-model-len=512"]),
        ({"enable-lora": True, "enforce-eager": False}, ["--enable-lora", "--no-enforce-eager"]),
        ({"quantization": None}, []),
        ({"device-ids": [0, 1]}, ["--device-ids", "0", "1"]),
        ({"speculative-config": {"method": "ngram"}}, ['--speculative-config={"method": "ngram"}']),
        ({"b": 1, "a": "-x"}, ["--a=-x", "--b=1"]),
    ],
)
def test_flags(engine: dict[str, Any], words: list[str]) -> None:
    assert command_line(engine) == words


def test_an_engine_that_dies_of_its_first_token_says_of_what(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys; from serve_apps.engine_log import explained\n"
        "with explained('no first token'):\n"
        "    subprocess.run([sys.executable, '-c', 'raise ValueError(\"no kernel for this GPU\")'])\n"
        "    raise RuntimeError('EngineCore encountered an issue. See stack trace (above) for the root cause.')\n"
    )
    with (tmp_path / "err").open("w") as err:
        subprocess.run([sys.executable, "-c", program], stderr=err, check=False)
    last = (tmp_path / "err").read_text().splitlines()[-1]
    assert last == "RuntimeError: no first token: ValueError: no kernel for this GPU"
