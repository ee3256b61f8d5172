# SPDX-License-Identifier: Apache-2.0
"""The catalogue: the name of a model in, the facts about it out.

One file per model under presets/; a fact is what the model's own files say, never a decision. Decisions are made
in sizing.py and the planners from these facts.
"""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kaito_ray.catalogue_files import presets_folder, read_facts
from kaito_ray.errors import InvalidManifest, Problem, UnknownPreset
from kaito_ray.plan import ModelSource


class CacheLayers(BaseModel):
    """Layers that keep the same kind of memory of the past.

    `full` keeps every token, `sliding` the last `window`, `compressed` one entry for `ratio` tokens beside a window,
    `recurrent` a state of `state_bytes` per sequence whatever its length. `none` keeps nothing: it has no attention, or
    reads another layer's. `kv_heads` and `head_dim` where they differ from the model's own, `entry_bytes` where an
    entry is not made of heads.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: int = Field(ge=1)
    kind: Literal["full", "sliding", "compressed", "recurrent", "none"]
    window: int | None = None
    ratio: int | None = None
    entry_bytes: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    state_bytes: int | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.kind in ("sliding", "compressed")) != (self.window is not None):
            raise ValueError("window belongs to sliding and compressed layers, and they need it")
        if (self.kind == "compressed") != (self.ratio is not None):
            raise ValueError("ratio belongs to compressed layers, and they need it")
        if (self.kind == "recurrent") != (self.state_bytes is not None):
            raise ValueError("state_bytes belongs to recurrent layers, and they need it")
        return self


class Preset(BaseModel):
    """What is known about one model. Weights in GiB as the hub stores them, lengths in tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    aliases: tuple[str, ...] = ()
    license: str
    image: str = ""
    """Name and tag under which KAITO publishes its files in mcr.microsoft.com/aks/kaito; empty where it does not."""
    gated: bool = False
    base_model: str = ""
    source: Literal["hub", "builtin"] = "hub"
    revision: str | None = None
    architecture: str
    weights_gib: float = Field(gt=0)
    loaded_gib: float | None = None
    """What the engine loads of the weights, where the hub stores more than one form of them."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """What the weights are stored in, or what a quantised model computes in."""
    quantization: str | None = None
    quantization_bits: int | None = None
    context: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    intermediate_size: int | None = None
    vocab_size: int = Field(131072, gt=0)
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    attention_head_dim: int | None = Field(None, alias="head_dim")
    kv_lora_rank: int | None = None
    qk_rope_head_dim: int | None = None
    mixture_of_experts: bool = False
    multimodal: bool = False
    cache: tuple[CacheLayers, ...] = ()
    """The layers as they are; empty when every layer keeps every token."""
    float16: bool = True
    """False for models that vLLM refuses in float16 for their numerical range."""
    min_compute_capability: float = 0.0
    """Where its attention runs on no earlier GPU, whatever the weights are."""
    pipeline: bool = True
    """Whether vLLM's class can be spread over nodes, a part of the layers on each."""
    lora: bool = True
    """Whether adapters are served: vLLM's class takes them, and a slot costs no copy of every expert."""
    tuning: bool = False
    trust_remote_code: bool = False
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    chat_template: str | None = None
    """Only for models whose tokenizer has none."""
    engine: dict[str, Any] = Field(default_factory=dict)
    """Flags of vLLM that this model needs, as they are spelled there without dashes in front."""
    notes: tuple[str, ...] = ()

    @property
    def head_dim(self) -> int:
        """Elements of one head; hidden size over heads unless the model says otherwise."""
        return self.attention_head_dim or self.hidden_size // self.heads

    @property
    def engine_gib(self) -> float:
        """The weights an engine holds, in the form they are stored in."""
        return self.loaded_gib or self.weights_gib

    @property
    def mla(self) -> bool:
        """Whether it keeps one compressed latent per token (multi-head latent attention) instead of heads."""
        return self.kv_lora_rank is not None

    @property
    def attention(self) -> Literal["MLA", "MHA", "MQA", "GQA"]:
        """The kind of attention, by how many heads share a key."""
        if self.mla:
            return "MLA"
        return "MHA" if self.kv_heads == self.heads else "MQA" if self.kv_heads == 1 else "GQA"

    @property
    def kv_elements(self) -> int:
        """Numbers kept per token and layer: the latent with its rotary part, or a key and a value per head."""
        if self.kv_lora_rank is not None:
            return self.kv_lora_rank + (self.qk_rope_head_dim or 0)
        return 2 * self.kv_heads * self.head_dim

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV cache per token if every layer kept every token in 16 bits; the published figure."""
        return self.layers * self.kv_elements * 2

    @property
    def served_name(self) -> str:
        """What clients call it: the last part of its name in lower case, as KAITO does."""
        return self.name.rsplit("/", 1)[-1].lower()

    @property
    def model_source(self) -> ModelSource:
        """Where its weights come from."""
        return ModelSource(self.source, self.name, self.revision)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.cache and sum(group.layers for group in self.cache) != self.layers:
            raise ValueError(f"cache names {sum(group.layers for group in self.cache)} layers of {self.layers}")
        return self


class Catalogue:
    """All presets by name; `get` takes the hub id or an alias."""

    def __init__(self, presets: tuple[Preset, ...]) -> None:
        self._presets = tuple(sorted(presets, key=lambda preset: preset.name.lower()))
        self._index = {name.lower(): preset for preset in presets for name in (preset.name, *preset.aliases)}

    def __iter__(self) -> Iterator[Preset]:
        return iter(self._presets)

    def __len__(self) -> int:
        return len(self._presets)

    def get(self, name: str) -> Preset:
        """The preset of that name or alias, in any case; raises UnknownPreset with the nearest names."""
        preset = self._index.get(name.lower())
        if preset is None:
            near = difflib.get_close_matches(name.lower(), self._index, n=3, cutoff=0.6)
            hint = f"; did you mean {', '.join(near)}?" if near else "; `kaito-ray presets` lists them"
            raise UnknownPreset(f'no preset is called "{name}"{hint}')
        return preset


def load_catalogue(folder: Path | None = None) -> Catalogue:
    """Read every preset; raises InvalidManifest naming the file that is not one."""
    root = presets_folder(folder)
    problems: list[Problem] = []
    presets: list[Preset] = []
    for file in sorted(root.glob("*/*.yaml")):
        try:
            presets.append(Preset.model_validate(read_facts(file)))
        except ValidationError as error:
            problems += [Problem((str(file), *item["loc"]), item["msg"]) for item in error.errors()]
    if problems:
        raise InvalidManifest(problems)
    return Catalogue(tuple(presets))
