# SPDX-License-Identifier: Apache-2.0
"""Settings of the operator and the planner, from variables named `KAITO_RAY_*`.

`Settings.from_env(os.environ)` is called once, in operator/main.py and in the CLI; everything below takes the
value as an argument.
"""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kaito_ray.errors import InvalidManifest, Problem

PREFIX = "KAITO_RAY_"
# gpu-provisioner's variables, read when ours are unset.
_FALLBACKS = {
    "subscription_id": "ARM_SUBSCRIPTION_ID",
    "resource_group": "ARM_RESOURCE_GROUP",
    "cluster_name": "AZURE_CLUSTER_NAME",
    "location": "LOCATION",
}
_LISTS = {"allow_private_urls", "namespaces", "monitoring_namespaces", "zones"}


class Provisioner(StrEnum):
    """Who makes GPU nodes."""

    AKS = "aks"
    KARPENTER = "karpenter"
    BYO = "byo"


class NodeTimeoutPolicy(StrEnum):
    """What follows when a pool's GPUs did not show up in time and the pool was deleted."""

    RETRY = "retry"
    STOP = "stop"


class Settings(BaseModel):
    """One field per setting; the variable is the field's name in upper case behind `KAITO_RAY_`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    provisioner: Provisioner = Field(Provisioner.AKS, description="who makes GPU nodes: aks, karpenter or byo")
    subscription_id: str = Field("", description="Azure subscription of the cluster")
    resource_group: str = Field("", description="resource group of the AKS cluster")
    cluster_name: str = Field("", description="name of the AKS cluster")
    location: str = Field("", description="Azure region, such as eastus")
    arm_endpoint: str = Field("", description="base URL of Azure Resource Manager; empty is the public cloud")
    azure_credential: str = Field("", description="`fake` for a static token, refused unless the endpoint is loopback")
    max_nodes: int = Field(8, ge=1, description="most GPU nodes one Workspace may ask for")
    max_hourly_usd: float | None = Field(None, gt=0, description="most US dollars per hour one Workspace may cost")
    allow_private_urls: tuple[str, ...] = Field(
        (),
        description="hosts or networks that data and adapter URLs may reach although they are private, comma-separated",
    )
    namespaces: tuple[str, ...] = Field((), description="namespaces to watch, comma-separated; empty is all")
    presets_dir: Path | None = Field(None, description="folder of preset files used instead of the built-in ones")
    serve_image: str = Field("ghcr.io/kaito-ray/serve:0.1.0", description="image of RayService pods")
    tune_image: str = Field(
        "ghcr.io/kaito-ray/tune:0.1.0", description="image of RayJob pods, and of those that judge their data"
    )
    operator_namespace: str = Field(
        "kaito-ray", description="namespace of the operator, allowed to reach Ray's dashboards"
    )
    kuberay_namespace: str = Field(
        "",
        description="namespace of the KubeRay operator; empty lets KubeRay operator pods of all namespaces reach Ray",
    )
    monitoring_namespaces: tuple[str, ...] = Field(
        ("kube-system", "monitoring"),
        description="namespaces whose pods may read the metrics of Ray pods, comma-separated",
    )
    preset_registry: str = Field(
        "",
        description="registry folder with KAITO's images of presets or a mirror of it, such as"
        " mcr.microsoft.com/aks/kaito, to take them from instead of the hub where their licence permits; empty is the"
        " hub",
    )
    model_cache_dir: str = Field(
        "",
        pattern=r"^(/[^:]*)?$",
        description="folder of the nodes, such as one on an NVMe disk, in which all pods of a node share the models"
        " they fetch (a hostPath); empty fetches into each pod",
    )
    model_cache_gib: int | None = Field(
        None, ge=1, description="most GiB of models kept in that folder; those used longest ago go first"
    )
    nvme_storage_class: str = Field(
        "",
        description="StorageClass of local NVMe disks, such as kaito-local-nvme-disk, for models on sizes that have"
        " them; empty uses none",
    )
    image_volumes: bool = Field(
        False,
        description="whether the cluster mounts images as volumes (Kubernetes 1.33 or newer), so that a model's image"
        " needs no fetching",
    )
    checkpoint_storage_class: str = Field(
        "",
        description="StorageClass of the volume that keeps the checkpoints of a tuning; empty is the cluster's default,"
        " `none` keeps them in the pod, where an evicted node takes them along",
    )
    max_total_nodes: int | None = Field(
        None, ge=1, description="most GPU nodes that all Workspaces together may have in agent pools of this operator"
    )
    max_total_hourly_usd: float | None = Field(
        None, gt=0, description="most US dollars per hour that all agent pools of this operator may cost, at list price"
    )
    node_timeout_minutes: int = Field(
        45, ge=5, description="minutes after which an agent pool whose GPUs never showed up is deleted"
    )
    node_timeout_policy: NodeTimeoutPolicy = Field(
        NodeTimeoutPolicy.RETRY, description="what follows then: retry, or stop and leave it to you"
    )
    zones: tuple[str, ...] = Field(
        ("1", "2", "3"),
        description="availability zones to try one by one when the region as a whole has no capacity, comma-separated;"
        " `none` tries no zone",
    )

    health_port: int = Field(8080, ge=1, le=65535, description="port of /healthz, /readyz and /metrics of the operator")

    resync_s: int = Field(
        600, ge=1, description="seconds after which a Workspace is looked at again even if nothing changed"
    )
    webhook_port: int = Field(9443, ge=0, le=65535, description="port of the admission webhook; 0 is any free one")
    webhook_service: str = Field("kaito-ray-webhook", description="name of the Service in front of the webhook")
    webhook_configuration: str = Field(
        "kaito-ray",
        description="ValidatingWebhookConfiguration that is told which authority to trust; empty leaves it alone",
    )
    webhook_cert_dir: Path | None = Field(
        None, description="folder with tls.crt and tls.key to serve the webhook with, instead of making them"
    )

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Read every setting; raise InvalidManifest naming each variable with a bad value."""
        values: dict[str, object] = {}
        for name in cls.model_fields:
            text = environ.get(PREFIX + name.upper()) or environ.get(_FALLBACKS.get(name, ""), "")
            if text:
                values[name] = (
                    tuple(part.strip() for part in text.split(",") if part.strip()) if name in _LISTS else text
                )
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InvalidManifest(
                [
                    Problem((f"{PREFIX}{str(item['loc'][0]).upper()}",), f"{item['msg']}, got {item['input']!r}")
                    for item in error.errors()
                ]
            ) from None


def describe_settings() -> str:
    """Every setting with its variable, what it is for and its default, one per line."""
    lines = []
    for name, setting in Settings.model_fields.items():
        default = setting.default
        if isinstance(default, tuple):
            default = ",".join(default)
        shown = f" (default {default})" if default not in (None, "") else ""
        lines.append(f"{PREFIX}{name.upper()}\n    {setting.description}{shown}")
    return "\n".join(lines)
