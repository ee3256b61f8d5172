# SPDX-License-Identifier: Apache-2.0
"""What adapters cost: until one answers on every replica, for others while they come and go, and per token.

    python tests/bench/adapters.py [--replicas 2] [--swaps 100] [--seconds 4] [--rounds 4] [--only loading ...]

Real Ray Serve, real vLLM and the real registry (docker-registry) on this machine, all on the same cores as the client,
so compare within one run: ratios are medians over pairs of neighbouring rounds.
"""

import argparse
import asyncio
import contextlib
import gzip
import itertools
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from adapter_files import adapter_for  # noqa: E402
from bench.client import run_round  # noqa: E402
from docker_registry import DockerRegistry  # noqa: E402
from kaito_ray.artifacts.blob import Blob  # noqa: E402
from kaito_ray.artifacts.limits import ADAPTER  # noqa: E402
from kaito_ray.artifacts.push import pack_adapter, push_image  # noqa: E402
from kaito_ray.artifacts.reference import Reference  # noqa: E402
from kaito_ray.artifacts.registry import Registry  # noqa: E402
from kaito_ray.plan import AdapterPlan  # noqa: E402
from kaito_ray.tiny_model import cache_folder, model_path  # noqa: E402
from serve_rig import BASE, ServeRig  # noqa: E402
from waiting import until  # noqa: E402

PATH = "/v1/completions"
TOKENS = 16
CONCURRENCY = 16
PARTS = ("loading", "swaps", "throughput", "enabled")
_MB = 1_000_000
_WAIT_S = 120.0


def body(model: str, tokens: int = TOKENS) -> bytes:
    """One question, answered to a fixed length."""
    question = {"model": model, "prompt": "What is Kubernetes?", "max_tokens": tokens, "temperature": 0}
    return json.dumps(question | {"ignore_eos": True}).encode()


def on_volume(name: str, folder: Path) -> AdapterPlan:
    """An adapter from a folder of this machine."""
    return AdapterPlan(name, {"path": str(folder)})


@contextlib.contextmanager
def serving(
    folder: Path, replicas: int, adapters: Sequence[AdapterPlan], engine: dict[str, object]
) -> Iterator[ServeRig]:
    """A server with those adapters from the start, ready or not."""
    rig = ServeRig(folder, replicas=replicas, engine=engine)
    try:
        rig.start(adapters)
        yield rig
    finally:
        rig.stop()


def first_answers(rig: ServeRig, urls: Sequence[str], change: Callable[[], None], names: Sequence[str]) -> float:
    """Seconds from the change of the Serve config until every replica has answered with every one of the adapters."""
    started = time.perf_counter()
    change()
    waiting = set(itertools.product(urls, names))
    with httpx.Client(timeout=60, trust_env=False, headers={"content-type": "application/json"}) as client:
        while waiting:
            for url, name in sorted(waiting):
                if client.post(f"{url}{PATH}", content=body(name, 1)).status_code == 200:
                    waiting.discard((url, name))
            if time.perf_counter() - started > _WAIT_S:
                raise RuntimeError(f"not loaded after {_WAIT_S:g} s: {rig.states()}")
            time.sleep(0.01)
    return time.perf_counter() - started


async def push(folder: Path, image: str, work: Path, padding: int) -> None:
    """Push an adapter as KAITO lays it out, with a file of random bytes beside it to make it large."""
    config, layer = await asyncio.to_thread(pack_adapter, folder, work)
    layers = [layer]
    if padding:
        path = work / "padding.tar.gz"
        await asyncio.to_thread(_write_padding, path, padding)
        extra = Blob.of_bytes(path.read_bytes(), layer.media_type)
        layers.append(extra)
    async with Registry(Reference.parse(image), ADAPTER) as client:
        await push_image(client, config, layers, {})


