# SPDX-License-Identifier: Apache-2.0
"""The finished arguments of a tuning job, as they stand in the file that `python -m tune_jobs.qlora` gets.

kaito_ray/tune_arguments.py writes them from a plan; the render puts them into a ConfigMap, `kaito-ray run` into a
file. Nothing is decided here or later: what a user left open the planner has filled in, except the few figures that
follow from the data (`epochs_min_steps`).
"""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Model(_Frozen):
    """Where the weights are (see kaito_ray.plan.ModelSource; what is fetched is a `path`) and how they are loaded."""

    name: str
    """The preset's canonical name, which the adapter carries as its base."""
    kind: Literal["hub", "builtin", "path"]
    reference: str
    revision: str | None = None
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    trust_remote_code: bool = False
    attn_implementation: str | None = None
    chat_template: str | None = None
    """Jinja text in place of the tokenizer's own."""


class Data(_Frozen):
    """What is read and how; names of columns and the format are None where they are to be found out."""

    source: dict[str, Any]
    """As kaito_ray.artifacts.source.Source reads it: `{"urls": [...]}`, `{"image": ...}` or `{"path": ...}`."""
    format: str | None = None
    messages_column: str | None = None
    context_column: str | None = None
    response_column: str | None = None
    path: str = ""
    """A file or folder within the source; empty is all of it."""
    extension: str = ""
    """Only files of this kind, such as parquet; empty is every kind that can be read."""
    train_share: float = Field(1.0, gt=0, le=1)
    """The rest is held back and evaluated at the end of each epoch."""
    seed: int = 42
    """Of the split."""


class Output(_Frozen):
    """Where the adapter goes: `image`, or else `folder` itself."""

    folder: Path
    """On storage that every worker sees: checkpoints lie in it, and the adapter unless there is an image."""
    image: str = ""
    annotations: dict[str, str] = Field(default_factory=dict)


class Folders(_Frozen):
    """Places on the machine of each worker."""

    cache: Path
    """Downloads; may be shared by jobs."""
    pull_auth: Path | None = None
    """Docker configurations, one file per Secret; need not exist."""
    push_auth: Path | None = None


class Arguments(_Frozen):
    """Everything a job does."""

    name: str
    """Of the RayJob: the same for the same wish, so that what is left of an earlier attempt is found."""
    workspace: str
    namespace: str = "default"
    method: Literal["lora", "qlora", "dpo"]
    workers: int = Field(ge=1)
    use_gpu: bool
    cpus_per_worker: float = Field(1.0, gt=0)
    model: Model
    quantization: dict[str, Any] | None = None
    """Arguments of transformers' BitsAndBytesConfig; None trains on unquantised weights."""
    lora: dict[str, Any]
    """Arguments of peft's LoraConfig."""
    training: dict[str, Any]
    """Arguments of TRL's SFTConfig, or of its DPOConfig with method dpo."""
    epochs_min_steps: int | None = None
    """Repeat a small data set until this many steps are done; None where the user named epochs or steps."""
    checkpoint_s: float = Field(180.0, gt=0)
    """Seconds of training that an interruption may cost: how far checkpoints lie apart, about."""
    forgive: bool = False
    """Try again what an earlier attempt found hopeless: somebody asks for it by hand."""
    data: Data
    output: Output
    folders: Folders

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises pydantic's ValidationError naming what is wrong with the file."""
        return cls.model_validate_json(path.read_bytes())
