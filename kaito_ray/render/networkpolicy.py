# SPDX-License-Identifier: Apache-2.0
"""The NetworkPolicy around a plan's Ray pods: who may reach what. Called by objects.py.

Ray's own ports run code for whoever reaches them, and its token travels unencrypted, so they are open only to the
Workspace's own pods and to the two operators. The ports that HAProxy uses between nodes (30000-31000) are covered by
"own pods".
"""

from kaito_ray import names
from kaito_ray.plan import ServePlan, Target
from kaito_ray.render.metadata import KubeObject, metadata, pod_selector
from kaito_ray.settings import Settings

_NAMESPACE_NAME = "kubernetes.io/metadata.name"  # set by the API server, so nobody can fake it
# Azure's instance metadata and wire server hand out credentials and settings of the node to whoever asks.
_NODE_SECRETS = ("168.63.129.16/32", "169.254.169.254/32")


def network_policy(target: Target, settings: Settings) -> KubeObject:
    """Ingress by port and caller; egress to everywhere but the node's metadata services."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(target, names.child_name(target.name)),
        "spec": {
            "podSelector": {"matchLabels": pod_selector(target)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": _ingress(target, settings),
            "egress": _egress(),
        },
    }


def _ingress(target: Target, settings: Settings) -> list[KubeObject]:
    rules: list[KubeObject] = [{"from": [{"podSelector": {"matchLabels": pod_selector(target)}}]}]
    if isinstance(target, ServePlan):
        requests: KubeObject = {"ports": _tcp(names.PORT_SERVE)}
        if not target.load_balancer:  # behind a load balancer callers have any address
            requests["from"] = [{"namespaceSelector": {}}]
        rules.append(requests)
    rules.append({"from": _operators(settings), "ports": _tcp(names.PORT_DASHBOARD, names.PORT_AGENT)})
    if settings.monitoring_namespaces:
        rules.append(
            {
                "from": [{"namespaceSelector": _named(*settings.monitoring_namespaces)}],
                "ports": _tcp(names.PORT_METRICS, names.PORT_HAPROXY_METRICS),
            }
        )
    return rules


def _operators(settings: Settings) -> list[KubeObject]:
    """KubeRay's pods carry this component label whether Helm or kustomize installed them."""
    kuberay: KubeObject = {
        "namespaceSelector": _named(settings.kuberay_namespace) if settings.kuberay_namespace else {},
        "podSelector": {"matchLabels": {"app.kubernetes.io/component": "kuberay-operator"}},
    }
    ours: KubeObject = {
        "namespaceSelector": _named(settings.operator_namespace),
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kaito-ray"}},
    }
    return [kuberay, ours]


def _egress() -> list[KubeObject]:
    """Everywhere but the node's metadata services.

    Name service and TLS go out without any condition, because network plugins disagree on whether an address range
    contains nodes and the API server; the metadata services speak neither.
    """
    return [
        {"ports": [{"protocol": "UDP", "port": 53}, *_tcp(53, 443, 6443)]},
        {"to": [{"namespaceSelector": {}}]},
        {"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": list(_NODE_SECRETS)}}, {"ipBlock": {"cidr": "::/0"}}]},
    ]


def _named(*namespaces: str) -> KubeObject:
    return {"matchExpressions": [{"key": _NAMESPACE_NAME, "operator": "In", "values": sorted(namespaces)}]}


def _tcp(*ports: int) -> list[KubeObject]:
    return [{"protocol": "TCP", "port": port} for port in ports]
