# SPDX-License-Identifier: Apache-2.0
"""What vLLM takes, as data: the flags of its server with the kind of their values, and the names of its model classes.

vllm_options.yaml and vllm_architectures.txt are written from the installed vLLM by tests/e2e/test_vllm_facts.py, so
that a flag or a model can be judged where vLLM is not installed: in the admission webhook, the operator and `kaito-ray
plan`. Used by inference_config.py and hub.py.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from kaito_ray.catalogue_files import read_facts

OPTIONS_FILE = Path(__file__).with_name("vllm_options.yaml")
ARCHITECTURES_FILE = Path(__file__).with_name("vllm_architectures.txt")
_TRUE, _FALSE = {"true", "yes", "on", "1", ""}, {"false", "no", "off", "0"}
# vLLM's human_readable_int: 1k is 1000, 1K is 1024.
_SUFFIXES = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}


@dataclass(frozen=True, slots=True)
class Option:
    """One flag: `bool` has a `no-` form, `switch` has none, `tokens` is a number that may end in k or K."""

    kind: str
    choices: tuple[str, ...] = ()

    @property
    def written(self) -> str:
        """As it stands in the data file: `int` or `text [auto, bfloat16]`."""
        return f"{self.kind} [{', '.join(self.choices)}]" if self.choices else self.kind

    def read(self, value: Any) -> Any:
        """A value of a ConfigMap as the engine takes it; raises ValueError with what is allowed."""
        if self.kind in ("bool", "switch"):
            return self._flag(value)
        if isinstance(value, Mapping | list):
            if self.kind not in ("json", "list", "text"):
                raise ValueError(f"must be {self._expected()}")
            return value
        text = str(value).strip()
        if self.choices and text not in self.choices:
            raise ValueError(f"must be one of {', '.join(self.choices)}")
        if self.kind == "list":
            return text.split()
        if self.kind == "tokens":
            return self._tokens(text)
        if self.kind == "json":
            return self._json(text)
        if self.kind in ("int", "float"):
            try:
                return int(text) if self.kind == "int" else float(text)
            except ValueError:
                raise ValueError(f"must be {self._expected()}") from None
        return text

    def _flag(self, value: Any) -> bool:
        text = "" if value is None else str(value).strip().lower()
        if text in _TRUE:
            return True
        if text in _FALSE:
            return False
        raise ValueError("must be true or false")

    def _tokens(self, text: str) -> int | str:
        if text in ("auto", "-1"):
            return "auto"
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgG]?)", text)
        if match is None:
            raise ValueError(f"must be {self._expected()}")
        return int(float(match[1]) * _SUFFIXES.get(match[2], 1))

    def _json(self, text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError:
            raise ValueError(f"must be {self._expected()}") from None

    def _expected(self) -> str:
        return {
            "int": "a whole number",
            "float": "a number",
            "tokens": "a whole number, such as 8192 or 8k",
            "json": "JSON",
            "list": "a list",
        }.get(self.kind, "text")


@cache
def options() -> Mapping[str, Option]:
    """Every flag of vLLM's server, without dashes in front."""
    found = {}
    for name, written in read_facts(OPTIONS_FILE).items():
        kind, _, choices = written.partition(" ")
        found[name] = Option(kind, tuple(choices.strip("[]").split(", ")) if choices else ())
    return found


@cache
def architectures() -> frozenset[str]:
    """Names of the model classes vLLM has, as they stand in `architectures` of a model's config.json."""
    lines = ARCHITECTURES_FILE.read_text(encoding="utf-8").splitlines()
    return frozenset(line for line in lines if line and not line.startswith("#"))
