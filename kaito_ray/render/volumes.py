# SPDX-License-Identifier: Apache-2.0
"""What is mounted into the Ray pods of a plan. Called by rayservice.py and rayjob.py.

Every difference in a pod template costs a second set of GPUs, so nothing here depends on adapters, except those that
live on a volume of their own: such a volume cannot be attached to a running pod.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kaito_ray import names
from kaito_ray.plan import ServePlan, TunePlan
from kaito_ray.render.metadata import KubeObject
from kaito_ray.serve_config import API_KEYS_DIR
from kaito_ray.source_rules import placeholders

# Readable by the group that pods run with (fsGroup), by nobody else.
_SECRET_MODE = 0o440
OUTPUT = "output"
"""The volume that a job's checkpoints and adapter are on."""
_NAME_MAX = 63


@dataclass(frozen=True, slots=True)
class Mount:
    """One volume of a pod and where its containers see it."""

    name: str
    source: Mapping[str, Any]
    path: str
    read_only: bool = True

    def as_volume(self) -> KubeObject:
        """The entry of `spec.volumes`."""
        return {"name": self.name, **self.source}

    def as_mount(self) -> KubeObject:
        """The entry of a container's `volumeMounts`."""
        mount: KubeObject = {"name": self.name, "mountPath": self.path}
        return mount | {"readOnly": True} if self.read_only else mount


CACHE = Mount("cache", {"emptyDir": {}}, names.CACHE_DIR, read_only=False)
"""The home of the pod's user: weights from the hub, compiled kernels and adapters are written here."""


def serve_mounts(plan: ServePlan) -> tuple[Mount, ...]:
    """What the worker pods of a RayService need beside the cache."""
    mounts = [_secret("registry", names.registry_secret_name(plan.name), names.REGISTRY_AUTH_DIR, optional=True)]
    if plan.api_keys_secret:
        # Not optional: without the Secret the pod does not start, rather than serve without keys.
        mounts.append(_secret("api-keys", plan.api_keys_secret, API_KEYS_DIR))
    adapters = sorted(plan.volumes, key=lambda volume: str(volume["name"]))
    mounts += [Mount(_volume_name(volume["name"]), volume["source"], volume["mount"]) for volume in adapters]
    return tuple(mounts)


def tune_mounts(plan: TunePlan, job: str, claim: str | None) -> tuple[Mount, ...]:
    """What the worker pods of the RayJob called `job` need beside the cache; `claim` holds its checkpoints."""
    mounts = [Mount("arguments", {"configMap": {"name": job}}, names.TUNE_DIR)]
    if secrets := plan.input.get("imagePullSecrets"):
        mounts.append(Mount("registry", gathered(secrets), names.REGISTRY_AUTH_DIR))
    # A volume of a Secret that nobody can make would keep the pods from starting, and the job from saying so.
    if (secret := plan.output.get("imagePushSecret")) and not placeholders(secret):
        mounts.append(Mount("push", gathered([secret]), names.PUSH_AUTH_DIR))
    if source := plan.input.get("volumeSource"):
        mounts.append(Mount("data", source, names.TUNE_DATA_DIR))
    if source := plan.output.get("volumeSource"):
        mounts.append(Mount(OUTPUT, source, names.TUNE_OUTPUT_DIR, read_only=False))
    elif claim:
        source = {"persistentVolumeClaim": {"claimName": claim}}
        mounts.append(Mount(OUTPUT, source, names.TUNE_OUTPUT_DIR, read_only=False))
    else:
        mounts.append(Mount(OUTPUT, {"emptyDir": {}}, names.TUNE_OUTPUT_DIR, read_only=False))
    return tuple(mounts)


def _secret(name: str, secret: str, path: str, *, optional: bool = False) -> Mount:
    source: KubeObject = {"secretName": secret, "defaultMode": _SECRET_MODE}
    return Mount(name, {"secret": source | {"optional": True} if optional else source}, path)


def gathered(secrets: Iterable[str]) -> KubeObject:
    """Several registry Secrets in one folder, each as `<name>.json`."""
    return {
        "projected": {
            "defaultMode": _SECRET_MODE,
            "sources": [
                {"secret": {"name": secret, "items": [{"key": ".dockerconfigjson", "path": f"{secret}.json"}]}}
                for secret in sorted(set(secrets))
            ],
        }
    }


def _volume_name(adapter: str) -> str:
    """A volume's name must be a DNS label; an adapter's may be longer and have dots."""
    name = f"adapter-{adapter}"
    return name if len(name) <= _NAME_MAX and "." not in name else names.shortened(name, _NAME_MAX)
