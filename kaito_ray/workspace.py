# SPDX-License-Identifier: Apache-2.0
"""The Workspace, versions v1alpha1 and v1beta1, as frozen models: a document goes in, a typed value comes out.

`parse_workspace` is the border: it reports every problem of a document at once, those of its shape (here) and those of
its meaning (workspace_rules.py). The CRD is generated from these models (crd.py), descriptions included, so what is
written here is what `kubectl explain workspace` says.
"""

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
)
from pydantic.alias_generators import to_camel

from kaito_ray.document import plain_document
from kaito_ray.errors import InvalidManifest
from kaito_ray.names import GROUP
from kaito_ray.workspace_problems import problems_of_shape
from kaito_ray.workspace_rules import is_reserved_label, problems_of_meaning

V1ALPHA1 = f"{GROUP}/v1alpha1"
V1BETA1 = f"{GROUP}/v1beta1"
# What v1alpha1 asked for when no size was named; v1beta1 has no default.
V1ALPHA1_INSTANCE_TYPE = "Standard_NC24ads_A100_v4"

Json = Any

# Lengths are bounded because the API server prices its CEL rules by the longest value a field may hold.
Name = Annotated[str, Field(max_length=253)]
Reference = Annotated[str, Field(max_length=512)]
Names = Annotated[tuple[Name, ...], Field(strict=False, max_length=32)]


class _Part(BaseModel):
    """What all parts share: frozen, camelCase in documents, unknown fields refused, no silent conversion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, alias_generator=to_camel)


class Metadata(BaseModel):
    """The object's metadata as far as kaito-ray reads it; anything else an API server puts there is left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, alias_generator=to_camel)

    name: str
    namespace: str = "default"
    uid: str = ""
    generation: int = 0
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    finalizers: tuple[str, ...] = Field((), strict=False)


class LabelRequirement(_Part):
    """One requirement on a label."""

    key: Annotated[str, Field(max_length=317)] = Field(description="The label's key.")
    operator: str = Field(description="Only In with a single value can be turned into labels of a node.", max_length=32)
    values: Annotated[tuple[Annotated[str, Field(max_length=63)], ...], Field(strict=False, max_length=16)] = Field(
        (), description="The values; exactly one."
    )


class LabelSelector(_Part):
    """Labels that select nodes; after parsing, single-value expressions are folded into `match_labels`."""

    match_labels: Annotated[dict[str, Annotated[str, Field(max_length=63)]], Field(max_length=32)] = Field(
        default_factory=dict, description="Labels with the value each must have."
    )
    match_expressions: Annotated[tuple[LabelRequirement, ...], Field(strict=False, max_length=32)] = Field(
        (), description="Requirements on labels; only operator In with a single value is supported."
    )
    _ignored_keys: tuple[str, ...] = PrivateAttr(())

    @property
    def ignored_keys(self) -> tuple[str, ...]:
        """Reserved keys that the user wrote and that select nothing."""
        return self._ignored_keys


def _folded(selector: LabelSelector) -> LabelSelector:
    """Single-value `In` expressions as labels, and without the identity labels that KAITO ignores too."""
    labels = dict(selector.match_labels)
    labels.update(
        {
            requirement.key: requirement.values[0]
            for requirement in selector.match_expressions
            if requirement.operator == "In" and len(requirement.values) == 1
        }
    )
    folded = LabelSelector.model_construct(
        match_labels={key: value for key, value in labels.items() if not is_reserved_label(key)},
        match_expressions=(),
    )
    folded._ignored_keys = tuple(key for key in labels if is_reserved_label(key))
    return folded


class Partition(_Part):
    """A slice of each GPU, on nodes that are brought along."""

    mode: Literal["mig", "accelerator"] = Field(
        description="mig: a MIG slice named by profile. accelerator: count whole accelerators of the node."
    )
    profile: str = Field("", description="MIG profile such as 1g.10gb; only with mode mig.", max_length=32)
    count: int | None = Field(None, ge=1, le=64, description="Accelerators to use; only with mode accelerator.")


class Resource(_Part):
    """The GPU nodes a Workspace runs on."""

    instance_type: str = Field(
        "",
        max_length=128,
        description="GPU size of the nodes, such as Standard_NC24ads_A100_v4. Empty: the cheapest size that fits, or"
        " the nodes that the selector finds. Cannot be changed once set.",
    )
    count: int = Field(
        1,
        ge=1,
        le=1000,
        description="Nodes to tune on; when serving, their number follows from the model. Cannot be changed.",
    )
    label_selector: Annotated[LabelSelector, AfterValidator(_folded)] = Field(
        description="Labels that the nodes carry, or get when they are made. Cannot be changed."
    )
    preferred_nodes: Annotated[tuple[Name, ...], Field(strict=False, max_length=100)] = Field(
        (), description="Names of nodes; deprecated and ignored."
    )
    partition: Partition | None = Field(None, description="A slice of each GPU. Cannot be changed.")


class PresetOptions(_Part):
    """Options of a preset."""

    image: Reference = Field(
        "",
        description="OCI image with the model's files, such as `kaito-ray pack` makes, to take them from instead of the"
        " hub.",
    )
    image_pull_secrets: Names = Field((), description="Secrets of the same namespace to pull that image.")
    model_access_secret: Name = Field(
        "", description="Secret of the same namespace whose key HF_TOKEN opens gated models."
    )


