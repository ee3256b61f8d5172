# SPDX-License-Identifier: Apache-2.0
"""KAITO's training ConfigMap: the text of `training_config.yaml` in, options for transformers, peft and TRL out.

    training_config:
      ModelConfig: {chat_template: ...}                    from_pretrained
      QuantizationConfig: {load_in_4bit: true}             transformers.BitsAndBytesConfig
      LoraConfig: {r: 16, lora_alpha: 32}                  peft.LoraConfig
      TrainingArguments: {num_train_epochs: 3}             trl.SFTConfig, with method dpo trl.DPOConfig
      DatasetConfig: {context_column: q, response_column: a}
      DataCollator: {}                                     TRL has its own

Called by plan_tune.py, which fills in what is left open. Unknown options are refused with the nearest known name, old
names are translated with a warning, and so is said what has no effect (training_rules.py). Pure.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kaito_ray.artifacts.dataset_format import Format
from kaito_ray.document import nearest, shown
from kaito_ray.errors import InvalidManifest, Problem
from kaito_ray.training_conflict import DATA_MOUNT, conflicts
from kaito_ray.training_options import options, section_model
from kaito_ray.training_rules import IDLE, REFUSED, RENAMED, TRAINERS

KEY = "training_config.yaml"
ROOT = "training_config"
_PATH = ("tuning", "config", KEY)
_DTYPES = Literal["bfloat16", "float16", "float32", "auto"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelConfig(_Section):
    """How the model is loaded."""

    dtype: _DTYPES | None = None
    attn_implementation: str | None = None
    chat_template: str | None = None


class DatasetConfig(_Section):
    """Which part of the data is read, and how."""

    shuffle_dataset: bool | None = None
    shuffle_seed: int | None = None
    train_test_split: float | None = Field(None, gt=0, le=1)
    dataset_path: str | None = None
    dataset_extension: str | None = None
    context_column: str | None = None
    response_column: str | None = None
    messages_column: str | None = None
    format: Format | None = None
    """Ours: the format, where the columns would let one think of another."""


class DataCollator(_Section):
    """How rows become batches."""

    pad_to_multiple_of: int | None = None


_OWN: Mapping[str, type[BaseModel]] = {
    "ModelConfig": ModelConfig, "DatasetConfig": DatasetConfig, "DataCollator": DataCollator,
}  # fmt: skip
SECTIONS = ("ModelConfig", "QuantizationConfig", "LoraConfig", "TrainingArguments", "DatasetConfig", "DataCollator")


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """What a user's ConfigMap asks for; every mapping holds only what is written there."""

    model: Mapping[str, Any] = field(default_factory=dict)
    quantization: Mapping[str, Any] = field(default_factory=dict)
    lora: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """The same for files that ask for the same, however they are written; empty when nothing is asked for."""
        asked = [self.model, self.quantization, self.lora, self.training, self.data]
        text = json.dumps(asked, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest() if any(asked) else ""


def parse_training_config(data: Mapping[str, str] | None, method: str) -> TrainingConfig:
    """Read the ConfigMap's data, None when there is none; raises InvalidManifest with every problem.

    `method` is lora, qlora or dpo: options and quantisation must be its own.
    """
    if data is None:
        return TrainingConfig()
    if KEY not in data:
        raise InvalidManifest([Problem(("tuning", "config"), f"the ConfigMap has no key {KEY}")])
    problems: list[Problem] = []
    warnings: list[str] = []
    sections = _sections(data[KEY], problems)
    read = {name: _read(_rules(name, method), sections.get(name), problems, warnings) for name in SECTIONS}
    problems += (Problem((*_PATH, ROOT, *where), message) for where, message in conflicts(read, method))
    if problems:
        raise InvalidManifest(problems)
    training = read["TrainingArguments"]
    if method == "dpo" and read["LoraConfig"].get("lora_dropout") and training.get("disable_dropout", True):
        warnings.append(f"{KEY}: LoraConfig.lora_dropout has no effect with method dpo unless disable_dropout is false")
    if "pad_to_multiple_of" in read["DataCollator"]:
        training = {"pad_to_multiple_of": read["DataCollator"]["pad_to_multiple_of"], **training}
    return TrainingConfig(
        model=read["ModelConfig"],
        quantization=read["QuantizationConfig"],
        lora=read["LoraConfig"],
        training=training,
        data=_relative(read["DatasetConfig"]),
        warnings=tuple(warnings),
    )


def _sections(text: str, problems: list[Problem]) -> Mapping[str, Any]:
    """The mapping below the root, as far as it is one."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        problems.append(Problem(_PATH, f"is not YAML: {' '.join(str(error).split())}"))
        return {}
    if not isinstance(document, dict) or set(document) != {ROOT}:
        keys = ", ".join(map(str, document)) if isinstance(document, dict) else shown(document)
        problems.append(Problem(_PATH, f"must have the one key {ROOT}, got {keys or 'nothing'}"))
        return {}
    sections = document[ROOT]
    if not isinstance(sections, dict):
        if sections is not None:
            problems.append(Problem((*_PATH, ROOT), f"must be a mapping of sections, got {shown(sections)}"))
        return {}
    for name in sections:
        if name not in SECTIONS:
            message = f"is no section; there are {', '.join(SECTIONS)}"
            alike = nearest(str(name), SECTIONS)
            problems.append(Problem((*_PATH, ROOT, str(name)), message + (f"; did you mean {alike}?" if alike else "")))
    return sections


@dataclass(frozen=True, slots=True)
class _Rules:
    """What holds for one section with one method."""

    section: str
    method: str
    parts: tuple[str, ...]
    """The sections of the libraries' options that it stands for."""
    idle: Mapping[str, str]
    refused: Mapping[str, str]
    others: Mapping[str, str]
    """Options that only other methods have, with the names of those."""


def _rules(section: str, method: str) -> _Rules:
    trained = section == "TrainingArguments"
    parts = (section, TRAINERS[method]) if trained else (section,)
    others: dict[str, str] = {}
    for other, trainer in TRAINERS.items() if trained else ():
        for key in options(trainer).keys() - options(*parts).keys():
            others[key] = f"{others[key]} and {other}" if key in others else other
    idle = {key: why for part in parts for key, why in IDLE.get(part, {}).items()}
    refused = {key: why for part in parts for key, why in REFUSED.get(part, {}).items()}
    return _Rules(section, method, parts, idle, refused, others)


def _read(rules: _Rules, section: Any, problems: list[Problem], warnings: list[str]) -> dict[str, Any]:
    """One section as its libraries take it, without what is null or has no effect here."""
    path = (*_PATH, ROOT, rules.section)
    if section is None:
        return {}
    if not isinstance(section, dict):
        problems.append(Problem(path, f"must be a mapping of options, got {shown(section)}"))
        return {}
    wanted = dict(_translated(rules, section, path, problems, warnings))
    model = _OWN.get(rules.section) or section_model(*rules.parts)
    try:
        return model.model_validate(wanted).model_dump(mode="json", exclude_none=True)
    except ValidationError as error:
        problems += _problems(rules, error, path, model)
        return {}


def _translated(
    rules: _Rules, section: Mapping[Any, Any], path: tuple[str, ...], problems: list[Problem], warnings: list[str]
) -> Iterator[tuple[str, Any]]:
    name = rules.section
    for written, value in section.items():
        key = RENAMED[name].get(str(written), str(written))
        if key != written and written != "torch_dtype":  # KAITO's own template still has this one
            warnings.append(f"{KEY}: {name}.{written} is now called {key}")
            if key in section:
                problems.append(Problem((*path, str(written)), f"is the old name of {key}, which is set as well"))
        if value is None:
            continue
        if written == "group_by_length" and name == "TrainingArguments":
            warnings.append(f"{KEY}: {name}.{written} is now train_sampling_strategy: group_by_length")
            if value is True:
                yield "train_sampling_strategy", "group_by_length"
        elif key in rules.others:
            if value is not False:
                message = f"is an option of {rules.others[key]}, not of method {rules.method}"
                problems.append(Problem((*path, key), message))
        elif key in rules.refused:
            if value not in (False, "", 0):
                problems.append(Problem((*path, key), f"cannot be used: {rules.refused[key]}"))
        elif key in rules.idle:
            yield from ()
            if not _harmless(name, key, value):
                warnings.append(f"{KEY}: {name}.{key} has no effect: {rules.idle[key]}")
        else:
            yield key, value.removeprefix("torch.") if isinstance(value, str) and "dtype" in key else value


def _harmless(section: str, key: str, value: Any) -> bool:
    """Whether the value is that of KAITO's own template, which most configurations are copies of."""
    template: dict[str, dict[str, Any]] = {
        "ModelConfig": {"local_files_only": True, "device_map": "auto"},
        "TrainingArguments": {"ddp_find_unused_parameters": False, "save_strategy": "no"},
        "DataCollator": {"mlm": True},
    }
    if key == "output_dir" and section == "TrainingArguments":
        return True
    return value is False or template.get(section, {}).get(key) == value


def _problems(
    rules: _Rules, error: ValidationError, path: tuple[str, ...], model: type[BaseModel]
) -> Iterator[Problem]:
    """One problem per option, whatever number of alternatives pydantic tried."""
    name = rules.section
    seen: set[str] = set()
    for item in error.errors():
        key = str(item["loc"][0]) if item["loc"] else ""
        if key in seen:
            continue
        seen.add(key)
        where = (*path, key)
        if item["type"] == "extra_forbidden":
            legal = {*model.model_fields, *rules.idle, *RENAMED[name]} - {"load_in_4bit", "load_in_8bit"} | (
                {"load_in_4bit", "load_in_8bit"} if name == "QuantizationConfig" else set()
            )
            alike = nearest(key, legal)
            yield Problem(where, "is no option" + (f"; did you mean {alike}?" if alike else ""))
        elif name in _OWN:
            yield Problem(where, f"{item['msg'][:1].lower()}{item['msg'][1:]}, got {shown(item['input'])}")
        else:
            yield Problem(where, f"must be {options(*rules.parts)[key].expected}, got {shown(item['input'])}")


def _relative(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """KAITO's files lie in /mnt/data; here a path counts from the root of the data, wherever that is."""
    if "dataset_path" not in data:
        return data
    return {**data, "dataset_path": data["dataset_path"].removeprefix(DATA_MOUNT).strip("/")}
