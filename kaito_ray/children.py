# SPDX-License-Identifier: Apache-2.0
"""A plan in, its objects in the cluster out, under the conditions that only the cluster can tell. Called by reconcile.

Rendering is pure; what stands here needs the world: whether KubeRay is installed, whether nodes are ready, whether the
name of the Service is free, whether there is room for a second Ray cluster, and the Secrets that hold values.
"""

import base64
import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import assert_never

from kaito_ray import names
from kaito_ray.after_tuning import Next
from kaito_ray.apply import Applied, Applier
from kaito_ray.cluster import KubeObject, NotFound
from kaito_ray.errors import NameTaken, NotReadyYet
from kaito_ray.informer import key_of
from kaito_ray.kinds import CONFIG_MAP, DISRUPTION_BUDGET, POD, RAY_JOB, RAY_SERVICE, SECRET, SERVICE, Kind
from kaito_ray.lint import Lint
from kaito_ray.nodes.provisioner import NodesObserved, Notice
from kaito_ray.plan import Plan, ServePlan, TunePlan
from kaito_ray.references import DOCKER_CONFIG_KEY
from kaito_ray.render.lint import lint_objects
from kaito_ray.render.metadata import metadata
from kaito_ray.render.networkpolicy import network_policy
from kaito_ray.render.objects import render
from kaito_ray.render.rayjob import ray_job_name
from kaito_ray.rollout import has_room, roll_out
from kaito_ray.settings import Settings
from kaito_ray.tuning_watch import TuningWatch
from kaito_ray.world import World

_TOKEN_BYTES = 32


