# SPDX-License-Identifier: Apache-2.0
"""How fast a model comes from a registry: ours against skopeo and huggingface_hub, in turns, on this machine.

    python tests/bench/weights.py [--gb 2] [--shards 4] [--rounds 3] [-o json]

Random shards are packed into a real registry on the loopback. Then, round by round, in processes of their own and into
empty folders: `fetch_model` of the image, digests checked and ready to load; `skopeo copy` of the same image to a
folder, layers still packed; huggingface_hub's `snapshot_download` of the same files from a server that sends them by
sendfile. Times are of the work alone for the two in Python, and of the process for skopeo, which starts at once. Also
printed: processor time (start-up included, which is twice for ours), pushing, a second pod on the same node, and the
most memory ours took. TMPDIR says on which disk.
"""

import argparse
import asyncio
import json
import os
import resource
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from docker_registry import DockerRegistry  # noqa: E402
from hub_files import HubFiles  # noqa: E402

_OURS = """
import asyncio, json, resource, sys, time
from pathlib import Path
from kaito_ray.artifacts.cache import Cache
from kaito_ray.artifacts.model import fetch_model, model_stager
from kaito_ray.artifacts.source import Source
def fetch(cache, image):
    start = time.perf_counter()
    asyncio.run(fetch_model(model_stager(Cache(Path(cache))), Source(image=image)))
    return time.perf_counter() - start
seconds = fetch(*sys.argv[1:])
print(json.dumps({"s": seconds, "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""
_HUB = """
import json, sys, time
from huggingface_hub import snapshot_download
start = time.perf_counter()
snapshot_download("org/model", endpoint=sys.argv[2], local_dir=sys.argv[1])
print(json.dumps({"s": time.perf_counter() - start}))
"""
_PUSH = """
import asyncio, json, resource, sys, time
from pathlib import Path
from kaito_ray.artifacts.limits import MODEL
from kaito_ray.artifacts.pack import Facts, Packing, push_model
from kaito_ray.artifacts.reference import Reference
from kaito_ray.artifacts.registry import Registry
async def push(folder, image):
    async with Registry(Reference.parse(image), MODEL) as registry:
        await push_model(registry, Packing.plan(Path(folder), Facts("org/model", license="mit")))
start = time.perf_counter()
asyncio.run(push(*sys.argv[1:]))
seconds = time.perf_counter() - start
print(json.dumps({"s": seconds, "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


def make_model(folder: Path, size: int, shards: int) -> None:
    """A model of random weights: one tensor per shard, with the index."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["Phi3ForCausalLM"]}))
    (folder / "tokenizer.json").write_text("{}")
    weight_map = {}
    for number in range(1, shards + 1):
        name, tensor, rows = f"model-{number:05}-of-{shards:05}.safetensors", f"layer.{number}", size // shards // 4096
        weight_map[tensor] = name
        header = json.dumps({tensor: {"dtype": "U8", "shape": [rows, 4096], "data_offsets": [0, rows * 4096]}}).encode()
        with (folder / name).open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            for _ in range(rows // 256):
                file.write(os.urandom(256 * 4096))
            file.write(os.urandom(rows % 256 * 4096))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def child(program: str, *arguments: str) -> dict[str, float]:
    """Run a program of ours and take its figures."""
    environment = os.environ | {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        sys.exit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


@contextmanager
def empty(root: Path) -> Iterator[str]:
    """A folder that is gone afterwards; what was written before must not cost the one who comes next."""
    os.sync()
    folder = Path(tempfile.mkdtemp(dir=root))
    try:
        yield str(folder)
    finally:
        shutil.rmtree(folder)


async def measure(root: Path, size: int, shards: int, rounds: int) -> dict[str, object]:
    """All figures; speeds in MB/s, the median of the rounds."""
    make_model(root / "model", size, shards)
    total = sum(path.stat().st_size for path in (root / "model").iterdir()) / 1e6
    registry = DockerRegistry(root / "registry")
    await registry.start()
    hub = HubFiles(root / "model")
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        image = registry.image("team/model:1")
        push = child(_PUSH, str(root / "model"), image)
        memory: list[float] = []
        second: list[float] = []

        def ours(folder: str) -> float:
            first = child(_OURS, folder, image)
            second.append(child(_OURS, folder, image)["s"])
            memory.append(first["mb"])
            return first["s"]

        def skopeo(folder: str) -> float:
            start = time.perf_counter()
            copy = ("skopeo", "copy", "--src-tls-verify=false", f"docker://{image}", f"dir:{folder}")
            subprocess.run(copy, check=True, capture_output=True)
            return time.perf_counter() - start

        def huggingface_hub(folder: str) -> float:
            return child(_HUB, folder, hub.url)["s"]

        tools = [ours, skopeo, huggingface_hub]
        speeds: dict[str, list[float]] = {tool.__name__: [] for tool in tools}
        processor: dict[str, list[float]] = {tool.__name__: [] for tool in tools}
        for number in range(rounds):
            # Each begins a round in its turn, so that none always finds the machine as the same other left it.
            for tool in tools[number % 3 :] + tools[: number % 3]:
                with empty(root) as folder:
                    before = _processor_s()
                    speeds[tool.__name__].append(total / tool(folder))
                    processor[tool.__name__].append((_processor_s() - before) / total * 1000)
    finally:
        hub.shutdown()
        hub.server_close()
        await registry.stop()
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    best = max(medians["skopeo"], medians["huggingface_hub"])
    return {
        "model_mb": round(total),
        "mb_per_s": {name: [round(value) for value in values] for name, values in speeds.items()},
        "median_mb_per_s": {name: round(value) for name, value in medians.items()},
        "ratio_to_faster": round(medians["ours"] / best, 2),
        "processor_s_per_gb": {name: round(statistics.median(values), 2) for name, values in processor.items()},
        "second_pod_s": round(max(second), 3),
        "fetch_memory_mb": round(max(memory)),
        "push_mb_per_s": round(total / push["s"]),
        "push_memory_mb": round(push["mb"]),
    }


def _processor_s() -> float:
    """Seconds that the children of this process have taken so far; ours are two, the second pod's included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=2.0)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-weights-") as folder:
        found = asyncio.run(measure(Path(folder), int(options.gb * 1e9), options.shards, options.rounds))
    if options.output == "json":
        print(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        print(f"{name:18} {value}")


if __name__ == "__main__":
    main()
