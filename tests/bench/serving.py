# SPDX-License-Identifier: Apache-2.0
"""Our server against vLLM's own, side by side: the same model, the same engine arguments, rounds in turn.

    python tests/bench/serving.py [--rounds 6] [--seconds 3] [--concurrency 1,8,32] [--no-lora] [--no-engine]
                                  [--no-overhead]

The first table is with the engine: requests per second, time to the first event of a stream and time between events.
The second has a core that answers at once in its place, so it shows what the servers themselves take: processor time
per request, of all processes that a request passes through (for ours HAProxy as well).
Client and servers share the machine. A ratio is ours over vLLM's, the median over pairs of neighbouring rounds.
Only the two servers and the client should be busy: the bench says so when something else was.
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from bench.client import Round, run_round  # noqa: E402
from kaito_ray.serve_config import serve_config, serve_env  # noqa: E402
from kaito_ray.tiny_model import model_path  # noqa: E402
from serve_apps.engine import command_line  # noqa: E402
from serve_rig import BASE, ServeRig  # noqa: E402
from waiting import free_port, until  # noqa: E402

PATH = "/v1/chat/completions"
TOKENS = 32
FAKE_APP = Path(__file__).with_name("fake_app.py")
# Room for every request of the largest concurrency at once, on both servers.
ENGINE = {"max-num-seqs": 64}
_WARM_S = 1.5
_QUIET = 0.15


class Rig(ServeRig):
    """Ours; `import_path` other than the product's puts the fake core behind it."""

    import_path: str | None = None

    def deploy(self, adapters: Any = ()) -> None:  # noqa: ARG002
        """Send the Serve config."""
        config = serve_config(self.plan, port=self.port)
        if self.import_path:
            config["applications"][0]["import_path"] = self.import_path
        self.ray.deploy(config)


@dataclass(slots=True)
class Pair:
    """Rounds of one kind of request at one concurrency, in the order they were run."""

    stream: bool
    concurrency: int
    vllm: list[Round] = field(default_factory=list)
    ours: list[Round] = field(default_factory=list)
    vllm_cpu_s: list[float] = field(default_factory=list)
    ours_cpu_s: list[float] = field(default_factory=list)

    def ratio(self, value: Callable[[Round], float]) -> float:
        """The median over the pairs of rounds."""
        return statistics.median(value(ours) / value(vllm) for ours, vllm in zip(self.ours, self.vllm, strict=True))

    @property
    def spread(self) -> str:
        """The smallest and the largest ratio of requests per second."""
        ratios = sorted(ours.rate / vllm.rate for ours, vllm in zip(self.ours, self.vllm, strict=True))
        return f"{ratios[0]:.2f}-{ratios[-1]:.2f}"


def body(*, stream: bool) -> bytes:
    """One request; `ignore_eos` makes every answer equally long."""
    question = [{"role": "user", "content": "What is Ray?"}]
    return json.dumps(
        {
            "model": BASE,
            "messages": question,
            "max_tokens": TOKENS,
            "temperature": 0,
            "ignore_eos": True,
            "stream": stream,
        }
    ).encode()


@contextlib.contextmanager
def vllm_server(rig: ServeRig, environ: dict[str, str], *, fake: bool) -> Iterator[tuple[str, psutil.Process]]:
    """The server of vLLM with the arguments and the engine's environment that the plan gives ours."""
    port = free_port()
    program = [str(FAKE_APP)] if fake else ["-m", "vllm.entrypoints.openai.api_server"]
    words = [
        f"--model={model_path()}",
        f"--served-model-name={BASE}",
        "--host=127.0.0.1",
        f"--port={port}",
        "--disable-fastapi-docs",
        # Ours writes no line per request either.
        "--disable-uvicorn-access-log",
        *command_line(rig.plan.engine),
    ]
    # Ray gives the engine as many threads as the replica has whole processors.
    engine_env = {"OMP_NUM_THREADS": str(max(1, int(rig.plan.placement.actor_cpus)))}
    engine_env |= {name: value for name, value in serve_env(rig.plan).items() if name.startswith("VLLM_")}
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            [sys.executable, *program, *words],
            env=environ | engine_env,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # when it ends, it ends its process group
        ) as process,
    ):
        url = f"http://127.0.0.1:{port}"
        try:
            until(lambda: process.poll() is not None or _answers(url), 180)
            if process.poll() is not None:
                log.seek(0)
                sys.exit(f"vLLM's server did not start:\n{log.read().decode(errors='replace')[-2000:]}")
            yield url, psutil.Process(process.pid)
        finally:
            process.terminate()


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{url}/health", trust_env=False).status_code == 200
    return False


