# SPDX-License-Identifier: Apache-2.0
"""Workspace, preset, size and settings in; one frozen plan with every decision out.

`plan()` is pure: no clock, no environment, no IO. Renders (kaito_ray/render/) only translate a plan, the apps in
the pods (serve_apps, tune_jobs) take finished arguments and decide nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from kaito_ray import names
from kaito_ray.errors import InvalidManifest, Problem

if TYPE_CHECKING:
    from kaito_ray.preset import Preset
    from kaito_ray.settings import Settings
    from kaito_ray.sku import Sizes, Sku
    from kaito_ray.workspace import Workspace

Json = Any  # what json.dumps accepts


@dataclass(frozen=True, slots=True)
class ModelVolume:
    """The volume in which the pods have the model.

    A model is fetched into `pod` (an emptyDir), `node` (a folder of the node, whose path is `reference`, shared by all
    pods there) or `class` (a claim of its own per pod, of the StorageClass `reference`). It lies ready in `host` (a
    folder of the node), `claim` (a PersistentVolumeClaim) and `image` (a Kubernetes image volume).
    """

    kind: Literal["pod", "node", "class", "host", "claim", "image"]
    reference: str = ""

    @property
    def is_fetched_into(self) -> bool:
        """Whether a step before Ray has to bring the model."""
        return self.kind in ("pod", "node", "class")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where the weights come from.

    `hub` is an `org/model` id at `revision`; `builtin` is a model that kaito-ray makes itself (tiny-phi-3);
    `path` is a folder on the node; `image` is an OCI image with the model's files.
    """

    kind: Literal["hub", "builtin", "path", "image"]
    reference: str
    revision: str | None = None
    names: tuple[str, ...] = ()
    """What the model is called; an image that says it holds another one is refused."""
    architecture: str = ""
    """What config.json must say the model is; anything else is refused before the engine starts."""
    pull_secrets: tuple[str, ...] = ()
    """Secrets with logins for the image's registry."""
    form: Literal["engine", "transformers"] = "engine"
    """Who reads the files; some repositories have the weights twice."""
    volume: ModelVolume | None = None
    """None where no pod has it: a model that is made on the spot, and whatever runs on this machine."""

    @property
    def link(self) -> str:
        """The path below a cache under which the model stands whatever content its source has now."""
        return names.model_link(self.kind, self.reference, self.revision or "", self.form)

    @property
    def folder(self) -> str | None:
        """Where the pods find the model; None without a volume."""
        if self.volume is None:
            return None
        if self.volume.is_fetched_into:
            return f"{names.MODELS_DIR}/{self.link}"
        if self.volume.kind == "host":
            return self.volume.reference
        if self.volume.kind == "claim":
            return f"{names.MODELS_DIR}/{self.volume.reference.partition('/')[2]}".rstrip("/")
        return names.MODELS_DIR


@dataclass(frozen=True, slots=True)
class AdapterPlan:
    """One LoRA adapter as the replicas get it through `user_config`."""

    name: str
    source: Mapping[str, Json]
    strength: float = 1.0
    waits_for: str = ""
    """Why there is nothing to load yet, in a sentence; empty when there is."""


@dataclass(frozen=True, slots=True)
class Autoscaling:
    """Replica bounds and the number of ongoing requests one replica should see."""

    min_replicas: int
    max_replicas: int
    target_ongoing_requests: int


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """Where each GiB of one GPU goes; the parts add up to at most `usable_gib`."""

    gpu_gib: float
    usable_gib: float
    weights_gib: float
    kv_cache_gib: float
    activations_gib: float
    lora_gib: float
    overhead_gib: float


@dataclass(frozen=True, slots=True)
class PodSize:
    """What one Ray pod asks of its node."""

    cpus: float
    memory_gib: float
    gpus: int = 0
    gpu_resource: str = "nvidia.com/gpu"


@dataclass(frozen=True, slots=True)
class Placement:
    """How the engine of one replica sits on Ray: options of the Serve deployment.

    One GPU uses executor `uni`, several on one node `mp`, several nodes `ray` with a bundle per GPU.
    `bundles` is empty unless the executor is `ray`.
    """

    executor: Literal["uni", "mp", "ray"]
    actor_cpus: float
    actor_gpus: float
    bundles: tuple[Mapping[str, float], ...] = ()
    strategy: Literal["PACK", "STRICT_PACK"] = "PACK"


