# SPDX-License-Identifier: Apache-2.0
"""The status of a Workspace as models: what the operator writes and the CRD describes.

KAITO's fields keep KAITO's names; the rest is ours. `Workspace.status` is a plain dict, and fields that these models do
not know are passed over, so that what another release wrote never keeps an object from being read.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel, validate_by_name=True)


class Condition(_Part):
    """One condition, as Kubernetes defines it."""

    type: str = Field(
        description="ResourceReady, InferenceReady, WorkspaceReady, AdaptersReady, JobStarted, WorkspaceSucceeded."
    )
    status: Literal["True", "False", "Unknown"] = Field(description="Whether the condition holds.")
    reason: str = Field(description="Why, in one CamelCase word.")
    message: str = Field("", description="Why, in a sentence.")
    last_transition_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})] = Field(
        description="When the status last changed."
    )
    observed_generation: int | None = Field(None, description="The generation of the Workspace that was judged.")


class Metric(_Part):
    """One measured figure."""

    description: str = Field("", description="What was measured.")
    value: str = Field("", description="The figure.")
    unit: str = Field("", description="Its unit.")
    config: dict[str, str] = Field(default_factory=dict, description="How it was measured.")


class Performance(_Part):
    """What the model does on these nodes."""

    metrics: dict[str, Metric] = Field(default_factory=dict, description="Figures by name.")


class AdapterStatus(_Part):
    """One adapter as the replicas report it."""

    name: str = Field(description="Name of the adapter; the model name in requests.")
    source: str = Field("", description="Where it came from.")
    digest: str = Field("", description="Digest of what was loaded.")
    strength: str = Field("", description="The strength applied.")
    rank: int | None = Field(None, description="Its LoRA rank.")
    size_bytes: int | None = Field(None, description="Size of its weights.")
    loaded: int | None = Field(None, description="Replicas that answer with it as it is asked for.")
    replicas: int | None = Field(None, description="Replicas there are.")
    state: str = Field("", description="Pending, Loaded (on every replica) or Failed.")
    reason: str = Field("", description="Why it is not loaded, in one CamelCase word.")
    error: str = Field("", description="Why it is not loaded, in a sentence; empty when all is well.")
    loaded_at: Annotated[str, Field(json_schema_extra={"format": "date-time"})] | None = Field(
        None, description="When the last replica loaded it."
    )


class TuningStatus(_Part):
    """How far tuning is."""

    job: str = Field("", description="Name of the RayJob.")
    state: str = Field(
        "",
        description="Judging, Refused, Unavailable, Judged or Unjudged as long as the data is judged before nodes are"
        " bought, then Preparing, Training, Waiting, Retrying, Succeeded or Failed.",
    )
    step: int | None = Field(None, description="Steps done.")
    total_steps: int | None = Field(None, description="Steps to do.")
    epoch: float | None = Field(None, description="Epochs done.")
    loss: float | None = Field(None, description="Training loss of the last steps.")
    eval_loss: float | None = Field(None, description="Loss on the rows that were held back, when there are any.")
    reward_accuracy: float | None = Field(
        None, description="With method dpo the share of pairs whose chosen side has gained more than the rejected one."
    )
    reward_margin: float | None = Field(None, description="With method dpo how much more, times beta.")
    learning_rate: float | None = Field(None, description="Learning rate of the last step.")
    tokens_per_second: float | None = Field(None, description="Tokens per second over all workers.")
    eta_seconds: int | None = Field(None, description="Seconds left, as estimated.")
    gpu_memory_gib: float | None = Field(None, description="Most memory that one GPU held so far, in GiB.")
    rows: int | None = Field(None, description="Rows of the data set.")
    attempt: int | None = Field(None, description="Which attempt this is, counting from 1.")
    resumed_from: int | None = Field(None, description="Step of the checkpoint that this attempt began with.")
    message: str = Field(
        "", description="What is waited for, what went wrong, or what the data is; empty while steps are done."
    )
    updated: Annotated[str, Field(json_schema_extra={"format": "date-time"})] | None = Field(
        None, description="When this was reported."
    )


class OutputStatus(_Part):
    """What tuning made last."""

    job: str = Field("", description="Name of the RayJob that made it.")
    image: str = Field("", description="The image that was pushed.")
    digest: str = Field("", description="Digest of the image, or of the adapter's files.")
    path: str = Field("", description="Where it lies on the volume.")
    pushed: Annotated[str, Field(json_schema_extra={"format": "date-time"})] | None = Field(
        None, description="When it was finished."
    )


_Moment = Annotated[str, Field(json_schema_extra={"format": "date-time"})]


class NodeAttempt(_Part):
    """An agent pool that failed, or that was refused."""

    number: int = Field(description="Which attempt it was, counting from 1.")
    instance_type: str = Field("", description="The size that was asked for.")
    priority: str = Field("", description="Regular or Spot.")
    zone: str = Field("", description="The availability zone that was asked for; empty is any.")
    nodes: int = Field(0, description="How many nodes were asked for.")
    reason: str = Field("", description="Why it failed, in one CamelCase word.")
    message: str = Field("", description="What the cloud said.")
    time: _Moment | None = Field(None, description="When it failed.")


class NodePoolStatus(_Part):
    """The nodes that were made for the Workspace."""

    name: str = Field("", description="Name of the agent pool or NodePool.")
    provisioner: str = Field("", description="Who made it: aks, karpenter or byo.")
    instance_type: str = Field("", description="The size in use, which is another than asked for after a fallback.")
    state: str = Field("", description="The pool's own state.")
    ready: int | None = Field(None, description="Nodes whose GPUs are allocatable.")
    wanted: int | None = Field(None, description="Nodes asked for.")
    hourly_usd: float | None = Field(None, description="List price of all nodes in US dollars per hour.")
    message: str = Field("", description="What the cloud said last.")
    priority: str = Field("", description="Regular or Spot.")
    zone: str = Field("", description="The availability zone that was asked for; empty is any.")
    attempt: int | None = Field(None, description="Number of the newest attempt to get nodes.")
    created_at: _Moment | None = Field(None, description="When the pool was asked for.")
    ready_at: _Moment | None = Field(None, description="When all its nodes last became ready.")
    lost_at: _Moment | None = Field(None, description="Since when nodes are missing that were ready before.")
    repaired_at: _Moment | None = Field(None, description="When missing nodes were last asked for again.")
    next_attempt_at: _Moment | None = Field(None, description="When the next attempt is made; nothing can be had now.")
    attempts: tuple[NodeAttempt, ...] = Field((), description="The attempts that failed since nodes were last ready.")


class TimelineEntry(_Part):
    """One step on the way, with the time it took."""

    stage: str = Field(description="The step, such as NodesReady.")
    time: Annotated[str, Field(json_schema_extra={"format": "date-time"})] = Field(description="When it was reached.")
    seconds: float | None = Field(None, description="Seconds since the step before.")
    message: str = Field("", description="More about it.")


class Status(_Part):
    """What was observed of a Workspace."""

    conditions: tuple[Condition, ...] = Field((), description="Conditions by type.")
    state: str = Field(
        "", description="Pending, then Ready or NotReady for inference; Running, Succeeded or Failed for tuning."
    )
    worker_nodes: tuple[str, ...] = Field((), description="Names of the nodes in use.")
    target_node_count: int | None = Field(None, description="Number of nodes the model needs.")
    endpoint: str = Field("", description="Address of the server inside the cluster.")
    adapters: tuple[AdapterStatus, ...] = Field((), description="The adapters, as the replicas report them.")
    adapters_loaded: str = Field("", description="How many adapters are loaded of how many, such as 2/3.")
    tuning: TuningStatus | None = Field(None, description="How far tuning is.")
    output: OutputStatus | None = Field(None, description="What tuning made.")
    node_pool: NodePoolStatus | None = Field(None, description="The nodes that were made.")
    performance: Performance | None = Field(None, description="Measured figures.")
    timeline: tuple[TimelineEntry, ...] = Field((), description="The way from applied to ready, step by step.")