def _write_padding(path: Path, size: int) -> None:
    with gzip.open(path, "wb", compresslevel=1) as packed, tarfile.open(fileobj=packed, mode="w|") as tar:
        raw = path.with_suffix(".raw")
        with raw.open("wb") as file:
            for _ in range(size // _MB):
                file.write(os.urandom(_MB))
        tar.add(raw, "data/training.log")
        raw.unlink()


@dataclass(slots=True)
class Traffic:
    """Base requests that go on all the time: their times, and those that were not answered."""

    rig: ServeRig
    latencies: list[tuple[float, float]] = field(default_factory=list)
    """When each began, and how long it took, in seconds."""
    failures: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def flowing(self, concurrency: int) -> Iterator[None]:
        """Keep `concurrency` requests in flight meanwhile."""
        stop = threading.Event()
        thread = threading.Thread(target=lambda: asyncio.run(self._flow(concurrency, stop)))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    async def _flow(self, concurrency: int, stop: threading.Event) -> None:
        import aiohttp

        async with aiohttp.ClientSession(headers={"content-type": "application/json"}) as session:

            async def worker() -> None:
                while not stop.is_set():
                    began = time.perf_counter()
                    try:
                        async with session.post(f"{self.rig.url}{PATH}", data=body(BASE)) as answer:
                            text = await answer.text()
                            if answer.status != 200:
                                self.failures.append(text)
                    except aiohttp.ClientError as error:
                        self.failures.append(repr(error))
                    self.latencies.append((began, time.perf_counter() - began))

            await asyncio.gather(*(worker() for _ in range(concurrency)))

    def between(self, start: float, end: float) -> list[float]:
        """Times of the requests that began in that stretch."""
        return sorted(took for began, took in self.latencies if start <= began < end)


def p99(values: Sequence[float]) -> float:
    """The time that one request in a hundred exceeds."""
    return sorted(values)[max(0, len(values) * 99 // 100 - 1)]


def bench_swaps(rig: ServeRig, folders: Sequence[Path], swaps: int, seconds: float) -> Table:
    """Base requests while adapters are loaded, replaced and unloaded, against the same without."""
    traffic = Traffic(rig)
    with traffic.flowing(CONCURRENCY):
        time.sleep(1)
        quiet_from = time.perf_counter()
        time.sleep(3 * seconds)
        busy_from = time.perf_counter()
        done = 0
        print("swapping", file=sys.stderr)
        for step in itertools.count():
            names = [f"swap{(step + index) % 8}" for index in range(4)]
            wanted = [on_volume(name, folders[(step + index) % len(folders)]) for index, name in enumerate(names)]
            rig.deploy(wanted)
            _settle(rig, set(names))
            # One is new, one is gone, and those that stayed have another folder.
            done += 5
            if done >= swaps:
                break
        busy_to = time.perf_counter()
        time.sleep(seconds)
    rig.deploy()
    quiet, busy = traffic.between(quiet_from, busy_from), traffic.between(busy_from, busy_to)
    slow = sum(took > 2 * p99(quiet) for took in busy)
    table = Table("base requests", "number", "p50 ms", "p99 ms", "slower than 2 x p99", "failed")
    for name, times in (("adapters stay", quiet), (f"{done} loads, replacements, unloads", busy)):
        late = sum(took > 2 * p99(quiet) for took in times)
        row = [f"{len(times)}", f"{1000 * statistics.median(times):.0f}", f"{1000 * p99(times):.0f}", f"{late}"]
        table.add_row(name, *row, f"{len(traffic.failures)}" if times is busy else "")
    table.caption = f"target: 0 failed, 0 slowed; in {busy_to - busy_from:.0f} s" + ("" if slow else ": met")
    return table


def _settle(rig: ServeRig, names: set[str]) -> None:
    deadline = time.monotonic() + _WAIT_S
    # One client: to make one takes longer than all that it asks, on the cores that are measured.
    with httpx.Client(trust_env=False, timeout=30) as client:
        while time.monotonic() < deadline:
            answers = [client.get(f"{url}/adapters").json() for url in _urls(rig)]
            if all({one["name"] for one in states if one["state"] == "Ready"} == names for states in answers):
                return
            time.sleep(0.25)
    raise RuntimeError(f"adapters did not settle: {rig.states()}")


_KNOWN: dict[int, list[str]] = {}


def _urls(rig: ServeRig) -> list[str]:
    """The replicas' own addresses, looked up once."""
    if rig.port not in _KNOWN:
        _KNOWN[rig.port] = rig.replica_urls()
    return _KNOWN[rig.port]


async def rate(url: str, models: Sequence[str], seconds: float) -> float:
    """Requests per second with CONCURRENCY in flight, spread evenly over the models."""
    each = max(1, CONCURRENCY // len(models))
    rounds = [run_round(f"{url}{PATH}", body(model), concurrency=each, seconds=seconds) for model in models]
    return sum(one.rate for one in await asyncio.gather(*rounds))


def bench_throughput(rig: ServeRig, folders: Sequence[Path], seconds: float, rounds: int) -> Table:
    """Requests per second with 1, 4 and 16 adapters against the base on the same server."""
    names = [f"lora{index}" for index in range(16)]
    rig.deploy([on_volume(name, folders[index % len(folders)]) for index, name in enumerate(names)])
    _settle(rig, set(names))
    table = Table("adapters in use", "requests/s", "base", "ratio")
    for count in (1, 4, 16):
        asyncio.run(rate(rig.url, names[:count], seconds / 2))
        pairs = [
            (asyncio.run(rate(rig.url, names[:count], seconds)), asyncio.run(rate(rig.url, [BASE], seconds)))
            for _ in range(rounds)
        ]
        with_them, base = (statistics.median(values) for values in zip(*pairs, strict=True))
        ratio = statistics.median(one / other for one, other in pairs)
        print(f"{count} adapters: {ratio:.2f}", file=sys.stderr)
        table.add_row(str(count), f"{with_them:.1f}", f"{base:.1f}", f"{ratio:.2f}")
    rig.deploy()
    return table


def bench_enabled(rig: ServeRig, folder: Path, seconds: float, rounds: int) -> Table:
    """The base with LoRA enabled (`rig`, without adapters) against a server without LoRA beside it."""
    address = folder / "address"
    command = [sys.executable, __file__, "--replicas", str(len(_urls(rig))), "--serve-plain", str(address)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as other:
        try:
            until(lambda: address.exists() or other.poll() is not None, 3 * _WAIT_S)
            url = address.read_text()
            asyncio.run(rate(url, [BASE], seconds))
            pairs = [
                (asyncio.run(rate(rig.url, [BASE], seconds)), asyncio.run(rate(url, [BASE], seconds)))
                for _ in range(rounds)
            ]
        finally:
            if other.stdin:
                other.stdin.close()
    enabled, without = (statistics.median(values) for values in zip(*pairs, strict=True))
    table = Table("base, LoRA enabled", "base, without", "ratio")
    table.add_row(f"{enabled:.1f}", f"{without:.1f}", f"{statistics.median(one / two for one, two in pairs):.2f}")
    return table


def serve_plain(address: Path, replicas: int) -> None:
    """The same server without LoRA, until stdin ends; a process has room for one Ray only."""
    plain = {"enable-lora": False, "max-lora-rank": None, "max-loras": None, "max-cpu-loras": None}
    with serving(address.parent, replicas, (), dict(plain)) as rig:
        fresh = address.with_suffix(".new")
        fresh.write_text(rig.url)
        fresh.rename(address)
        sys.stdin.read()


async def bench_loading(rig: ServeRig, folder: Path, restart_s: float) -> Table:
    """From a change of the Serve config to the first answer on every replica, by source."""
    urls = rig.replica_urls()
    table = Table("first answer from the new adapter on every replica", "seconds", "target")

    async def timed(what: str, plan: AdapterPlan, target: str) -> None:
        took = await asyncio.to_thread(first_answers, rig, urls, lambda: rig.deploy([plan]), [plan.name])
        table.add_row(what, f"{took:.2f}", target)
        print(f"{what}: {took:.2f} s", file=sys.stderr)

    for index in range(3):
        source = adapter_for(model_path(), folder / f"volume{index}", seed=100 + index)
        await timed("local volume", on_volume(f"volume{index}", source), "< 2")
    registry = DockerRegistry(folder / "registry")
    await registry.start()
    try:
        for index, padding in enumerate((0, 100 * _MB, 100 * _MB)):
            image = registry.image(f"bench/adapter{index}:1")
            work = folder / f"push{index}"
            work.mkdir()
            await push(adapter_for(model_path(), folder / f"image{index}", seed=200 + index), image, work, padding)
            size = f"{padding // _MB} MB image" if padding else "small image"
            await timed(
                f"{size} from a registry on this machine", AdapterPlan(f"image{index}", {"image": image}), "< 5"
            )
    finally:
        await registry.stop()
    table.add_row("restart of the same server with the adapter", f"{restart_s:.1f}", "")
    return table


def main() -> None:
    """Run every part and print its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one round")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="the parts to run")
    parser.add_argument("--serve-plain", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_plain:
        serve_plain(options.serve_plain, options.replicas)
        return
    console = Console(soft_wrap=True)
    console.print(f"load of this machine before: {psutil.getloadavg()[0]:.1f} on {psutil.cpu_count()} cores")
    # A folder of its own, so that nothing is in the cache from an earlier run.
    with tempfile.TemporaryDirectory(prefix="kr-bench-") as scratch:
        folder, models = Path(scratch), model_path().parent
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        cache_folder().parent.mkdir(parents=True)
        cache_folder().symlink_to(models)
        folders = [adapter_for(model_path(), folder / f"a{index}", seed=index) for index in range(16)]
        started = time.perf_counter()
        (folder / "one").mkdir()
        (folder / "two").mkdir()
        with serving(folder / "one", options.replicas, [on_volume("first", folders[0])], {}) as rig:
            first_answers(rig, rig.replica_urls(), lambda: None, ["first"])
            restart_s = time.perf_counter() - started
            if "loading" in options.only:
                console.print(asyncio.run(bench_loading(rig, folder, restart_s)))
            if "swaps" in options.only:
                console.print(bench_swaps(rig, folders, options.swaps, options.seconds))
            if "throughput" in options.only:
                console.print(bench_throughput(rig, folders, options.seconds, options.rounds))
            if "enabled" in options.only:
                console.print(bench_enabled(rig, folder / "two", options.seconds, options.rounds))


if __name__ == "__main__":
    main()
