# SPDX-License-Identifier: Apache-2.0
"""Everything that tests of the operator leave in a real cluster, taken away again.

The cluster is one to throw away: namespace `default` is emptied, and all objects of the kinds and names below go,
whoever made them; the CustomResourceDefinitions of Workspaces and of KubeRay stay.
"""

from collections.abc import Callable

from cluster.client import Client, Refused
from cluster.resource import Object

_RBAC, _ADMISSION = "rbac.authorization.k8s.io/v1", "admissionregistration.k8s.io/v1"
_DEFINITION = ("apiextensions.k8s.io/v1", "CustomResourceDefinition")
_KINDS = (
    ("kaito.sh/v1beta1", "Workspace"),
    ("ray.io/v1", "RayService"),
    ("ray.io/v1", "RayJob"),
    ("ray.io/v1", "RayCluster"),
)
_COME_LATE = ("karpenter.sh", "karpenter.azure.com")
NAMESPACES = ("kaito-ray", "team-a", "team-b")
_IN_DEFAULT = (
    ("apps/v1", "Deployment"),
    ("batch/v1", "Job"),
    ("v1", "PersistentVolumeClaim"),
    ("policy/v1", "PodDisruptionBudget"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("v1", "Service"),
    ("v1", "ConfigMap"),
    ("v1", "Secret"),
    ("coordination.k8s.io/v1", "Lease"),
    ("v1", "Event"),
)
_OURS = (
    (_ADMISSION, "ValidatingWebhookConfiguration"),
    (_RBAC, "ClusterRoleBinding"),
    (_RBAC, "ClusterRole"),
)
_KEPT = {("Service", "kubernetes"), ("ConfigMap", "kube-root-ca.crt")}


def tidy(client: Client) -> None:
    """Take everything away and wait until it is gone."""
    for api_version, kind in _OURS:
        for one in client.list(api_version, kind):
            if one["metadata"]["name"].startswith("kaito-ray"):
                _delete(client, one)
    for group in _COME_LATE:
        undefine(client, group)
    for api_version, kind in _KINDS:
        for one in _all(client, api_version, kind):
            _release(client, one)
            _delete(client, one)
    for namespace in NAMESPACES:
        here = client.find("v1", "Namespace", namespace)
        if here is not None:
            _delete(client, here)
    for api_version, kind in _IN_DEFAULT:
        for one in client.list(api_version, kind, "default"):
            if (kind, one["metadata"]["name"]) not in _KEPT:
                _release(client, one)
                _delete(client, one)
    for one in client.list("v1", "Node"):
        if one["spec"].get("providerID", "").startswith(("test://", "azure://")):
            _delete(client, one)
    client.wait(lambda: _left(client), lambda left: not left, 60)


def undefine(client: Client, group: str) -> None:
    """Take the CustomResourceDefinitions of a group away, and wait until they are gone."""

    def there() -> list[str]:
        found = [one for one in client.list(*_DEFINITION) if one["spec"]["group"] == group]
        for definition in found:
            _delete(client, definition)
            version, kind = definition["spec"]["versions"][0]["name"], definition["spec"]["names"]["kind"]
            for one in _all(client, f"{group}/{version}", kind):
                _release(client, one)
        return [one["metadata"]["name"] for one in found]

    client.wait(there, lambda left: not left, 30)


def _all(client: Client, api_version: str, kind: str) -> list[Object]:
    """The objects of a kind; none where it is not served, or no more."""
    try:
        return client.list(api_version, kind)
    except Refused as refused:
        if refused.code != 404:
            raise
        return []


def _left(client: Client) -> list[str]:
    """The namespaces and pods that are still there. No kubelet ends these pods, and simulators are gone by now."""
    namespaces = [name for name in NAMESPACES if client.find("v1", "Namespace", name) is not None]
    pods = [one for namespace in ("default", *NAMESPACES) for one in client.list("v1", "Pod", namespace)]
    for one in pods:
        _delete(client, one, gracePeriodSeconds=0)
    return [*namespaces, *(str(one["metadata"]["name"]) for one in pods)]


def _release(client: Client, obj: Object) -> None:
    if obj["metadata"].get("finalizers"):
        _unless_gone(lambda: client.patch(obj, {"metadata": {"finalizers": None}}))


def _delete(client: Client, obj: Object, **options: int) -> None:
    _unless_gone(lambda: client.delete(obj, **options))


def _unless_gone(action: Callable[[], Object]) -> None:
    try:
        action()
    except Refused as refused:
        if refused.code not in (404, 409):
            raise
