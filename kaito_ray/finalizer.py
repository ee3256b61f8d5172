# SPDX-License-Identifier: Apache-2.0
"""A Workspace that is being deleted in, its nodes given back out; only then may it go. Called by reconcile.py.

The manual way out, when a cloud will never answer again, is to remove the finalizer by hand; what is left in the cloud
then carries the Workspace's UID in its tags.
"""

import logging
from datetime import datetime

from kaito_ray import names
from kaito_ray.cluster import Cluster, Conflict, KubeObject, NotFound
from kaito_ray.errors import ClusterUnavailable, LeaseLost, NotReadyYet
from kaito_ray.informer import key_of
from kaito_ray.kinds import RAY_JOB, RAY_SERVICE, WORKSPACE
from kaito_ray.nodes.provisioner import NodeProvisioner
from kaito_ray.report import Reporter
from kaito_ray.workspace import LabelSelector, Metadata, Resource, Workspace
from kaito_ray.world import World

logger = logging.getLogger(__name__)

_RETRY_S = 10.0


async def add_finalizer(cluster: Cluster, world: World, document: KubeObject) -> None:
    """Keep the Workspace from going before its nodes are given back; written before the first node is asked for."""
    finalizers = document["metadata"].get("finalizers") or []
    if names.FINALIZER not in finalizers:
        await _write(cluster, world, document, [*finalizers, names.FINALIZER])


async def release(
    cluster: Cluster,
    world: World,
    provisioner: NodeProvisioner,
    reporter: Reporter,
    document: KubeObject,
    now: datetime,
) -> float | None:
    """Stop the work, give the nodes back, let the Workspace go; the seconds after which to look again, if any."""
    key = key_of(document)
    finalizers = document["metadata"].get("finalizers") or []
    if names.FINALIZER not in finalizers:
        return None
    for kind in (RAY_SERVICE, RAY_JOB):
        for child in world.children(kind, key):
            metadata = child["metadata"]
            if not metadata.get("deletionTimestamp"):
                await cluster.delete(kind, metadata["namespace"], metadata["name"], uid=metadata["uid"])
    try:
        done = await provisioner.release(_named(document))
    except (ClusterUnavailable, LeaseLost):
        raise
    except NotReadyYet as error:
        await reporter.report_release(document, error.reason, str(error), now)
        return error.delay_s
    if not done:
        await reporter.report_release(document, "Releasing", "the nodes are being given back", now)
        return _RETRY_S
    await _write(cluster, world, document, [one for one in finalizers if one != names.FINALIZER])
    return None


def _named(document: KubeObject) -> Workspace:
    """The Workspace by its name alone: one that an older release accepted must be releasable too."""
    return Workspace.model_construct(
        api_version="kaito.sh/v1beta1",
        metadata=Metadata.model_validate(document["metadata"]),
        resource=Resource.model_construct(label_selector=LabelSelector()),
        status=document.get("status") or {},
    )


async def _write(cluster: Cluster, world: World, document: KubeObject, finalizers: list[str]) -> None:
    """Write the list as a whole, and only onto the version it was read from: others keep finalizers there too."""
    metadata = document["metadata"]
    patch = {"metadata": {"finalizers": finalizers, "resourceVersion": metadata["resourceVersion"]}}
    try:
        written = await cluster.patch(WORKSPACE, metadata["namespace"], metadata["name"], patch)
    except NotFound:
        world.drop_workspace(key_of(document))
        raise NotReadyYet("the Workspace is gone", delay_s=0) from None
    except Conflict:
        raise NotReadyYet("the Workspace has changed meanwhile", delay_s=0.1) from None
    world.refresh_workspace(written)
