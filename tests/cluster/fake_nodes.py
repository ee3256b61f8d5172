# SPDX-License-Identifier: Apache-2.0
"""The machines of fake agent pools as Node objects: they register, become Ready, and show their GPUs, each in its time.

`FakeNodes.lister` is a NodeLister for tests without an API server; `FakeNodes.mirror` writes the same nodes to one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import aiohttp

from cluster.fake_arm import FakeArm
from cluster.fake_pool import FakePool, Machine
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

    async def mirror(self, session: aiohttp.ClientSession, api: str) -> None:
        """Make the Nodes of the API server at `api` those that there are now."""
        nodes = {document["metadata"]["name"]: document for document in self.documents()}
        async with session.get(f"{api}/api/v1/nodes") as answer:
            answer.raise_for_status()
            present = {item["metadata"]["name"] for item in (await answer.json())["items"]}
        for name in present - nodes.keys():
            async with session.delete(f"{api}/api/v1/nodes/{name}") as answer:
                answer.raise_for_status()
        for name, document in nodes.items():
            if name not in present:
                async with session.post(f"{api}/api/v1/nodes", json=document) as answer:
                    answer.raise_for_status()
            merge = {"Content-Type": "application/merge-patch+json"}
            for part, url in (("spec", f"nodes/{name}"), ("status", f"nodes/{name}/status")):
                async with session.patch(f"{api}/api/v1/{url}", json={part: document[part]}, headers=merge) as answer:
                    answer.raise_for_status()

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
