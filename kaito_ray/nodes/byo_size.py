# SPDX-License-Identifier: Apache-2.0
"""Nodes that were brought along in, the size they all have out, so that a model can be planned for them. Pure.

A node's size is told by its instance type where that is a known one, else by the labels of NVIDIA's GPU feature
discovery (`nvidia.com/gpu.product`, `.count`, `.memory` in MiB). One plan runs on equal nodes only, as in KAITO.
Called by reconcile.py for Workspaces that name no size.
"""

from collections.abc import Sequence

from kaito_ray.errors import NotReadyYet, UnknownSize
from kaito_ray.nodes.node import Node
from kaito_ray.sku import Sizes, Sku

PRODUCT = "nvidia.com/gpu.product"
COUNT = "nvidia.com/gpu.count"
MEMORY = "nvidia.com/gpu.memory"
_MAJOR, _MINOR = "nvidia.com/cuda.compute.major", "nvidia.com/cuda.compute.minor"
_NAMED = 5


def size_of_nodes(nodes: Sequence[Node], sizes: Sizes) -> Sku:
    """The size all of `nodes` have; raises NotReadyYet saying what is the matter with each when there is none."""
    if not nodes:
        raise NotReadyYet("no node carries the labels of resource.labelSelector yet", reason="NodeNotReady")
    found = {node.name: _size(node, sizes) for node in nodes}
    unknown = [name for name, sku in found.items() if sku is None]
    if unknown:
        text = "; ".join(
            f"node {name} has no known instance type and not all of the labels {PRODUCT}, {COUNT} and {MEMORY}"
            for name in unknown[:_NAMED]
        )
        raise NotReadyYet(
            f"{text}; run NVIDIA's gpu-feature-discovery, or name a size in resource.instanceType",
            reason="NodesUnknown",
        )
    kinds = {name: sku for name, sku in found.items() if sku is not None}
    first = next(iter(kinds.values()))
    if any((sku.gpu, sku.gpus, sku.gpu_gib) != (first.gpu, first.gpus, first.gpu_gib) for sku in kinds.values()):
        text = "; ".join(f"node {name} has {_gpus(sku)}" for name, sku in list(kinds.items())[:_NAMED])
        raise NotReadyYet(
            f"the nodes of a Workspace must have the same GPUs: {text}; select equal ones", reason="NodesNotUniform"
        )
    return first


def _size(node: Node, sizes: Sizes) -> Sku | None:
    try:
        return sizes.get(node.instance_type)
    except UnknownSize:
        return _discovered(node)


def _discovered(node: Node) -> Sku | None:
    labels = node.labels
    count, memory_mib = labels.get(COUNT, ""), labels.get(MEMORY, "")
    if not (labels.get(PRODUCT) and count.isdecimal() and memory_mib.isdecimal()):
        return None
    major, minor = labels.get(_MAJOR, ""), labels.get(_MINOR, "0")
    memory_gib = round(int(memory_mib) / 1024, 2)
    return Sku(
        name=node.instance_type or labels[PRODUCT],
        gpu=labels[PRODUCT],
        gpus=int(count),
        memory_gib=memory_gib,
        cuda_memory_gib=memory_gib,
        compute_capability=float(f"{major}.{minor}") if major.isdecimal() and minor.isdecimal() else None,
        vcpus=max(1, int(node.cpus)),
        ram_gb=node.memory_gib or None,
        suggested=False,
    )


def _gpus(sku: Sku) -> str:
    return f"{sku.gpus} x {sku.gpu} with {sku.gpu_gib:g} GiB"
