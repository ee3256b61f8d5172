# SPDX-License-Identifier: Apache-2.0
"""The options of TRL, peft and bitsandbytes as data, so that a training configuration can be judged without them.

training_options.yaml is written from the installed libraries by tests/e2e/test_training_options.py. Used by
training_config.py in the planner, the operator and the admission webhook, where none of them is installed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union

from pydantic import BaseModel, ConfigDict, create_model

from kaito_ray.catalogue_files import read_facts

OPTIONS_FILE = Path(__file__).with_name("training_options.yaml")
_TYPES: Mapping[str, Any] = {
    "bool": bool, "int": int, "float": float, "text": str, "list": list[Any], "map": dict[str, Any],
}  # fmt: skip
_WORDS = {
    "bool": "true or false", "int": "a whole number", "float": "a number", "text": "text", "list": "a list",
    "map": "a mapping",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Option:
    """One option: the kinds of values it takes, and for text, alone or in a list, the words it is limited to."""

    kinds: tuple[str, ...]
    choices: tuple[str, ...] = ()

    @property
    def written(self) -> str:
        """As it stands in the data file: `int`, `list | text` or `text [cosine, linear]`."""
        return " | ".join(self.kinds) + (f" [{', '.join(self.choices)}]" if self.choices else "")

    @property
    def expected(self) -> str:
        """What it takes, for messages."""
        if self.choices:
            return f"one {'or several ' if 'list' in self.kinds else ''}of {', '.join(self.choices)}"
        return " or ".join(_WORDS[kind] for kind in self.kinds)

    @property
    def type(self) -> Any:
        """The pydantic type of its values; null stands for the library's default."""
        words: Any = Literal[self.choices] if self.choices else None
        limited: Mapping[str, Any] = {"text": words, "list": list[words]} if words else {}
        return Union[(*(limited.get(kind, _TYPES[kind]) for kind in self.kinds), None)]


@cache
def options(*sections: str) -> Mapping[str, Option]:
    """Every option of these sections of the file together, such as TrainingArguments and DPOConfig."""
    found = {}
    for section in sections:
        for name, written in read_facts(OPTIONS_FILE)[section].items():
            kinds, _, choices = written.partition(" [")
            words = tuple(choices.removesuffix("]").split(", ")) if choices else ()
            found[name] = Option(tuple(kinds.split(" | ")), words)
    return found


@cache
def section_model(*sections: str) -> type[BaseModel]:
    """The options as a model: values become what the libraries take, `1e-4` a number although YAML calls it text."""
    fields: dict[str, Any] = {name: (option.type, None) for name, option in options(*sections).items()}
    return create_model(sections[-1], __config__=ConfigDict(extra="forbid", frozen=True), **fields)
