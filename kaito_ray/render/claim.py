# SPDX-License-Identifier: Apache-2.0
"""A TunePlan in, the PersistentVolumeClaim that keeps its checkpoints out. Called by objects.py.

A retried RayJob gets new pods, on another node when a spot node was taken away; only a volume outlives both. None is
made when the user gave a volume for the result, since checkpoints then lie beside it.
"""

from kaito_ray.plan import TunePlan
from kaito_ray.render.metadata import KubeObject, metadata
from kaito_ray.settings import Settings

NO_STORAGE = "none"
# Adapters and their optimizer states take less than a gigabyte each, and a handful are kept.
_SIZE = "32Gi"


def claim_name(plan: TunePlan, job: str, settings: Settings) -> str | None:
    """The claim's name, or None when checkpoints live elsewhere."""
    if plan.output.get("volumeSource") or settings.checkpoint_storage_class == NO_STORAGE:
        return None
    return f"{job}-checkpoints"


def checkpoint_claim(plan: TunePlan, name: str, settings: Settings) -> KubeObject:
    """The claim; several nodes need a storage class that can be written from all of them."""
    spec: KubeObject = {
        "accessModes": ["ReadWriteMany" if plan.nodes > 1 else "ReadWriteOnce"],
        "resources": {"requests": {"storage": _SIZE}},
    }
    if settings.checkpoint_storage_class:
        spec["storageClassName"] = settings.checkpoint_storage_class
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata(plan, name),
        "spec": spec,
    }
