# SPDX-License-Identifier: Apache-2.0
"""The kinds of objects the operator reads and writes, and where the API serves them."""

from dataclasses import dataclass
from typing import Any

from kaito_ray import names


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind in the version we speak."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """As it stands in objects: `group/version`, or `version` alone in the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def crd(self) -> str:
        """The name of its CustomResourceDefinition, and of the kind in messages: `plural.group`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def path(self, namespace: str | None = None, name: str = "", subresource: str = "") -> str:
        """The path of one object, or of all in `namespace`, or of all in the cluster."""
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if self.namespaced and namespace:
            parts += ["namespaces", namespace]
        parts += [part for part in (self.plural, name, subresource) if part]
        return "/" + "/".join(parts)


WORKSPACE = Kind(names.GROUP, "v1beta1", names.PLURAL, names.KIND)
RAY_SERVICE = Kind("ray.io", "v1", "rayservices", "RayService")
RAY_JOB = Kind("ray.io", "v1", "rayjobs", "RayJob")
RAY_CLUSTER = Kind("ray.io", "v1", "rayclusters", "RayCluster")
POD = Kind("", "v1", "pods", "Pod")
NODE = Kind("", "v1", "nodes", "Node", namespaced=False)
SERVICE = Kind("", "v1", "services", "Service")
CONFIG_MAP = Kind("", "v1", "configmaps", "ConfigMap")
SECRET = Kind("", "v1", "secrets", "Secret")
CLAIM = Kind("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim")
EVENT = Kind("", "v1", "events", "Event")
NETWORK_POLICY = Kind("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy")
DISRUPTION_BUDGET = Kind("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
NODE_POOL = Kind("karpenter.sh", "v1", "nodepools", "NodePool", namespaced=False)
NODE_CLAIM = Kind("karpenter.sh", "v1", "nodeclaims", "NodeClaim", namespaced=False)
NODE_CLASS = Kind("karpenter.azure.com", "v1beta1", "aksnodeclasses", "AKSNodeClass", namespaced=False)
VALIDATING_WEBHOOK = Kind(
    "admissionregistration.k8s.io",
    "v1",
    "validatingwebhookconfigurations",
    "ValidatingWebhookConfiguration",
    namespaced=False,
)

# What kaito_ray/render/ may render, and what is pruned when it no longer does.
RENDERED = (CONFIG_MAP, SECRET, CLAIM, NETWORK_POLICY, DISRUPTION_BUDGET, POD, RAY_SERVICE, RAY_JOB)
_BY_NAME = {(kind.api_version, kind.kind): kind for kind in RENDERED}


def kind_of(document: dict[str, Any]) -> Kind:
    """The kind of a rendered object."""
    return _BY_NAME[document["apiVersion"], document["kind"]]