@dataclass(frozen=True, slots=True)
class Target:
    """What both kinds of plan share: whose it is, on which nodes, at what price."""

    name: str
    namespace: str
    uid: str
    model: str
    """Canonical name of the preset, such as `microsoft/Phi-3-mini-4k-instruct`."""
    source: ModelSource
    instance_type: str
    node_labels: Mapping[str, str]
    """The user's `resource.labelSelector.matchLabels`, which nodes must carry."""
    nodes: int
    gpus_per_node: int
    head: PodSize
    worker: PodSize
    weights_gib: float
    hourly_usd: float | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ServePlan(Target):
    """Everything needed to serve: the render makes a RayService of it, the local run a Serve config."""

    served_model_name: str
    tensor_parallel: int
    pipeline_parallel: int
    replicas: int
    nodes_per_replica: int
    """More than one only when a copy of the model spans nodes (numOfHosts of the worker group)."""
    max_model_len: int
    kv_bytes_per_token: int
    dtype: str
    budget: MemoryBudget
    placement: Placement
    engine: Mapping[str, Json]
    """vLLM's own command-line flags without dashes in front (`max-model-len`), finished; True is a bare flag."""
    max_ongoing_requests: int
    max_queued_requests: int
    """Above this many requests waiting in the engine the server answers 429, as KAITO does."""
    adapters: tuple[AdapterPlan, ...] = ()
    autoscaling: Autoscaling | None = None
    hf_token_secret: str | None = None
    api_keys_secret: str | None = None
    pull_secrets: tuple[str, ...] = ()
    load_balancer: bool = False
    local_weights_host_path: str | None = None
    volumes: tuple[Mapping[str, Any], ...] = ()
    """VolumeSources of adapters, by adapter name: `{"name": ..., "source": {...}, "mount": ...}`."""
    default_adapter: str | None = None
    """The adapter that `/chat` answers with when a request names no model; None is the base model."""
    follow_tags: bool = False
    """Replicas look up the tags of adapters now and then; otherwise they keep the digest that was found first."""


@dataclass(frozen=True, slots=True)
class TunePlan(Target):
    """Everything needed to tune: the render makes a RayJob of it, the local run a Ray Train run."""

    method: Literal["lora", "qlora", "dpo"]
    workers: int
    arguments: Mapping[str, Json] = field(default_factory=dict)
    """Finished arguments of tune_jobs.qlora."""
    input: Mapping[str, Json] = field(default_factory=dict)
    output: Mapping[str, Json] = field(default_factory=dict)
    config: str | None = None
    hf_token_secret: str | None = None
    config_digest: str = ""
    """Stands for what the ConfigMap asks for; empty when it asks for nothing."""
    seconds_per_token: float | None = None
    """Of training, about, over all workers; None for hardware whose speed is not known."""


Plan = ServePlan | TunePlan


def plan(
    workspace: "Workspace",
    preset: "Preset",
    sku: "Sku | None",
    settings: "Settings",
    *,
    config: Mapping[str, str] | None = None,
    sizes: "Sizes | None" = None,
    context: int | None = None,
) -> Plan:
    """Decide everything about a Workspace; raises DoesNotFit or InvalidManifest with the reason.

    Without a `sku` the cheapest of `sizes` that fits is taken; `sizes` also lets the reason name one that would do.
    `config` is the data of the ConfigMap that `inference.config` or `tuning.config` names, None when there is none.
    `context` asks for so many tokens, whatever the ConfigMap says.
    """
    # The planners import the values above, so they cannot be imported before those exist.
    from kaito_ray.inference_config import parse_inference_config
    from kaito_ray.plan_serve import plan_serve
    from kaito_ray.plan_tune import plan_tune
    from kaito_ray.training_config import parse_training_config

    if workspace.tuning is not None:
        return plan_tune(
            workspace,
            workspace.tuning,
            preset,
            sku,
            settings,
            config=parse_training_config(config, workspace.tuning.method),
            sizes=sizes,
        )
    if workspace.inference is None:
        raise InvalidManifest(
            [Problem(("inference",), "there is nothing to plan: neither inference nor tuning is set")]
        )
    return plan_serve(
        workspace,
        workspace.inference,
        preset,
        sku,
        settings,
        config=parse_inference_config(config),
        sizes=sizes,
        context=context,
    )
