# SPDX-License-Identifier: Apache-2.0
"""Nodes that come and go as a test says, with GPUs that the device plugin reports when the test lets it."""

import asyncio
from typing import Any

from cluster.call import now
from cluster.inside import Inside
from cluster.resource import Object

_READY = ("KubeletReady", "kubelet is posting ready status")
_PRESSURES = (
    ("MemoryPressure", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
    ("DiskPressure", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
    ("PIDPressure", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
)


class Nodes:
    """The nodes of a simulated cluster. Its methods run in the server's loop (`TestCluster.run`)."""

    def __init__(self, inside: Inside) -> None:
        self._inside = inside

    async def add(
        self,
        name: str,
        *,
        labels: dict[str, str] | None = None,
        gpus: int = 0,
        instance_type: str = "Standard_D4s_v5",
        cpu: str = "64",
        memory: str = "512Gi",
        pods: int = 110,
        ready: bool = True,
        taints: list[dict[str, str]] | None = None,
        provider_id: str = "",
    ) -> Object:
        """A new node. `gpus=0` with a later `set_gpus` is a node whose device plugin is still starting."""
        carried = {
            "kubernetes.io/hostname": name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64",
            "beta.kubernetes.io/instance-type": instance_type,
            "node.kubernetes.io/instance-type": instance_type,
            "topology.kubernetes.io/region": "test",
            **(labels or {}),
        }
        capacity: dict[str, Any] = {"cpu": cpu, "memory": memory, "pods": pods, "ephemeral-storage": "1Ti"}
        if gpus:
            capacity["nvidia.com/gpu"] = gpus
        made = await self._inside.create(
            "nodes",
            {
                "metadata": {"name": name, "labels": carried},
                "spec": {"taints": taints or [], "providerID": provider_id or f"test:///{name}"},
                "status": {
                    "capacity": capacity,
                    "allocatable": capacity,
                    "conditions": _conditions(ready, *_READY),
                    "addresses": [
                        {
                            "type": "InternalIP",
                            "address": f"10.224.{len(self.names()) // 250}.{len(self.names()) % 250 + 4}",
                        },
                        {"type": "Hostname", "address": name},
                    ],
                    "nodeInfo": {
                        "kubeletVersion": "v1.33.4",
                        "kubeProxyVersion": "",
                        "osImage": "Ubuntu 22.04.5 LTS",
                        "kernelVersion": "5.15.0-1091-azure",
                        "containerRuntimeVersion": "containerd://1.7.27",
                        "architecture": "amd64",
                        "operatingSystem": "linux",
                        "bootID": "",
                        "machineID": "",
                        "systemUUID": "",
                    },
                },
            },
        )
        # A real server taints new nodes until its node controller has seen that they are ready.
        if made["spec"].get("taints", []) != (taints or []):
            made = await self._inside.patch("nodes", made, {"spec": {"taints": taints or None}}) or made
        return made

    def names(self) -> list[str]:
        """The names of all nodes."""
        return [node["metadata"]["name"] for node in self._inside.select("nodes")]

    async def set_gpus(self, name: str, gpus: int) -> None:
        """What the device plugin reports from now on."""
        amount = {"nvidia.com/gpu": str(gpus)}
        await self._patch_status(name, {"capacity": amount, "allocatable": amount})

    async def set_ready(self, name: str, ready: bool, reason: str = "", message: str = "") -> None:
        """Whether the kubelet reports the node ready; by default an unready one has stopped posting."""
        why = (reason or "NodeStatusUnknown", message or "Kubelet stopped posting node status.")
        await self._patch_status(name, {"conditions": _conditions(ready, *(_READY if ready else why))})

    async def remove(self, name: str) -> None:
        """The node is gone, and with it its pods."""
        node = self._inside.get("nodes", "", name)
        if node is None:
            return
        await self._inside.delete("nodes", node)
        lost = [pod for pod in self._inside.select("pods") if pod["spec"].get("nodeName") == name]
        await asyncio.gather(*(self._inside.delete("pods", pod, gracePeriodSeconds=0) for pod in lost))

    async def _patch_status(self, name: str, status: Object) -> None:
        node = self._inside.get("nodes", "", name)
        if node is None:
            raise KeyError(name)
        await self._inside.patch("nodes", node, {"status": status}, subresource="status")


def _conditions(ready: bool, reason: str, message: str) -> list[Object]:
    moment = now()
    pressures = [
        {"type": kind, "status": "False", "reason": why, "message": text, "lastHeartbeatTime": moment,
         "lastTransitionTime": moment}
        for kind, why, text in _PRESSURES
    ]  # fmt: skip
    status = "True" if ready else "Unknown" if reason == "NodeStatusUnknown" else "False"
    return [
        *pressures,
        {"type": "Ready", "status": status, "reason": reason, "message": message, "lastHeartbeatTime": moment,
         "lastTransitionTime": moment},
    ]  # fmt: skip
