# SPDX-License-Identifier: Apache-2.0
"""Nodes that were brought along: what each lacks, and the size they have in common."""

from datetime import UTC, datetime
from typing import Any

import pytest

from builders import a_serve_plan, a_workspace
from kaito_ray.errors import NotReadyYet
from kaito_ray.nodes.byo import ByoNodes
from kaito_ray.nodes.byo_size import size_of_nodes
from kaito_ray.nodes.node import Node, parse_node
from kaito_ray.sku import load_sizes

NOW = datetime(2026, 9, 1, tzinfo=UTC)
SIZES = load_sizes()
A100 = "Standard_NC24ads_A100_v4"


def a_node(name: str = "node-1", *, size: str = A100, gpus: int | str = 1, ready: str = "True", **more: Any) -> Node:
    labels = {"apps": "phi-3", **({"node.kubernetes.io/instance-type": size} if size else {}), **more.get("labels", {})}
    return parse_node(
        {
            "metadata": {"name": name, "labels": labels, **more.get("metadata", {})},
            "spec": more.get("spec", {}),
            "status": {
                "allocatable": {"cpu": "23", "nvidia.com/gpu": gpus},
                "capacity": {"cpu": "24", "memory": "230686720Ki", "nvidia.com/gpu": gpus},
                "conditions": [{"type": "Ready", "status": ready, "reason": "KubeletNotReady", "message": "no CNI"}],
            },
        }
    )


def discovered(product: str, count: int, memory_mib: int) -> dict[str, str]:
    return {
        "nvidia.com/gpu.product": product,
        "nvidia.com/gpu.count": str(count),
        "nvidia.com/gpu.memory": str(memory_mib),
        "nvidia.com/cuda.compute.major": "9",
        "nvidia.com/cuda.compute.minor": "0",
    }


@pytest.mark.parametrize(
    ("node", "missing"),
    [
        (a_node(), ""),
        (a_node(gpus="1"), ""),
        (a_node(gpus=0), "node node-1 has 0 allocatable nvidia.com/gpu, 1 are needed (is the device plugin running?)"),
        (a_node(ready="False"), "node node-1 is not Ready (no CNI)"),
        (a_node(spec={"unschedulable": True}), "node node-1 is cordoned; `kubectl uncordon` it"),
        (a_node(metadata={"deletionTimestamp": "2026-09-01T00:00:00Z"}), "node node-1 is being deleted"),
    ],
)
async def test_each_node_says_what_it_lacks(node: Node, missing: str) -> None:
    observed = await ByoNodes(lambda _: [node]).ensure(a_serve_plan(), a_workspace(), NOW)
    assert observed.ready is not bool(missing)
    assert missing in observed.message
    assert observed.nodes == ("node-1",)


async def test_without_nodes_the_label_to_set_is_named() -> None:
    observed = await ByoNodes(lambda _: []).ensure(a_serve_plan(node_labels={"apps": "phi-3"}), a_workspace(), NOW)
    assert observed.message == (
        "0 of 1 nodes with apps=phi-3 are ready; label a node with 1 free GPU(s) to let it serve this Workspace"
    )


def test_the_size_of_equal_nodes() -> None:
    assert size_of_nodes([a_node(), a_node("node-2", size=A100.upper())], SIZES).name == A100
    h200 = size_of_nodes([a_node(size="p5en", labels=discovered("NVIDIA-H200", 8, 143771))], SIZES)
    assert (h200.name, h200.gpu, h200.gpus, h200.gpu_gib, h200.compute_capability) == (
        "p5en",
        "NVIDIA-H200",
        8,
        140.4,
        9.0,
    )
    assert (h200.vcpus, h200.ram_gib) == (24, 220.0)


@pytest.mark.parametrize(
    ("nodes", "reason", "message"),
    [
        ([], "NodeNotReady", "no node carries the labels"),
        (
            [a_node(), a_node("node-2", size="Standard_NC48ads_A100_v4")],
            "NodesNotUniform",
            "node node-1 has 1 x NVIDIA A100 PCIe with 79.14 GiB; node node-2 has 2 x NVIDIA A100 PCIe",
        ),
        (
            [a_node(size="x", labels=discovered("NVIDIA-L4", 1, 23034)), a_node("node-2")],
            "NodesNotUniform",
            "node node-1 has 1 x NVIDIA-L4 with 22.49 GiB",
        ),
        ([a_node(size="")], "NodesUnknown", "node node-1 has no known instance type"),
        ([a_node(size="p5en")], "NodesUnknown", "run NVIDIA's gpu-feature-discovery"),
    ],
)
def test_nodes_that_no_plan_can_be_made_for(nodes: list[Node], reason: str, message: str) -> None:
    with pytest.raises(NotReadyYet) as refused:
        size_of_nodes(nodes, SIZES)
    assert refused.value.reason == reason
    assert message in str(refused.value)
