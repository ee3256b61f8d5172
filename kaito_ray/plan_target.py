# SPDX-License-Identifier: Apache-2.0
"""What both kinds of plan share about nodes: the size of the pods, the caps, and what to warn about a size.

Called by plan_serve.py and plan_tune.py.
"""

import math

from kaito_ray.errors import DoesNotFit
from kaito_ray.plan import PodSize
from kaito_ray.sku import Sku

HEAD = PodSize(cpus=2, memory_gib=8)
"""Ray's head on an ordinary node: it schedules and runs no model."""

# AKS's memory reservation before 1.29, the largest of its schemes: a share of each tranche of the node's memory.
_RESERVED_SHARES = ((4, 0.25), (4, 0.20), (8, 0.10), (112, 0.06), (math.inf, 0.02))
_EVICTION_GIB = 0.75
# Device plugin, CNI, log and metrics agents and kube-proxy ask for about this much on a GPU node of AKS.
_DAEMONS_CPUS = 0.7
_DAEMONS_GIB = 1.0


def worker_size(sku: Sku) -> PodSize:
    """One worker pod per node, with what AKS and its daemons leave of it.

    Memory: the regressive reservation of AKS (25 % of the first 4 GiB, 20 % of the next 4, 10 % of the next 8, 6 % of
    the next 112, 2 % of the rest) and the 750 MiB eviction threshold. CPU: 60 to 740 millicores up to 64 cores, about
    1.2 % of them beyond (AKS documentation, "Node resource reservations").
    """
    if sku.gpus == 0:
        return PodSize(cpus=float(sku.vcpus), memory_gib=sku.ram_gib)
    cpus = sku.vcpus - max(0.2, 0.012 * sku.vcpus) - _DAEMONS_CPUS
    return PodSize(
        cpus=float(max(1, math.floor(cpus))),
        memory_gib=float(math.floor(sku.ram_gib - _reserved_gib(sku.ram_gib) - _EVICTION_GIB - _DAEMONS_GIB)),
        gpus=sku.gpus,
        gpu_resource=sku.gpu_resource,
    )


def _reserved_gib(memory_gib: float) -> float:
    reserved, left = 0.0, memory_gib
    for tranche, share in _RESERVED_SHARES:
        part = min(left, tranche)
        reserved += part * share
        left -= part
    return reserved


def require_usable(sku: Sku) -> None:
    """Raise DoesNotFit for a size on which nothing can run."""
    if sku.refusal:
        instead = f"; take {', '.join(sku.replacements)}" if sku.replacements else ""
        raise DoesNotFit(f"{sku.name} cannot be used: {sku.refusal}{instead}", reason="UnsupportedInstanceType")


def size_warnings(sku: Sku) -> tuple[str, ...]:
    """What a user should know about the size before it is asked for."""
    warnings = [f"{sku.name}: {warning}" for warning in sku.warnings]
    if sku.gpus and not sku.bfloat16:
        warnings.append(f"{sku.name}: its {sku.gpu} has no bfloat16, so the model runs in float16")
    if sku.status == "retired" and sku.replacements:
        warnings.append(f"{sku.name} can be replaced by {', '.join(sku.replacements)}")
    return tuple(warnings)
