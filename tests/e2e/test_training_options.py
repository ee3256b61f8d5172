# SPDX-License-Identifier: Apache-2.0
"""What kaito-ray knows of the options of TRL, peft and bitsandbytes without importing them, against those installed.

python tests/e2e/test_training_options.py      writes kaito_ray/training_options.yaml anew
"""

import dataclasses
import enum
import inspect
import re
import types
import typing
from functools import cache
from importlib.metadata import version
from typing import Any

import pytest

from kaito_ray.training_options import OPTIONS_FILE, Option, options

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120), pytest.mark.filterwarnings("default")]

_KINDS = {bool: "bool", int: "int", float: "float", str: "text", list: "list", dict: "map"}
# BitsAndBytesConfig has no annotations; what its docstring says.
_QUANTIZATION = {
    "llm_int8_threshold": Option(("float",)),
    "llm_int8_skip_modules": Option(("list",)),
    "bnb_4bit_compute_dtype": Option(("text",), ("bfloat16", "float16", "float32")),
    "bnb_4bit_quant_type": Option(("text",), ("fp4", "nf4")),
    "bnb_4bit_quant_storage": Option(("text",)),
}
# Options of DPOConfig whose words stand in their help alone, and how they stand there. One loss may be given as text.
_WORDS_IN_HELP = {"loss_type": (("list", "text"), r"`'(\w+)'`"), "f_divergence_type": (("text",), r"`(\w+)`[ ,.]")}


@cache
def installed() -> dict[str, dict[str, Option]]:
    """By section of the file; TrainingArguments are what SFTConfig and DPOConfig have in common."""
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig
    from trl import DPOConfig, SFTConfig

    quantization = [name for name in inspect.signature(BitsAndBytesConfig).parameters if name != "kwargs"]
    answers = {field.name: _option(SFTConfig, field) for field in dataclasses.fields(SFTConfig)}
    pairs = {field.name: _option(DPOConfig, field) for field in dataclasses.fields(DPOConfig)}
    for name, (kinds, pattern) in _WORDS_IN_HELP.items():
        words = re.findall(pattern, DPOConfig.__dataclass_fields__[name].metadata["help"])
        pairs[name] = Option(kinds, tuple(sorted(set(words))))
    both = {name: option for name, option in answers.items() if pairs.get(name) == option}
    return {
        "QuantizationConfig": {name: _QUANTIZATION.get(name, Option(("bool",))) for name in quantization},
        "LoraConfig": {field.name: _option(LoraConfig, field) for field in dataclasses.fields(LoraConfig)},
        "TrainingArguments": both,
        "SFTConfig": {name: option for name, option in answers.items() if name not in both},
        "DPOConfig": {name: option for name, option in pairs.items() if name not in both},
    }


def _option(owner: Any, field: Any) -> Option:
    annotation = typing.get_type_hints(owner).get(field.name, field.type)
    kinds: list[str] = []
    choices: list[str] = list(field.metadata.get("choices", ()))
    for kind in _alternatives(annotation):
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            choices += [str(member.value) for member in kind]
            kinds.append("text")
        elif typing.get_origin(kind) is typing.Literal:
            choices += [value for value in typing.get_args(kind) if isinstance(value, str) and "[" not in value]
            kinds.append("text")
        else:
            kinds.append(_KINDS.get(typing.get_origin(kind) or kind, "map"))
    if field.name == "init_lora_weights":
        choices = []
    return Option(tuple(sorted(set(kinds))), tuple(sorted(set(choices))))


def _alternatives(annotation: Any) -> list[Any]:
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        parts = [part for part in typing.get_args(annotation) if part is not type(None)]
        # An enum's own name as text stands beside it.
        enums = [part for part in parts if isinstance(part, type) and issubclass(part, enum.Enum)]
        return enums or parts
    return [annotation]


def text() -> str:
    libraries = ", ".join(f"{name} {version(name)}" for name in ("trl", "transformers", "peft", "bitsandbytes"))
    lines = [
        "# SPDX-License-Identifier: Apache-2.0",
        f"# The options of {libraries}, by section of KAITO's training configuration;",
        "# SFTConfig and DPOConfig are what TrainingArguments has besides for the methods lora and qlora, and for dpo.",
        "# Written by tests/e2e/test_training_options.py.",
    ]
    for section, known in installed().items():
        lines += [f"{section}:", *(f"  {name}: {option.written}" for name, option in sorted(known.items()))]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("section", ["QuantizationConfig", "LoraConfig", "TrainingArguments", "SFTConfig", "DPOConfig"])
def test_the_file_knows_every_option_of_the_installed_libraries(section: str) -> None:
    assert dict(options(section)) == installed()[section]


if __name__ == "__main__":
    OPTIONS_FILE.write_text(text())