class PresetReference(_Part):
    """A model of the catalogue."""

    name: Annotated[str, Field(max_length=256)] = Field(
        min_length=1, description="Hub id such as microsoft/Phi-3-mini-4k-instruct, or an alias of the catalogue."
    )
    access_mode: Literal["public", "private"] = Field(
        "public", description="private: the model comes as presetOptions.image, which v1alpha1 then requires."
    )
    preset_options: PresetOptions = Field(default_factory=PresetOptions, description="How to reach the model.")


class DataSource(_Part):
    """Where data or an adapter comes from: exactly one of urls, image and volumeSource."""

    name: Name = Field("", description="Name of the source. Cannot be changed.")
    urls: Annotated[tuple[Annotated[str, Field(max_length=4096)], ...], Field(strict=False, max_length=256)] = Field(
        (), description="http or https addresses of the files."
    )
    volume_source: dict[str, Json] | None = Field(
        None, description="A Kubernetes VolumeSource, such as persistentVolumeClaim or hostPath."
    )
    image: Reference = Field("", description="OCI image that holds the files under /data.")
    image_pull_secrets: Names = Field((), description="Secrets of the same namespace to pull the image.")


class AdapterSource(DataSource):
    """Where an adapter comes from: exactly one of image, urls, volumeSource and workspace."""

    name: Name = Field(min_length=1, description="Name of the adapter; requests choose it as their model.")
    workspace: Name = Field(
        "", description="A tuning Workspace of the same namespace; its newest adapter is taken, and taken again."
    )


class Adapter(_Part):
    """A LoRA adapter, loaded and unloaded while the model serves."""

    source: AdapterSource = Field(description="Where the adapter comes from, and its name.")
    strength: str | None = Field(
        None,
        max_length=32,
        description='How strongly the adapter acts, a number between "0" and "1" in quotes; "1.0" changes nothing.',
    )


class AutoscalingBounds(_Part):
    """How many copies of the model serve."""

    min_replicas: int = Field(1, ge=0, le=1000, description="Fewest copies of the model.")
    max_replicas: int = Field(ge=1, le=1000, description="Most copies of the model.")
    target_ongoing_requests: int | None = Field(
        None, ge=1, le=100000, description="Requests at once that one copy should see; by default found from the model."
    )


class Inference(_Part):
    """A model to serve: a preset or a pod template."""

    preset: PresetReference | None = Field(None, description="A model of the catalogue. Cannot be changed.")
    template: dict[str, Json] | None = Field(None, description="A PodTemplateSpec of one's own instead of a preset.")
    config: Name = Field("", description="ConfigMap of the same namespace with the key inference_config.yaml.")
    adapters: Annotated[tuple[Adapter, ...], Field(strict=False, max_length=10)] = Field(
        (), description="LoRA adapters; can be changed while the model serves."
    )
    autoscaling: AutoscalingBounds | None = Field(None, description="Bounds for the number of copies of the model.")


class DataDestination(_Part):
    """Where the tuned adapter goes: an image or a volume."""

    volume_source: dict[str, Json] | None = Field(None, description="A Kubernetes VolumeSource to write to.")
    image: Reference = Field("", description="OCI image to push the adapter as.")
    image_push_secret: Name = Field("", description="Secret of the same namespace to push the image with.")


def _lowered(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


class Tuning(_Part):
    """A model to fine-tune."""

    preset: PresetReference = Field(description="The model to tune. Cannot be changed.")
    method: Annotated[Literal["lora", "qlora", "dpo"], BeforeValidator(_lowered)] = Field(
        description="lora, qlora, or dpo for preference pairs, in any case. Cannot be changed."
    )
    config: Name = Field("", description="ConfigMap of the same namespace with the key training_config.yaml.")
    input: DataSource = Field(description="The data to tune on.")
    output: DataDestination = Field(description="Where the adapter goes.")


class Workspace(_Part):
    """A model that is served, or tuned, on GPU nodes of its own."""

    api_version: Literal["kaito.sh/v1beta1", "kaito.sh/v1alpha1"]
    kind: Literal["Workspace"] = "Workspace"
    metadata: Metadata
    resource: Resource = Field(description="The GPU nodes.")
    inference: Inference | None = Field(None, description="A model to serve; instead of tuning.")
    tuning: Tuning | None = Field(None, description="A model to fine-tune; instead of inference.")
    status: dict[str, Json] = Field(default_factory=dict, description="What was observed; written by the operator.")


def parse_workspace(document: Mapping[str, Json], *, allow_private_urls: Collection[str] = ()) -> Workspace:
    """Read one document of kind Workspace; raise InvalidManifest with all its problems.

    Explicit nulls count as absent, as they do for the API server. `allow_private_urls` holds hosts and networks
    that URLs may name although they are private (Settings.allow_private_urls).
    """
    plain, problems = plain_document(document)
    if plain.get("apiVersion") == V1ALPHA1 and isinstance(plain.get("resource"), dict):
        plain["resource"].setdefault("instanceType", V1ALPHA1_INSTANCE_TYPE)
    problems += problems_of_meaning(plain, allow_private_urls)
    try:
        workspace = Workspace.model_validate(plain)
    except ValidationError as error:
        problems = problems_of_shape(error, Workspace) + problems
    if problems:
        raise InvalidManifest(list(dict.fromkeys(problems)))
    return workspace
