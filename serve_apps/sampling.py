# SPDX-License-Identifier: Apache-2.0
"""`generate_kwargs` of a legacy `/chat` request in; the fields of vLLM's SamplingParams out.

KAITO handed these to `transformers`' generate(). Each field is mapped to what means the same in vLLM, accepted where
it says nothing (the default of a feature vLLM lacks), or refused by name. Pure; serve_apps/legacy_chat.py calls it.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

# Features that vLLM has no equal for, with the values that leave them off.
_OFF: dict[str, tuple[object, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0,),
    "typical_p": (1,),
    "penalty_alpha": (0,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "encoder_repetition_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "renormalize_logits": (False,),
    "remove_invalid_values": (False,),
    "output_scores": (False,),
    "output_attentions": (False,),
    "output_hidden_states": (False,),
    "return_dict_in_generate": (False,),
}
# Without effect on a single beam, or on the text: any value is fine.
_IDLE = {"early_stopping", "length_penalty", "pad_token_id", "use_cache"}

_Probability = Annotated[float, Field(gt=0, le=1)]
_Token = Annotated[int, Field(ge=0)]
_Penalty = Annotated[float, Field(ge=-2, le=2)]


class GenerateKwargs(BaseModel):
    """What is mapped, with KAITO's defaults; `null` means the default."""

    model_config = ConfigDict(frozen=True, extra="allow")

    max_length: Annotated[int, Field(ge=1)] = 200
    """Counts the prompt as well as the new tokens."""
    min_length: Annotated[int, Field(ge=0)] = 0
    do_sample: bool = True
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 10
    top_p: _Probability = 1.0
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    eos_token_id: _Token | list[_Token] | None = None
    # Known to transformers or to vLLM, accepted by KAITO as extra keys.
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    min_new_tokens: Annotated[int, Field(ge=0)] | None = None
    num_return_sequences: Annotated[int, Field(ge=1, le=16)] = 1
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    stop_strings: str | list[str] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[_Token] | None = None
    bad_words: list[str] | None = None
    ignore_eos: bool = False
    seed: int | None = None
    presence_penalty: _Penalty = 0.0
    frequency_penalty: _Penalty = 0.0
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False


def unsupported(kwargs: GenerateKwargs) -> list[str]:
    """A sentence for each field that neither is mapped nor says nothing."""
    problems = []
    for name, value in (kwargs.model_extra or {}).items():
        if name in _IDLE or value is None or value in _OFF.get(name, ()):
            continue
        if name in _OFF:
            problems.append(f"generate_kwargs.{name} must be {_OFF[name][0]}, got {value!r}: vLLM has nothing like it")
        else:
            known = ", ".join(sorted({*GenerateKwargs.model_fields, *_OFF, *_IDLE}))
            problems.append(f"generate_kwargs.{name} is not known; known are {known}")
    return problems


def sampling_fields(kwargs: GenerateKwargs, *, prompt_tokens: int, context: int) -> dict[str, Any]:
    """The fields of SamplingParams for a prompt of `prompt_tokens` tokens in a model of `context` tokens.

    Raises ValueError with a sentence when no token could be generated.
    """
    room = context - prompt_tokens
    if room < 1:
        raise ValueError(f"prompt has {prompt_tokens} tokens, the model takes {context} with the answer")
    if kwargs.max_new_tokens is not None:
        max_tokens = kwargs.max_new_tokens
    else:
        max_tokens = kwargs.max_length - prompt_tokens
        if max_tokens < 1:
            raise ValueError(
                f"generate_kwargs.max_length is {kwargs.max_length} and counts the prompt, "
                f"which alone has {prompt_tokens} tokens: raise it, or set max_new_tokens"
            )
    max_tokens = min(max_tokens, room)
    min_tokens = kwargs.min_new_tokens if kwargs.min_new_tokens is not None else kwargs.min_length - prompt_tokens
    if min_tokens > max_tokens:
        raise ValueError(
            f"generate_kwargs.{'min_length' if kwargs.min_new_tokens is None else 'min_new_tokens'} asks for "
            f"{min_tokens} new tokens, more than the {max_tokens} that may be generated"
        )
    fields: dict[str, Any] = {
        "n": kwargs.num_return_sequences,
        "max_tokens": max_tokens,
        "min_tokens": max(0, min_tokens),
        "temperature": kwargs.temperature if kwargs.do_sample else 0.0,
        "top_k": kwargs.top_k,
        "top_p": kwargs.top_p,
        "min_p": kwargs.min_p,
        "repetition_penalty": kwargs.repetition_penalty,
        "presence_penalty": kwargs.presence_penalty,
        "frequency_penalty": kwargs.frequency_penalty,
        "seed": kwargs.seed,
        "stop": _strings(kwargs.stop) + _strings(kwargs.stop_strings),
        "stop_token_ids": list(kwargs.stop_token_ids or ()),
        "bad_words": list(kwargs.bad_words or ()),
        "ignore_eos": kwargs.ignore_eos,
        "skip_special_tokens": kwargs.skip_special_tokens,
        "include_stop_str_in_output": kwargs.include_stop_str_in_output,
    }
    if kwargs.eos_token_id is not None:
        # It replaces the tokenizer's own end, so that one no longer counts.
        ends = kwargs.eos_token_id if isinstance(kwargs.eos_token_id, list) else [kwargs.eos_token_id]
        fields["stop_token_ids"] += ends
        fields["ignore_eos"] = True
    return fields


def _strings(value: str | list[str] | None) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)
