# SPDX-License-Identifier: Apache-2.0
"""The addresses a cluster gives out: cluster IPs and node ports of Services, IPs of pods."""

import itertools

from cluster.resource import Object


class Addresses:
    """Counters; nothing is given back, a test cluster does not live that long."""

    def __init__(self) -> None:
        self._services = itertools.count(10)
        self._pods = itertools.count(10)
        self._node_ports = itertools.count(30_000)

    def service_ip(self) -> str:
        """The next address of 10.96.0.0/12."""
        return _address(10, 96, next(self._services))

    def pod_ip(self) -> str:
        """The next address of 10.244.0.0/16 and beyond."""
        return _address(10, 244, next(self._pods))

    def assign(self, service: Object) -> None:
        """Give a new Service its cluster IP and node ports, in place."""
        spec = service["spec"]
        if spec["type"] == "ExternalName":
            return
        if not spec.get("clusterIP"):
            spec["clusterIP"] = (spec.get("clusterIPs") or [""])[0] or self.service_ip()
        spec.setdefault("clusterIPs", [spec["clusterIP"]])
        spec.setdefault("ipFamilies", ["IPv4"])
        spec.setdefault("ipFamilyPolicy", "SingleStack")
        if spec["type"] in ("NodePort", "LoadBalancer") and spec.get("allocateLoadBalancerNodePorts", True):
            for port in spec.get("ports", ()):
                port.setdefault("nodePort", next(self._node_ports))


def _address(first: int, second: int, number: int) -> str:
    return f"{first}.{second + number // 65_536}.{number // 256 % 256}.{number % 256}"
