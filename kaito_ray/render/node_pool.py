# SPDX-License-Identifier: Apache-2.0
"""A plan in, what Karpenter is asked for out: a static NodePool and, unless the user named one, its node class. Pure.

A static NodePool keeps `replicas` nodes whether or not pods wait for them, which is what a model that spans nodes
needs. Both objects are of the cluster, not of a namespace, so their names carry the namespace and a hash.
"""

from kaito_ray import names
from kaito_ray.nodes.candidate import Priority
from kaito_ray.nodes.pool import disk_gb, render_labels
from kaito_ray.plan import Target
from kaito_ray.render.metadata import KubeObject, labels

_FAMILIES = {"ubuntu": "Ubuntu", "azurelinux": "AzureLinux"}
_CAPACITY = {Priority.REGULAR: "on-demand", Priority.SPOT: "spot"}


def node_pool_name(namespace: str, name: str) -> str:
    """The name of both objects; `a-b` of namespace `c` and `b-c`'s `a` must not meet, hence the hash."""
    return names.shortened(f"{namespace}/{name}", names.LABEL_VALUE_MAX)


def render_node_pool(plan: Target, node_class: str, priorities: tuple[Priority, ...]) -> KubeObject:
    """The NodePool. With two priorities Karpenter takes spot where it can and falls back by itself."""
    requirements = {
        "node.kubernetes.io/instance-type": [plan.instance_type],
        "kubernetes.io/os": ["linux"],
        "karpenter.sh/capacity-type": [_CAPACITY[priority] for priority in priorities],
        # GPU sizes are listed for zones in which they cannot be had; without a zone they can.
        "karpenter.azure.com/placement-scope": ["regional"],
    }
    return {
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodePool",
        "metadata": _metadata(plan),
        "spec": {
            "replicas": plan.nodes,
            "template": {
                "metadata": {"labels": render_labels(plan)},
                "spec": {
                    "nodeClassRef": {"group": "karpenter.azure.com", "kind": "AKSNodeClass", "name": node_class},
                    "requirements": [
                        {"key": key, "operator": "In", "values": values} for key, values in requirements.items()
                    ],
                    "taints": [dict(names.TAINT_GPU)],
                    # A model that serves is not to lose its node for its age.
                    "expireAfter": "Never",
                },
            },
            "disruption": {
                "budgets": [{"nodes": "1"}],
                "consolidateAfter": "Never",
                "consolidationPolicy": "WhenEmpty",
            },
        },
    }


def render_node_class(plan: Target, image_family: str) -> KubeObject:
    """The AKSNodeClass: the image family asked for, and a disk that holds the model."""
    return {
        "apiVersion": "karpenter.azure.com/v1beta1",
        "kind": "AKSNodeClass",
        "metadata": _metadata(plan),
        "spec": {
            "imageFamily": _FAMILIES.get(image_family.replace(" ", "").lower(), "Ubuntu"),
            "osDiskSizeGB": disk_gb(plan),
        },
    }


def _metadata(plan: Target) -> KubeObject:
    return {
        "name": node_pool_name(plan.namespace, plan.name),
        "labels": labels(plan),
        "annotations": {names.ANNOTATION_WORKSPACE_UID: plan.uid},
    }
