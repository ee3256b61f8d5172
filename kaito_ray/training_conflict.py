# SPDX-License-Identifier: Apache-2.0
"""The sections of a training configuration in, what is wrong with options that are each legal by themselves out. Pure.

KAITO's rules over several options, those of serving, and those of the method. Called by training_config.py, which knows
where in the ConfigMap a path of these stands.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from kaito_ray.document import shown

DATA_MOUNT = "/mnt/data"
_INITS = ("gaussian", "orthogonal")
_COLUMNS = ("messages_column", "context_column", "response_column")

Sections = Mapping[str, Mapping[str, Any]]
Conflict = tuple[tuple[str, ...], str]
"""Section and option, and a sentence."""


def conflicts(read: Sections, method: str) -> Iterator[Conflict]:
    """Everything that speaks against these sections with this method."""
    yield from _quantization(read["QuantizationConfig"], method)
    yield from _lora(read["LoraConfig"])
    yield from _training(read["TrainingArguments"])
    yield from _data(read["DatasetConfig"])
    if method == "dpo":
        yield from _pairs(read["TrainingArguments"], read["DatasetConfig"])


def _quantization(quantization: Mapping[str, Any], method: str) -> Iterator[Conflict]:
    path = ("QuantizationConfig",)
    four, eight = quantization.get("load_in_4bit", False), quantization.get("load_in_8bit", False)
    if four and eight:
        yield path, "cannot have both load_in_4bit and load_in_8bit"
    elif method == "lora" and (four or eight):
        yield path, "must have neither load_in_4bit nor load_in_8bit with method lora; write method: qlora"
    elif method == "qlora" and quantization.get("load_in_4bit") is False and not eight:
        yield path, "must have load_in_4bit or load_in_8bit with method qlora; write method: lora"


def _lora(lora: Mapping[str, Any]) -> Iterator[Conflict]:
    section = "LoraConfig"
    if lora.get("bias", "none") != "none":
        yield (section, "bias"), f"must be none, got {lora['bias']}: vLLM cannot serve such an adapter"
    if not 1 <= lora.get("r", 8) <= 512:
        yield (section, "r"), f"must be between 1 and 512, got {lora['r']}"
    if lora.get("lora_alpha", 8) <= 0:
        yield (section, "lora_alpha"), f"must be above 0, got {lora['lora_alpha']}"
    if not 0 <= lora.get("lora_dropout", 0) < 1:
        yield (section, "lora_dropout"), f"must be at least 0 and below 1, got {lora['lora_dropout']}"
    if not isinstance(lora.get("init_lora_weights", True), bool) and lora["init_lora_weights"] not in _INITS:
        yield (
            (section, "init_lora_weights"),
            f"must be true, {' or '.join(_INITS)}, got {lora['init_lora_weights']}: others change the base model",
        )


def _training(training: Mapping[str, Any]) -> Iterator[Conflict]:
    section = "TrainingArguments"
    for key in ("per_device_train_batch_size", "gradient_accumulation_steps", "max_length", "logging_steps"):
        if training.get(key, 1) <= 0:
            yield (section, key), f"must be above 0, got {training[key]}"
    if training.get("bf16") and training.get("fp16"):
        yield (section,), "cannot have both bf16 and fp16"


def _data(data: Mapping[str, Any]) -> Iterator[Conflict]:
    section = "DatasetConfig"
    if data.get("dataset_path", "").startswith("/") and not _inside(data["dataset_path"]):
        yield (section, "dataset_path"), f"must lie in {DATA_MOUNT}, got {shown(data['dataset_path'])}"
    if "context_column" in data and "response_column" not in data:
        yield (section, "context_column"), "needs response_column beside it, the column with the answers"


def _inside(path: str) -> bool:
    return path == DATA_MOUNT or path.startswith(f"{DATA_MOUNT}/")


def _pairs(training: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[Conflict]:
    """What TRL would say only once the workers train, or never."""
    section = "TrainingArguments"
    losses = training.get("loss_type", ["sigmoid"])
    losses = [losses] if isinstance(losses, str) else losses
    weights, smoothing = training.get("loss_weights"), training.get("label_smoothing", 0.0)
    if training.get("beta", 0.1) <= 0:
        yield (section, "beta"), f"must be above 0, got {training['beta']}"
    if not 0 <= smoothing < 0.5:
        yield (section, "label_smoothing"), f"must be at least 0 and below 0.5, got {smoothing}"
    if "exo_pair" in losses and not smoothing:
        yield (section, "loss_type"), "exo_pair needs a label_smoothing above 0, such as 0.001"
    if weights is not None and (
        len(weights) != len(losses) or not all(isinstance(one, int | float) for one in weights)
    ):
        yield (section, "loss_weights"), f"must be {len(losses)} numbers, one for each of loss_type"
    if training.get("train_sampling_strategy", "random") not in {"random", "sequential"}:
        got = training["train_sampling_strategy"]
        yield (section, "train_sampling_strategy"), f"must be random or sequential with method dpo, got {got}"
    if data.get("format", "preference") != "preference":
        yield ("DatasetConfig", "format"), f"must be preference with method dpo, got {data['format']}"
    for key in _COLUMNS:
        if key in data:
            yield ("DatasetConfig", key), "cannot be used with method dpo: its columns are prompt, chosen and rejected"