class Children:
    """What is made for Workspaces."""

    def __init__(self, applier: Applier, world: World, tuning: TuningWatch, settings: Settings) -> None:
        self._applier = applier
        self._world = world
        self._tuning = tuning
        self._settings = settings

    async def apply(
        self, workspace: KubeObject, step: Next, nodes: NodesObserved, missing: Sequence[str], now: datetime
    ) -> Applied:
        """Bring everything to what the plan says; until nodes are ready nothing is created, only kept current.

        A job that is over stays, for whoever wants to look at it. Raises NotReadyYet for what will pass or
        be made, UserError for what somebody must settle.
        """
        plan = step.plan
        if step.lint is not None and isinstance(plan, TunePlan):
            return await self._judge(workspace, plan, step.job, step.lint, now)
        keep = {(RAY_JOB, (plan.namespace, step.job))} if step.tuned or step.rests else set()
        if step.rests:
            return await self._applier.apply(workspace, [], now, keep=keep)
        kind, name = self._main(plan)
        self._require_kuberay(kind)
        live = self._world.child(kind, (plan.namespace, name))
        if live is None and not nodes.ready:
            await self._applier.discard(workspace, POD)  # that judged the data, and was read
            return Applied()
        if live is None:
            if missing:
                raise NotReadyYet("; ".join(missing), reason="ReferenceMissing", delay_s=60)
            if kind is RAY_SERVICE:
                self._require_free_service(plan)
        await self._ensure_token(workspace, plan)
        documents, notices = await self._documents(workspace, plan, live)
        try:
            applied = await self._applier.apply(workspace, documents, now, keep=keep)
        except NotFound as error:
            # Seen before the watch has noticed that the CRD is gone.
            raise NotReadyYet(f"{kind.crd} cannot be written: {error}", reason="KubeRayMissing", delay_s=5) from None
        if isinstance(plan, TunePlan):
            await self._keep_token(plan)
        return Applied(applied.written, applied.contested, (*notices, *applied.notices))

    async def _judge(self, workspace: KubeObject, plan: TunePlan, job: str, lint: Lint, now: datetime) -> Applied:
        """The pod that judges the data, before there are nodes; those of former wishes go."""
        if lint.over:
            return Applied()
        wanted, keep = [network_policy(plan, self._settings)], set()
        for name in lint.keep:
            keep |= {(kind, (plan.namespace, name)) for kind in (POD, CONFIG_MAP)}
        if not lint.make:
            return await self._applier.apply(workspace, wanted, now, keep=keep)
        config, pod = lint_objects(plan, job, lint.make, self._settings)
        applied = await self._applier.apply(workspace, [*wanted, config], now, keep=keep)
        await self._applier.start(workspace, pod)
        return applied

    def _main(self, plan: Plan) -> tuple[Kind, str]:
        """The object that does the work."""
        match plan:
            case ServePlan():
                return RAY_SERVICE, names.child_name(plan.name)
            case TunePlan():
                return RAY_JOB, ray_job_name(plan)
            case _:
                assert_never(plan)

    async def _documents(
        self, workspace: KubeObject, plan: Plan, live: KubeObject | None
    ) -> tuple[list[KubeObject], list[Notice]]:
        documents: list[KubeObject] = []
        notices: list[Notice] = []
        if isinstance(plan, ServePlan) and plan.pull_secrets:
            documents.append(await self._registry_secret(plan))
        for document in render(plan, self._settings):
            if document["kind"] == DISRUPTION_BUDGET.kind and not self._wants_budget(workspace, document):
                continue
            if document["kind"] == RAY_SERVICE.kind:
                service, notice = roll_out(document, live, has_room=lambda: self._has_room(plan))
                documents.append(service)
                notices += [notice] if notice else []
            elif document["kind"] == RAY_JOB.kind and live is not None:
                document["spec"]["backoffLimit"] = self._tuning.backoff_limit(key_of(workspace), live)
                documents.append(document)
            else:
                documents.append(document)
        return documents, notices

    def _require_kuberay(self, kind: Kind) -> None:
        if self._world.is_absent(kind):
            raise NotReadyYet(
                f"the CustomResourceDefinition {kind.crd} is not installed; install the KubeRay operator 1.7 or newer",
                reason="KubeRayMissing",
            )

    def _wants_budget(self, workspace: KubeObject, document: KubeObject) -> bool:
        """A disruption budget comes with readiness: over pods that never got ready it would only block drains."""
        if self._world.child(DISRUPTION_BUDGET, key_of(document)) is not None:
            return True
        conditions = (workspace.get("status") or {}).get("conditions") or ()
        return any(one["type"] == "WorkspaceReady" and one["status"] == "True" for one in conditions)

    def _has_room(self, plan: Plan) -> bool:
        return has_room(plan, self._world.nodes(plan.node_labels), self._world.all_pods())

    def _require_free_service(self, plan: Plan) -> None:
        """KubeRay makes the Service, and would change one that is there already, such as KAITO's own."""
        name = names.service_name(plan.name)
        service = self._world.anyones(SERVICE, (plan.namespace, name))
        if service is None:
            return
        owners = service["metadata"].get("ownerReferences") or ()
        if not any((one["kind"], one["name"]) == (RAY_SERVICE.kind, names.child_name(plan.name)) for one in owners):
            whose = f"belongs to {owners[0]['kind']} {owners[0]['name']}" if owners else "was not made by kaito-ray"
            raise NameTaken(f"Service {name} exists and {whose}; delete it, or give the Workspace another name")

    async def _ensure_token(self, workspace: KubeObject, plan: Plan) -> None:
        """The token of the Workspace's Ray clusters: random, made once, the same over upgrades."""
        name = names.token_secret_name(plan.name)
        if self._world.child(SECRET, (plan.namespace, name)) is None:
            token = secrets.token_urlsafe(_TOKEN_BYTES)
            await self._applier.create_once(workspace, _secret(plan, name, {names.TOKEN_SECRET_KEY: _encoded(token)}))

    async def _keep_token(self, plan: TunePlan) -> None:
        """The token outlives the job.

        KubeRay 1.7 stops a job through the dashboard before it lets a RayJob go. Where the Workspace goes with all it
        owns, the token would be gone first, and the RayJob and its GPUs would stay for ever (rayjob_controller.go).
        """
        job = self._world.child(RAY_JOB, (plan.namespace, ray_job_name(plan)))
        token = self._world.child(SECRET, (plan.namespace, names.token_secret_name(plan.name)))
        if job is not None and token is not None:
            await self._applier.keep_with(SECRET, token, job)

    async def _registry_secret(self, plan: ServePlan) -> KubeObject:
        """The pull secrets of all adapters under one name, so that another adapter leaves the pods as they are."""
        data = {}
        for name in plan.pull_secrets:
            found = await self._world.data(SECRET, (plan.namespace, name)) or {}
            if DOCKER_CONFIG_KEY in found:
                data[f"{name}.json"] = found[DOCKER_CONFIG_KEY]
        return _secret(plan, names.registry_secret_name(plan.name), data)


def _secret(plan: Plan, name: str, data: dict[str, str]) -> KubeObject:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata(plan, name), "type": "Opaque", "data": data}


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
