# SPDX-License-Identifier: Apache-2.0
"""The machines of fake agent pools as Node objects: they register, become Ready, and show their GPUs, each in its time.

`FakeNodes.lister` is a NodeLister for tests without an API server; `FakeNodes.mirror` makes them the nodes of a
simulated cluster.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from cluster.fake_arm import FakeArm
from cluster.fake_pool import FakePool, Machine
from cluster.node_simulator import Nodes
from kaito_ray import names
from kaito_ray.nodes.node import Node, parse_node
from kaito_ray.sku import Sizes, load_sizes

Json = Any
SIZES = load_sizes()


@dataclass(slots=True)
class FakeNodes:
    """The kubelets of an ARM's machines. GPUs are allocatable once the device plugin runs, or never (`no_plugin`)."""

    arm: FakeArm
    register_s: float = 30.0
    plugin_s: float = 60.0
    no_plugin: bool = False
    upper_case_sizes: bool = False
    cordoned: set[str] = field(default_factory=set)
    sizes: Sizes = SIZES

    def documents(self) -> list[dict[str, Json]]:
        """Every Node there is now, system pools included."""
        self.arm.advance()
        now = self.arm.clock()
        return [
            self._document(pool, machine, now)
            for pool, machine in self._machines()
            if now >= machine.since + timedelta(seconds=self.register_s)
        ]

    def lister(self, labels: Mapping[str, str]) -> Sequence[Node]:
        """A NodeLister."""
        nodes = (parse_node(document) for document in self.documents())
        return sorted((node for node in nodes if node.has_labels(labels)), key=lambda node: node.name)

    def lose(self, name: str) -> None:
        """The kubelet of that node stops reporting."""
        machine = next(machine for _, machine in self._machines() if machine.name == name)
        machine.lost_at = self.arm.clock()

    def vanish(self, name: str) -> None:
        """The machine is gone without AKS being asked, and the pool still counts it."""
        for pool in self.arm.pools.values():
            pool.machines = [machine for machine in pool.machines if machine.name != name]

    async def mirror(self, kubelets: Nodes, every_s: float = 0.05) -> None:
        """Make the machines the nodes of a simulated cluster, until cancelled; runs in that cluster's loop."""
        shown: dict[str, tuple[bool, int]] = {}
        while True:
            wanted = {node.name: node for node in (parse_node(document) for document in self.documents())}
            for name in shown.keys() - wanted.keys():
                await kubelets.remove(name)
                del shown[name]
            for name, node in wanted.items():
                gpus = node.gpus.get("nvidia.com/gpu", 0)
                if name not in shown:
                    taints = [dict(names.TAINT_GPU)] if names.LABEL_MACHINE_TYPE in node.labels else []
                    await kubelets.add(
                        name,
                        labels=dict(node.labels),
                        instance_type=node.instance_type,
                        taints=taints,
                        ready=node.ready,
                    )
                    shown[name] = (node.ready, 0)
                if shown[name][0] != node.ready:
                    await kubelets.set_ready(name, node.ready)
                if shown[name][1] != gpus:
                    await kubelets.set_gpus(name, gpus)
                shown[name] = (node.ready, gpus)
            await asyncio.sleep(every_s)

    def _machines(self) -> Iterator[tuple[FakePool, Machine]]:
        for pool in self.arm.pools.values():
            for machine in pool.machines:
                yield pool, machine

    def _document(self, pool: FakePool, machine: Machine, now: datetime) -> dict[str, Json]:
        size = str(pool.properties["vmSize"])
        gpus = self.sizes.get(size).gpus if "_N" in size else 0
        shown = gpus if not self.no_plugin and now >= machine.since + timedelta(seconds=self.plugin_s) else 0
        spot = pool.properties.get("scaleSetPriority") == "Spot"
        labels = {
            "kubernetes.azure.com/agentpool": pool.name,
            "agentpool": pool.name,
            "node.kubernetes.io/instance-type": size.upper() if self.upper_case_sizes else size,
            "topology.kubernetes.io/zone": "0",
            "kubernetes.io/hostname": machine.name,
        }
        if spot:
            labels["kubernetes.azure.com/scalesetpriority"] = "spot"
        taints = [_taint(text) for text in pool.properties.get("nodeTaints", [])]
        ready = machine.lost_at is None
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": machine.name, "labels": labels | pool.properties.get("nodeLabels", {})},
            "spec": {
                "providerID": f"azure:///subscriptions/x/virtualMachineScaleSets/vmss/virtualMachines/{machine.name}",
                "taints": taints,
                "unschedulable": machine.name in self.cordoned,
            },
            "status": {
                "allocatable": {"cpu": "23", "memory": "200Gi", "pods": "110", "nvidia.com/gpu": str(shown)},
                "capacity": {"cpu": "24", "memory": "220Gi", "pods": "110", "nvidia.com/gpu": str(shown)},
                "conditions": [
                    {
                        "type": "Ready",
                        "status": "True" if ready else "Unknown",
                        "reason": "KubeletReady" if ready else "NodeStatusUnknown",
                        "message": "" if ready else "Kubelet stopped posting node status.",
                        "lastTransitionTime": f"{(machine.lost_at or machine.since):%Y-%m-%dT%H:%M:%SZ}",
                    }
                ],
            },
        }


def _taint(text: str) -> dict[str, str]:
    pair, effect = text.rsplit(":", 1)
    key, value = pair.split("=", 1)
    return {"key": key, "value": value, "effect": effect}
