# SPDX-License-Identifier: Apache-2.0
"""How fast vLLM's own iterator reads safetensors, by strategy, from the page cache and from the disk.

`make bench-loading` prints the table that kaito_ray/load_format.py was decided by. Reading is all that is measured: no
engine starts, and on a GPU the copy to it comes on top, the same for every strategy.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

STRATEGIES = ("lazy", "eager", "prefetch")
_TENSOR_MIB = 16


def make(folder: Path, shards: int, shard_mib: int) -> list[Path]:
    """Random shards."""
    random = np.random.default_rng(0)
    files = []
    for number in range(shards):
        file = folder / f"model-{number}.safetensors"
        tensors = {
            f"{number}.{index}": random.integers(0, 255, (_TENSOR_MIB, 2**20), np.uint8)
            for index in range(shard_mib // _TENSOR_MIB)
        }
        save_file(tensors, file)
        files.append(file)
    return files


def forget(files: list[Path]) -> None:
    """Take the files out of the page cache."""
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        os.fdatasync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def mib_per_second(files: list[Path], strategy: str) -> float:
    """Read every tensor once, into memory of its own."""
    from vllm.model_executor.model_loader.weight_utils import safetensors_weights_iterator

    began, count = time.monotonic(), 0
    for _, tensor in safetensors_weights_iterator([str(file) for file in files], False, strategy):
        count += tensor.clone().numel()
    return count / 2**20 / (time.monotonic() - began)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--shard-mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="where to put the shards, on the disk to measure")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        files = make(Path(folder), given.shards, given.shard_mib)
        seen: dict[tuple[bool, str], list[float]] = {}
        for _ in range(given.rounds):
            for cold in (False, True):
                for strategy in STRATEGIES:
                    if cold:
                        forget(files)
                    seen.setdefault((cold, strategy), []).append(mib_per_second(files, strategy))
    print(f"MiB/s, lowest to highest of {given.rounds}, {given.shards} x {given.shard_mib} MiB")
    print(f"{'':20}" + "".join(f"{strategy:>16}" for strategy in STRATEGIES))
    for cold in (False, True):
        cells = (f"{min(found):,.0f} to {max(found):,.0f}" for found in (seen[cold, each] for each in STRATEGIES))
        print(f"{'on the disk' if cold else 'in the page cache':20}" + "".join(f"{cell:>16}" for cell in cells))


if __name__ == "__main__":
    main()
