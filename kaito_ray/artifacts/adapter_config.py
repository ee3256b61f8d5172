# SPDX-License-Identifier: Apache-2.0
"""adapter_config.json as peft writes it, and which of its features can be served. Called by adapter.py.

What vLLM supports is in its vllm/lora/peft_helper.py.
"""

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kaito_ray.artifacts.reason import Reason
from kaito_ray.errors import AdapterRefused

CONFIG = "adapter_config.json"
_CONFIG_BYTES = 1024 * 1024
# Starts of training that leave the base model as it is; the others mean nothing without the base they changed.
_PLAIN_INITS = {"gaussian", "eva", "orthogonal", "mica", "lora_ga"}
# Patterns become regular expressions inside the engine, where one with nested repetition never ends.
_PATTERN_KEY = re.compile(r"[\w.^$\\-]+")


class AdapterConfig(BaseModel):
    """The fields of adapter_config.json that decide whether and how an adapter can be used."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    peft_type: str = "LORA"
    r: Annotated[int, Field(ge=1)]
    lora_alpha: float
    target_modules: list[str] | str | None = None
    target_parameters: list[str] | None = None
    base_model_name_or_path: str | None = None
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] | None = None
    alpha_pattern: dict[str, float] | None = None
    use_rslora: bool = False
    modules_to_save: list[str] | None = None
    use_dora: bool = False
    bias: str = "none"
    lora_bias: bool = False
    init_lora_weights: bool | str | None = True
    alora_invocation_tokens: list[int] | None = None
    layer_replication: list[Any] | None = None
    use_bdlora: Any = None
    use_qalora: bool = False

    @property
    def ranks(self) -> set[int]:
        """Every rank a module may have."""
        return {self.r, *(self.rank_pattern or {}).values()}


def read_config(path: Path) -> AdapterConfig:
    """Read adapter_config.json; raises AdapterRefused naming the field, the value seen and what is allowed."""
    if path.stat().st_size > _CONFIG_BYTES:
        raise AdapterRefused(f"{path.name} is larger than 1 MiB", reason=Reason.INVALID_CONFIG)
    try:
        return AdapterConfig.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, one['loc'])) or 'the file'}: {one['msg'].lower()}, got {str(one['input'])[:60]!r}"
            for one in error.errors()[:5]
        ]
        raise AdapterRefused(f"{path.name}: {'; '.join(problems)}", reason=Reason.INVALID_CONFIG) from None


def check_features(config: AdapterConfig, max_rank: int) -> None:
    """Refuse what cannot be served, with the value seen and the value allowed."""
    if config.peft_type.upper() != "LORA":
        raise unsupported(f"is of the type {config.peft_type}; LORA can be served")
    if not config.target_modules and not config.target_parameters:
        raise AdapterRefused(
            f"{CONFIG}: target_modules is empty; it must name the layers the adapter changes",
            reason=Reason.INVALID_CONFIG,
        )
    if max(config.ranks) > max_rank:
        raise AdapterRefused(
            f"its rank is {max(config.ranks)}, this server takes up to {max_rank}", reason=Reason.RANK_TOO_HIGH
        )
    if config.modules_to_save:
        raise unsupported(f"replaces whole layers (modules_to_save: {', '.join(config.modules_to_save[:5])})")
    for wrong, sentence in (
        (config.use_dora, "uses DoRA (use_dora)"),
        (config.bias != "none" or config.lora_bias, f"trains biases (bias: {config.bias})"),
        (config.alora_invocation_tokens, "is an activated LoRA (alora_invocation_tokens)"),
        (config.layer_replication, "replicates layers (layer_replication)"),
        (config.use_bdlora, "is block-diagonal (use_bdlora)"),
        (config.use_qalora, "is a QALoRA (use_qalora)"),
    ):
        if wrong:
            raise unsupported(sentence)
    init = config.init_lora_weights
    if isinstance(init, str) and init.lower() not in _PLAIN_INITS:
        raise unsupported(f"starts from a changed base model (init_lora_weights: {init}); convert it to plain LoRA")
    for key in (*(config.rank_pattern or ()), *(config.alpha_pattern or ())):
        if not _PATTERN_KEY.fullmatch(key):
            raise unsupported(f"has the pattern {key[:60]!r}; patterns must be names of modules")


def unsupported(sentence: str) -> AdapterRefused:
    """The error for a feature that peft has and the engine does not."""
    return AdapterRefused(f"{sentence}, which vLLM does not support", reason=Reason.UNSUPPORTED_FEATURE)
