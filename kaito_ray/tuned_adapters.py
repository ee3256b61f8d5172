# SPDX-License-Identifier: Apache-2.0
"""A plan with adapters that tuning Workspaces make in, the same with what those have made so far out. For reconcile.py.

While a Workspace has not tuned anything its adapter stays as it is: replicas report that they wait for it, and serve
everything else. Once it has, the adapter is the image or the folder it was put into, pinned to its digest: a change of
`serveConfigV2` alone, and another one whenever it is tuned again.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kaito_ray.cluster import KubeObject
from kaito_ray.plan import AdapterPlan, Plan, ServePlan
from kaito_ray.plan_serve import ADAPTERS_DIR
from kaito_ray.world import World


def with_tuned_adapters(plan: Plan, world: World) -> Plan:
    """The plan with every `source.workspace` of its adapters followed."""
    if not isinstance(plan, ServePlan):
        return plan
    found = {
        one.name: world.workspace((plan.namespace, str(name)))
        for one in plan.adapters
        if (name := one.source.get("workspace"))
    }
    tunings = {name: document for name, document in found.items() if document is not None and "tuning" in document}
    if not tunings:
        return plan
    volumes = [_volume(name, document) for name, document in tunings.items() if _output(document).get("volumeSource")]
    secrets = [_output(document).get("imagePushSecret", "") for document in tunings.values()]
    return replace(
        plan,
        adapters=tuple(_followed(one, tunings[one.name]) if one.name in tunings else one for one in plan.adapters),
        # Mounted before anything lies there: a volume cannot be attached to a pod that runs.
        volumes=(*plan.volumes, *volumes),
        pull_secrets=tuple(dict.fromkeys((*plan.pull_secrets, *(one for one in secrets if one)))),
    )


def _followed(adapter: AdapterPlan, document: KubeObject) -> AdapterPlan:
    """The adapter as tuning left it; as it was when there is none yet."""
    made: Mapping[str, Any] = (document.get("status") or {}).get("output") or {}
    digest = {"digest": made["digest"]} if made.get("digest") else {}
    if made.get("image"):
        return replace(adapter, source={"image": made["image"], **digest})
    if made.get("path") and _output(document).get("volumeSource"):
        return replace(adapter, source={"path": f"{ADAPTERS_DIR}/{adapter.name}", **digest})
    return adapter


def _volume(name: str, document: KubeObject) -> dict[str, Any]:
    return {"name": name, "source": _output(document)["volumeSource"], "mount": f"{ADAPTERS_DIR}/{name}"}


def _output(document: KubeObject) -> Mapping[str, Any]:
    output: Mapping[str, Any] = document["tuning"].get("output") or {}
    return output