def cpu_seconds(*processes: psutil.Process) -> float:
    """Processor time of these processes and their descendants so far."""
    total = 0.0
    for process in {each for root in processes for each in (root, *root.children(recursive=True))}:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def our_server() -> list[psutil.Process]:
    """The processes that a request passes through: HAProxy, and the replica with its engine."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.name().startswith(("ray::ServeReplica", "haproxy")):
                found.append(process)
    return found


def measure(
    rig: ServeRig, vllm: tuple[str, psutil.Process], options: argparse.Namespace, note: Callable[[str], None]
) -> list[Pair]:
    """Every kind of request at every concurrency, the two servers in turn; who begins alternates."""
    url, process = vllm
    server = our_server()

    def one(pair: Pair, *, ours: bool, seconds: float) -> None:
        before = cpu_seconds(*(server if ours else [process]))
        target = rig.url if ours else url
        result = asyncio.run(
            run_round(f"{target}{PATH}", body(stream=pair.stream), concurrency=pair.concurrency, seconds=seconds)
        )
        used = cpu_seconds(*(server if ours else [process])) - before
        (pair.ours if ours else pair.vllm).append(result)
        (pair.ours_cpu_s if ours else pair.vllm_cpu_s).append(used / result.requests)

    pairs = []
    for stream in (False, True):
        for concurrency in options.concurrency:
            warm, pair = Pair(stream, concurrency), Pair(stream, concurrency)
            one(warm, ours=True, seconds=_WARM_S)
            one(warm, ours=False, seconds=_WARM_S)
            for number in range(options.rounds):
                for ours in (number % 2 == 0, number % 2 == 1):
                    one(pair, ours=ours, seconds=options.seconds)
            pairs.append(pair)
            note(f"{'stream' if stream else 'unary'} {concurrency}: ratio {pair.ratio(lambda each: each.rate):.2f}")
    return pairs


def engine_table(pairs: list[Pair]) -> Table:
    """Requests per second and, of streams, both latencies."""
    table = Table(title="With the engine (ratio: ours / vLLM's own server)")
    for column in ("requests", "in flight", "vLLM req/s", "ours req/s", "ratio", "lowest-highest", "TTFT", "between"):
        table.add_column(column, justify="left" if column == "requests" else "right")
    for pair in pairs:
        streamed = ["", ""]
        if pair.stream:
            values: list[Callable[[Round], float]] = [
                lambda each: statistics.median(each.first_events),
                lambda each: statistics.median(each.gaps),
            ]
            streamed = [f"{pair.ratio(value):.2f}" for value in values]
        table.add_row(
            "stream" if pair.stream else "unary",
            str(pair.concurrency),
            f"{statistics.median(each.rate for each in pair.vllm):.1f}",
            f"{statistics.median(each.rate for each in pair.ours):.1f}",
            f"{pair.ratio(lambda each: each.rate):.2f}",
            pair.spread,
            *streamed,
        )
    return table


def overhead_table(pairs: list[Pair]) -> Table:
    """What the servers take for themselves."""
    table = Table(title="Without the engine (milliseconds per request)")
    for column in ("requests", "in flight", "vLLM CPU", "ours CPU", "added CPU", "vLLM p50", "ours p50", "added p50"):
        table.add_column(column, justify="left" if column == "requests" else "right")
    for pair in pairs:
        cpu = [1000 * statistics.median(values) for values in (pair.vllm_cpu_s, pair.ours_cpu_s)]
        p50 = [
            1000 * statistics.median(statistics.median(each.latencies) for each in rounds)
            for rounds in (pair.vllm, pair.ours)
        ]
        table.add_row(
            "stream" if pair.stream else "unary",
            str(pair.concurrency),
            *(f"{value:.2f}" for value in (*cpu, cpu[1] - cpu[0], *p50, p50[1] - p50[0])),
        )
    return table


def resting() -> tuple[float, float]:
    """How many processors Ray keeps busy while nobody asks, and how many other programs do."""
    me, seconds = psutil.Process(), 3.0
    before = cpu_seconds(me)
    busy = psutil.cpu_percent(interval=seconds) / 100 * (psutil.cpu_count() or 1)
    ray = (cpu_seconds(me) - before) / seconds
    return ray, max(0.0, busy - ray)


def main() -> None:
    """Run both parts and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--concurrency", type=lambda text: [int(part) for part in text.split(",")], default=[1, 8, 32])
    parser.add_argument("--no-lora", action="store_true", help="a faster engine: both servers without adapters")
    parser.add_argument("--no-engine", action="store_true")
    parser.add_argument("--no-overhead", action="store_true")
    options = parser.parse_args()
    console, notes = Console(width=110), Console(stderr=True)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    environ = dict(os.environ)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    with tempfile.TemporaryDirectory() as folder:
        without = {"enable-lora": None, "max-loras": None, "max-lora-rank": None, "max-cpu-loras": None}
        rig = Rig(Path(folder), replicas=1, engine=ENGINE | (without if options.no_lora else {}))
        try:
            if not options.no_engine:
                notes.print("starting both servers")
                rig.start()
                with vllm_server(rig, environ, fake=False) as vllm:
                    console.print(engine_table(measure(rig, vllm, options, notes.print)))
            if not options.no_overhead:
                notes.print("starting both servers without the engine")
                rig.import_path = "bench.fake_app:build"
                rig.deploy()
                time.sleep(1)
                rig.ray.wait_until_running(lambda _: None)
                with vllm_server(rig, environ, fake=True) as vllm:
                    console.print(overhead_table(measure(rig, vllm, options, notes.print)))
            ray, others = resting()
            console.print(f"{psutil.cpu_count()} processors, {_processor()}; vLLM with {_words(rig)}.")
            console.print(f"Ray keeps {ray:.2f} processors busy while nobody asks.")
            if others > _QUIET:
                console.print(f"Other programs kept {others:.1f} processors busy: the figures are not worth much.")
        finally:
            rig.stop()


def _processor() -> str:
    names = [
        line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "name" in line
    ]
    return names[0] if names else "unknown processor"


def _words(rig: ServeRig) -> str:
    return " ".join(command_line(rig.plan.engine))


if __name__ == "__main__":
    main()
