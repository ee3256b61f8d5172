# SPDX-License-Identifier: Apache-2.0
"""A plan with adapters that tuning Workspaces make in, the same with what those have made so far out. For reconcile.py.

While a Workspace has not tuned anything its adapter stays as it is, with the reason: replicas wait for it, and serve
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
    named = {one.name: str(name) for one in plan.adapters if (name := one.source.get("workspace"))}
    if not named:
        return plan
    found = {adapter: world.workspace((plan.namespace, name)) for adapter, name in named.items()}
    tunings = {adapter: document for adapter, document in found.items() if document and "tuning" in document}
    volumes = [_volume(name, document) for name, document in tunings.items() if _output(document).get("volumeSource")]
    secrets = [_output(document).get("imagePushSecret", "") for document in tunings.values()]
    return replace(
        plan,
        adapters=tuple(_followed(one, found[one.name]) if one.name in found else one for one in plan.adapters),
        # Mounted before anything lies there: a volume cannot be attached to a pod that runs.
        volumes=(*plan.volumes, *volumes),
        pull_secrets=tuple(dict.fromkeys((*plan.pull_secrets, *(one for one in secrets if one)))),
    )


def _followed(adapter: AdapterPlan, document: KubeObject | None) -> AdapterPlan:
    """The adapter as tuning left it; when there is none yet, as it was and with the reason."""
    name = adapter.source["workspace"]
    if document is None:
        return replace(adapter, waits_for=f"there is no Workspace {name} in this namespace")
    if "tuning" not in document:
        return replace(adapter, waits_for=f"Workspace {name} serves a model and tunes none")
    status = document.get("status") or {}
    made: Mapping[str, Any] = status.get("output") or {}
    digest = {"digest": made["digest"]} if made.get("digest") else {}
    if made.get("image"):
        return replace(adapter, source={"image": made["image"], **digest})
    if made.get("path") and _output(document).get("volumeSource"):
        return replace(adapter, source={"path": f"{ADAPTERS_DIR}/{adapter.name}", **digest})
    if status.get("state") == "Failed":
        return replace(adapter, waits_for=f"Workspace {name} failed to tune it")
    return replace(adapter, waits_for=f"Workspace {name} has not tuned it yet")


def _volume(name: str, document: KubeObject) -> dict[str, Any]:
    return {"name": name, "source": _output(document)["volumeSource"], "mount": f"{ADAPTERS_DIR}/{name}"}


def _output(document: KubeObject) -> Mapping[str, Any]:
    output: Mapping[str, Any] = document["tuning"].get("output") or {}
    return output
