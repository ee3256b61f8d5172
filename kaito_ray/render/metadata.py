# SPDX-License-Identifier: Apache-2.0
"""What every rendered object has in common: its name, namespace and labels. Called by every other render.

Owner references are added where objects are applied, because they need the Workspace as the cluster has it.
"""

from typing import Any

from kaito_ray import names
from kaito_ray.plan import Target

KubeObject = dict[str, Any]
"""A Kubernetes object, or a part of one, as it goes into YAML or JSON."""


def labels(target: Target) -> dict[str, str]:
    """The labels of every object and pod of a Workspace."""
    return names.workspace_labels(target.name, target.namespace)


def metadata(target: Target, name: str) -> KubeObject:
    """`metadata` of an object called `name`."""
    return {"name": name, "namespace": target.namespace, "labels": labels(target)}


def pod_selector(target: Target) -> dict[str, str]:
    """Labels that all Ray pods of the Workspace carry, those of a cluster that is being replaced included."""
    return {names.LABEL_WORKSPACE: target.name, names.LABEL_WORKSPACE_NAMESPACE: target.namespace}
