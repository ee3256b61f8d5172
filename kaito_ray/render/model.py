# SPDX-License-Identifier: Apache-2.0
"""Where the model of a plan comes from in; what its worker pods need for that out. Called by rayservice.py, rayjob.py.

Nothing for a model that is made on the spot; a volume where it lies ready; otherwise a cache and a container that
fetches into it before Ray starts. That container alone has the logins of the registry and the token of the hub.
"""

import json
import math
from dataclasses import dataclass, replace
from typing import Any

from kaito_ray import names
from kaito_ray.plan import ModelSource, ModelVolume, PodSize, Target
from kaito_ray.render.metadata import KubeObject
from kaito_ray.render.pods import USER_NAME, fetch_env, hub_token, init_container, take_over
from kaito_ray.render.volumes import CACHE, Mount, gathered
from kaito_ray.settings import Settings

_PATH = names.MODELS_DIR
_SPARE_GIB = 8
# An emptyDir is on the kubelet's own disk; below a tenth of it free, the kubelet evicts pods (nodefs.available).
_KUBELETS_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class ModelParts:
    """What a worker pod has for its model."""

    mounts: tuple[Mount, ...] = ()
    """Seen by the Ray container, read-only."""
    private: tuple[Mount, ...] = ()
    """Volumes that the Ray container does not see."""
    before: tuple[KubeObject, ...] = ()
    """Init containers."""
    pull_secrets: tuple[str, ...] = ()
    """For the kubelet, which pulls an image that is mounted."""


def model_parts(target: Target, image: str, hub_secret: str | None, settings: Settings) -> ModelParts:
    """`image` is the pods' own, which knows how to fetch; `hub_secret` has the hub's token."""
    source = target.source
    volume = source.volume
    if volume is None:
        return ModelParts()
    if volume.kind == "image":
        mount = Mount("model", {"image": {"reference": source.reference, "pullPolicy": "IfNotPresent"}}, _PATH)
        return ModelParts((mount,), pull_secrets=source.pull_secrets)
    if volume.kind == "claim":
        claim = {"claimName": volume.reference.partition("/")[0], "readOnly": True}
        return ModelParts((Mount("model", {"persistentVolumeClaim": claim}, _PATH),))
    if volume.kind == "host":
        path = volume.reference
        return ModelParts((Mount("model", {"hostPath": {"path": path, "type": "Directory"}}, path),))
    models = Mount("model", _cache(volume, target.weights_gib), _PATH, read_only=False)
    secrets = source.pull_secrets
    private = (Mount("model-registry", gathered(secrets), names.MODEL_AUTH_DIR),) if secrets else ()
    fetch = init_container(
        names.CONTAINER_FETCH,
        image,
        {"HOME": names.CACHE_DIR, **fetch_env(settings), "USER": USER_NAME},
        (CACHE, models, *private),
        # Costs nothing: a pod is as large as its largest container, and these run one after the other.
        PodSize(target.worker.cpus, target.worker.memory_gib),
    )
    fetch["command"] = ["python", "-m", names.MODEL_FETCH_MODULE, _wish(target, settings)]
    fetch["env"] = [*fetch["env"], *(hub_token(hub_secret) if source.kind == "hub" else ())]
    fetch["terminationMessagePolicy"] = "FallbackToLogsOnError"
    before = (take_over("prepare-cache", image, models), fetch) if volume.kind == "node" else (fetch,)
    return ModelParts((replace(models, read_only=True),), private, before)


def _wish(target: Target, settings: Settings) -> str:
    """The argument of kaito_ray/model_fetch.py."""
    source = target.source
    document: dict[str, Any] = {
        "source": _place(source),
        "form": source.form,
        "link": source.link,
        "names": list(source.names),
        "architecture": source.architecture,
    }
    if source.volume is not None and source.volume.kind == "pod":
        document["spare_share"] = _KUBELETS_SHARE
    if source.volume is not None and source.volume.kind == "node" and settings.model_cache_gib is not None:
        document["limit_gib"] = settings.model_cache_gib
    return json.dumps(document, sort_keys=True)


def _place(source: ModelSource) -> dict[str, Any]:
    if source.kind == "image":
        return {"image": source.reference, "imagePullSecrets": list(source.pull_secrets)}
    return {"hub": source.reference, "revision": source.revision}


def _cache(volume: ModelVolume, weights_gib: float) -> KubeObject:
    if volume.kind == "node":
        return {"hostPath": {"path": volume.reference, "type": "DirectoryOrCreate"}}
    if volume.kind == "pod":
        return {"emptyDir": {}}
    # For a moment layers are there twice, packed and unpacked.
    size = f"{math.ceil(2 * weights_gib + _SPARE_GIB)}Gi"
    spec = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": size}},
        "storageClassName": volume.reference,
    }
    return {"ephemeral": {"volumeClaimTemplate": {"spec": spec}}}
