# SPDX-License-Identifier: Apache-2.0
"""A plan in, all its Kubernetes objects out, in the order in which they are applied.

Called by the reconcile and by `kaito-ray render`. Pure, and equal plans give equal bytes. Secrets are only named here:
the Ray token and the gathered pull secrets (`names.token_secret_name`, `names.registry_secret_name`) hold values and
are made where objects are applied, as are owner references.
"""

from collections.abc import Iterable
from typing import assert_never

from kaito_ray.plan import Plan, ServePlan, TunePlan
from kaito_ray.render.claim import checkpoint_claim, claim_name
from kaito_ray.render.configmap import tune_arguments_map
from kaito_ray.render.dumper import dump_yaml
from kaito_ray.render.metadata import KubeObject
from kaito_ray.render.networkpolicy import network_policy
from kaito_ray.render.pdb import disruption_budgets
from kaito_ray.render.rayjob import ray_job, ray_job_name
from kaito_ray.render.rayservice import ray_service, worker_groups
from kaito_ray.settings import Settings


def render(plan: Plan, settings: Settings) -> list[KubeObject]:
    """Everything of one Workspace; what protects the pods comes before the pods."""
    match plan:
        case ServePlan():
            return _serving(plan, settings)
        case TunePlan():
            return _tuning(plan, settings)
        case _:
            assert_never(plan)


def to_yaml(objects: Iterable[KubeObject]) -> str:
    """The objects as one YAML stream, keys in the order in which people write them."""
    return dump_yaml(list(objects), sort_keys=False, explicit_start=True)


def _serving(plan: ServePlan, settings: Settings) -> list[KubeObject]:
    copies, _ = worker_groups(plan)
    return [
        network_policy(plan, settings),
        # One copy of the model at a time may move to another node; a lone copy stays where it is.
        *disruption_budgets(plan, max(1, copies - 1)),
        ray_service(plan, settings),
    ]


def _tuning(plan: TunePlan, settings: Settings) -> list[KubeObject]:
    job = ray_job_name(plan)
    claim = claim_name(plan, job, settings)
    return [
        tune_arguments_map(plan, job, job),
        *([checkpoint_claim(plan, claim, settings)] if claim else []),
        network_policy(plan, settings),
        # Training stops when any of its workers goes.
        *disruption_budgets(plan, plan.nodes),
        ray_job(plan, job, claim, settings),
    ]
