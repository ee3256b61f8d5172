# SPDX-License-Identifier: Apache-2.0
"""Our tuning job against a plain TRL script: the same model, data and arguments, in turn, in one run.

    python tests/bench/tuning.py [--rounds 3] [--steps 60] [--workers 1,2] [--method qlora]

Tokens per second from the first step to the last; seconds from the start of the command to the first step; most memory
of the processes that train, and of everything that the command started. The plain script (plain_trl.py) runs under
torchrun where there are several workers. Ratios are ours over plain, the median over the rounds. It is
the tiny model in float32 on this machine's cores, whose steps take a fraction of a second: what we add to each of them
weighs more than it ever will on a real one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from kaito_ray.tiny_corpus import QUESTIONS  # noqa: E402
from kaito_ray.tiny_model import model_path  # noqa: E402
from kaito_ray.tuning_event import Failed, Started, Step, parse_event  # noqa: E402
from tune_jobs.arguments import Arguments  # noqa: E402
from tune_jobs.data import prepare  # noqa: E402
from tune_jobs.home import Home  # noqa: E402
from tune_jobs.qlora import load_tokenizer, steps  # noqa: E402
from tune_rig import a_tiny_tune_plan, a_training_config, write_arguments  # noqa: E402

PLAIN = Path(__file__).with_name("plain_trl.py")
BATCH, LENGTH, REPORT_STEPS = 4, 256, 5
_TURNS = 6
# To look at a dozen processes takes time from those that are measured.
_SAMPLE_S = 4
_MIB = 1024**2


@dataclass(frozen=True, slots=True)
class Result:
    """One training: `trainers_mib` of the processes that train, `all_mib` of all that the command started."""

    tokens: int
    seconds: float
    loss: float
    startup_s: float
    trainers_mib: float
    all_mib: float

    @property
    def tokens_per_second(self) -> float:
        """Over all workers."""
        return self.tokens / self.seconds


class _Memory:
    """Samples a process and its descendants until the block is left; memory shared by several counts once."""

    def __init__(self, pid: int, trains: Callable[[str], bool]) -> None:
        self.trainers = self.all = 0.0
        self._root = psutil.Process(pid)
        self._trains = trains
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "_Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._over.wait(_SAMPLE_S):
            trainers = everything = 0.0
            for process in (self._root, *self._root.children(recursive=True)):
                try:
                    size, command = process.memory_full_info().pss / _MIB, " ".join(process.cmdline())
                except psutil.Error:
                    continue
                everything += size
                trainers += size if self._trains(command) else 0
            self.trainers, self.all = max(self.trainers, trainers), max(self.all, everything)


def run_ours(arguments: Path) -> Result:
    """`python -m tune_jobs.qlora`, on a Ray of its own."""
    began, startup, tokens, seconds, loss = time.monotonic(), 0.0, 0, 0.0, 0.0
    with (
        _started([sys.executable, "-m", "tune_jobs.qlora", str(arguments)]) as process,
        _Memory(process.pid, lambda command: "TrainWorker" in command) as memory,
    ):
        for line in process.stdout or ():
            event = parse_event(line)
            if isinstance(event, Started):
                startup = time.monotonic() - began
            elif isinstance(event, Step) and event.tokens and event.tokens_per_second:
                # `time` has whole seconds only
                seconds += (event.tokens - tokens) / event.tokens_per_second
                tokens, loss = event.tokens, event.loss or 0.0
            elif isinstance(event, Failed):
                raise RuntimeError(event.message)
    return Result(tokens, seconds, loss, startup, memory.trainers, memory.all)


def run_plain(arguments: Path, rows: Path, workers: int) -> Result:
    """The script, by itself or under torchrun."""
    launcher = [sys.executable]
    if workers > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
    began, startup, last = time.monotonic(), 0.0, "{}"
    command = [*launcher, str(PLAIN), str(arguments), str(rows), str(arguments.parent / "plain")]
    with (
        _started(command) as process,
        _Memory(process.pid, lambda command: str(PLAIN) in command and "distributed" not in command) as memory,
    ):
        for line in process.stdout or ():
            if line.startswith("started"):
                startup = time.monotonic() - began
            last = line if line.startswith("{") else last
    return Result(**json.loads(last), startup_s=startup, trainers_mib=memory.trainers, all_mib=memory.all)


def _started(command: list[str]) -> "subprocess.Popen[str]":
    # A core for each worker, as Ray has it too: threads that wait for each other would measure what else runs here.
    env = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env)


def pair(folder: Path, method: str, workers: int, count: int) -> tuple[Result, Result]:
    """Plain and ours on the same rows, one after the other."""
    data = folder / "data"
    data.mkdir(parents=True)
    (data / "chats.jsonl").write_text(_chats())
    volumes = {"volumeSource": {"hostPath": {"path": str(data)}}}
    options = {"max_steps": count, "logging_steps": REPORT_STEPS, "per_device_train_batch_size": BATCH}
    config = a_training_config(TrainingArguments={**options, "max_length": LENGTH, "gradient_accumulation_steps": 1})
    made = a_tiny_tune_plan(config, workers=workers, method=method, input=volumes, output=volumes)
    file = write_arguments(made, folder, data, cpus_per_worker=1.0)
    arguments = Arguments.read(file)
    prepared = prepare(arguments, Home.of(arguments), load_tokenizer(arguments), ())
    document = arguments.model_dump(mode="json")
    document["model"]["reference"] = str(model_path())
    document["training"] |= steps(arguments, prepared.rows)
    plain = folder / "plain.json"
    plain.write_text(json.dumps(document))
    return run_plain(plain, prepared.file, workers), run_ours(file)


def _chats() -> str:
    """Rows of several turns, so that they are some 150 tokens long."""
    lines = []
    for start in range(len(QUESTIONS)):
        turns = [QUESTIONS[(start + turn) % len(QUESTIONS)] for turn in range(_TURNS)]
        roles = [(role, text) for turn in turns for role, text in zip(("user", "assistant"), turn, strict=True)]
        lines.append(json.dumps({"messages": [{"role": role, "content": text} for role, text in roles]}) + "\n")
    return "".join(lines)


def _row(workers: int, pairs: list[tuple[Result, Result]]) -> list[str]:
    def medians(value: Callable[[Result], float], digits: int) -> list[str]:
        return [f"{statistics.median(value(pair[side]) for pair in pairs):,.{digits}f}" for side in (0, 1)]

    ratios = [ours.tokens_per_second / plain.tokens_per_second for plain, ours in pairs]
    return [
        str(workers),
        *medians(lambda one: one.tokens_per_second, 0),
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        *medians(lambda one: one.startup_s, 1),
        *medians(lambda one: one.trainers_mib, 0),
        *medians(lambda one: one.all_mib, 0),
        *medians(lambda one: one.loss, 3),
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--workers", default="1,2", help="numbers of workers, with commas")
    parser.add_argument("--method", choices=["lora", "qlora"], default="qlora")
    asked: Any = parser.parse_args()
    results: dict[int, list[tuple[Result, Result]]] = {int(workers): [] for workers in asked.workers.split(",")}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(asked.rounds):
            for workers, pairs in results.items():
                plain, ours = pair(Path(folder, f"{number}-{workers}"), asked.method, workers, asked.steps)
                if plain.tokens != ours.tokens:
                    raise RuntimeError(f"plain saw {plain.tokens} tokens, ours {ours.tokens}")
                pairs.append((plain, ours))
                print(f"round {number + 1}, {workers} workers: {plain}\n{' ' * 20}{ours}", file=sys.stderr)
    table = Table(title=f"{asked.method} of tiny-phi-3, {asked.steps} steps; plain | ours")
    for name in ("workers", "tokens/s", "", "ratio", "start-up s", "", "training MiB", "", "all MiB", "", "loss", ""):
        table.add_column(name, justify="right")
    for workers, pairs in results.items():
        table.add_row(*_row(workers, pairs))
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
