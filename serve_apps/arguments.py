# SPDX-License-Identifier: Apache-2.0
"""The finished arguments of the Serve application, as they stand in `serveConfigV2`.

`Arguments` is `applications[].args` and fixed for the life of a replica; `UserConfig` is
`deployments[].user_config` and may change while the model serves. kaito_ray/serve_config.py writes both from a plan.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Model(_Frozen):
    """Where the weights are; see kaito_ray.plan.ModelSource. What is fetched was fetched before and is a `path`."""

    kind: Literal["hub", "builtin", "path"]
    reference: str
    revision: str | None = None
    names: tuple[str, ...] = ()
    """What the model is called."""
    architecture: str = ""
    """What the model in a folder must be; empty takes any."""


class Arguments(_Frozen):
    """What a replica is built from."""

    model: Model
    served_model_name: str
    """What clients call the base model; adapters are chosen by their own names."""
    engine: dict[str, Any] = Field(default_factory=dict)
    """vLLM's flags without the dashes: `{"max-model-len": 2048, "enable-lora": True}`.

    True is a bare flag, False its `no-` form, a list several values, a mapping JSON text.
    """
    api_keys_dir: str | None = None
    """A mounted Secret: each file holds one key. None serves without keys, as KAITO does."""
    registry_auth_dir: str | None = None
    """Docker configurations for adapters, `<Secret>.json` each; None is where pods have them mounted."""


class Adapter(_Frozen):
    """One LoRA adapter that clients choose with `model: <name>`."""

    name: str
    source: dict[str, Any]
    """Where it comes from, as kaito_ray/artifacts/source.py reads it: `{"path": "/mnt/adapters/legal"}`."""
    strength: Annotated[float, Field(ge=0, le=1)] = 1.0


class UserConfig(_Frozen):
    """What may change without a restart."""

    adapters: tuple[Adapter, ...] = ()
    default_adapter: str | None = None
    """The one of them that `/chat` answers with when a request names no model; None is the base model."""
    follow_tags_s: Annotated[float, Field(gt=0)] | None = None
    """How often the tags of adapters' images are looked up again; None keeps what was found first."""
    max_queued_requests: int | None = None
    """Requests that may wait for a place in the engine before others get 429; None is the engine's own width."""
