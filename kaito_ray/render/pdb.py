# SPDX-License-Identifier: Apache-2.0
"""PodDisruptionBudgets of a plan's Ray pods. Called by objects.py.

Counts are of pods, not percentages or `maxUnavailable`: those need a scale subresource, which RayCluster lacks. Only
ready pods count, hence one per copy of the model: pods that carry the rest of an engine are never ready.
"""

from kaito_ray import names
from kaito_ray.plan import Target
from kaito_ray.render.metadata import KubeObject, metadata, pod_selector


def disruption_budgets(target: Target, workers: int) -> list[KubeObject]:
    """The head is never evicted, since every worker dies with it; at least `workers` ready workers stay."""
    return [_budget(target, "head", "head", 1), _budget(target, names.GROUP_WORKERS, "worker", workers)]


def _budget(target: Target, suffix: str, node_type: str, least: int) -> KubeObject:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(target, f"{names.child_name(target.name)}-{suffix}"),
        "spec": {
            "minAvailable": least,
            "selector": {"matchLabels": {**pod_selector(target), "ray.io/node-type": node_type}},
        },
    }
