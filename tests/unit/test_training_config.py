# SPDX-License-Identifier: Apache-2.0
"""KAITO's training ConfigMap in, options for the libraries or all of its problems out."""

from typing import Any

import pytest
import yaml

from kaito_ray.errors import InvalidManifest
from kaito_ray.training_config import TrainingConfig, parse_training_config
from kaito_ray.training_options import options
from kaito_ray.training_rules import IDLE, REFUSED, RENAMED, TRAINERS

# The qlora template that KAITO copies into namespaces, as its users have it.
TEMPLATE = """
training_config:
  ModelConfig:
    torch_dtype: "bfloat16"
    local_files_only: true
    device_map: "auto"
  QuantizationConfig:
    load_in_4bit: true
    bnb_4bit_quant_type: "nf4"
    bnb_4bit_compute_dtype: "bfloat16"
    bnb_4bit_use_double_quant: true
  LoraConfig:
    r: 8
    lora_alpha: 8
    lora_dropout: 0.0
  TrainingArguments:
    output_dir: "/mnt/results"
    ddp_find_unused_parameters: false
    save_strategy: "no"
    per_device_train_batch_size: 1
  DataCollator:
    mlm: true
  DatasetConfig:
    shuffle_dataset: true
    train_test_split: 1
"""


def parsed(text: str, method: str = "qlora") -> TrainingConfig:
    return parse_training_config({"training_config.yaml": text}, method)


def section(name: str, values: Any, method: str = "qlora") -> TrainingConfig:
    return parsed(yaml.safe_dump({"training_config": {name: values}}), method)


def problems(text: str, method: str = "qlora") -> list[str]:
    with pytest.raises(InvalidManifest) as caught:
        parsed(text, method)
    return [str(problem) for problem in caught.value.problems]


def test_kaitos_own_template_says_nothing_strange() -> None:
    config = parsed(TEMPLATE)
    assert config.warnings == ()
    assert config.model == {"dtype": "bfloat16"}
    assert config.quantization["bnb_4bit_quant_type"] == "nf4"
    assert config.lora == {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0}
    assert config.training == {"per_device_train_batch_size": 1}
    assert config.data == {"shuffle_dataset": True, "train_test_split": 1.0}


def test_without_a_config_map_nothing_is_asked() -> None:
    assert parse_training_config(None, "lora") == TrainingConfig()


@pytest.mark.parametrize(
    ("name", "written", "read"),
    [
        ("TrainingArguments", {"learning_rate": "1e-4"}, {"learning_rate": 1e-4}),
        ("TrainingArguments", {"num_train_epochs": 2}, {"num_train_epochs": 2.0}),
        ("TrainingArguments", {"max_steps": "10"}, {"max_steps": 10}),
        ("TrainingArguments", {"packing": "true"}, {"packing": True}),
        ("TrainingArguments", {"lr_scheduler_type": "linear", "seed": None}, {"lr_scheduler_type": "linear"}),
        ("LoraConfig", {"target_modules": ["qkv_proj"]}, {"target_modules": ["qkv_proj"]}),
        ("LoraConfig", {"target_modules": "all-linear"}, {"target_modules": "all-linear"}),
    ],
)
def test_values_become_what_the_libraries_take(name: str, written: dict[str, Any], read: dict[str, Any]) -> None:
    config = section(name, written)
    assert {"TrainingArguments": config.training, "LoraConfig": config.lora}[name] == read


def test_columns_that_kaito_only_defines_are_used() -> None:
    columns = {"context_column": "question", "response_column": "answer", "messages_column": "talk"}
    assert section("DatasetConfig", columns).data == columns
    assert section("DatasetConfig", {"dataset_path": "/mnt/data/sub/file.json"}).data == {
        "dataset_path": "sub/file.json"
    }


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("TrainingArguments", {"max_seq_length": 512}, {"max_length": 512}),
        ("TrainingArguments", {"evaluation_strategy": "epoch"}, {"eval_strategy": "epoch"}),
        ("TrainingArguments", {"warmup_ratio": 0.1}, {"warmup_steps": 0.1}),
        ("TrainingArguments", {"group_by_length": True}, {"train_sampling_strategy": "group_by_length"}),
    ],
)
def test_old_names_are_translated_with_a_warning(name: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    config = section(name, old)
    assert config.training == new
    [warning] = config.warnings
    assert next(iter(old)) in warning
    assert next(iter(new)) in warning


@pytest.mark.parametrize(
    ("name", "values", "word"),
    [
        ("TrainingArguments", {"save_steps": 100}, "resumes"),
        ("TrainingArguments", {"report_to": "wandb"}, "status.tuning"),
        ("TrainingArguments", {"push_to_hub": True}, "tuning.output"),
        ("TrainingArguments", {"save_safetensors": True}, "no such option any more"),
        ("ModelConfig", {"trust_remote_code": True}, "catalogue"),
        ("DataCollator", {"mlm_probability": 0.2}, "collator"),
    ],
)
def test_what_has_no_effect_is_said(name: str, values: dict[str, Any], word: str) -> None:
    [warning] = section(name, values).warnings
    assert "has no effect" in warning
    assert word in warning


BAD = {
    "not YAML": ("training_config: [", "is not YAML"),
    "another root": ("training: {}", "must have the one key training_config, got training"),
    "no mapping": ("training_config: 3", "must be a mapping of sections, got 3"),
    "an unknown section": ("training_config: {ModelConfg: {}}", "is no section; there are ModelConfig"),
    "a section that is a list": ("training_config: {LoraConfig: []}", "must be a mapping of options, got a list"),
    "a misspelt option": (
        "training_config: {TrainingArguments: {learnin_rate: 1}}",
        "TrainingArguments.learnin_rate: is no option; did you mean learning_rate?",
    ),
    "a word for a number": (
        "training_config: {LoraConfig: {r: eight}}",
        'LoraConfig.r: must be a whole number, got "e',
    ),
    "an unknown word": (
        "training_config: {TrainingArguments: {lr_scheduler_type: cosin}}",
        "must be one of constant, constant_with_warmup, cosine",
    ),
    "two quantisations": (
        "training_config: {QuantizationConfig: {load_in_4bit: true, load_in_8bit: true}}",
        "cannot have both load_in_4bit and load_in_8bit",
    ),
    "no quantisation": (
        "training_config: {QuantizationConfig: {load_in_4bit: false}}",
        "must have load_in_4bit or load_in_8bit with method qlora",
    ),
    "DoRA": ("training_config: {LoraConfig: {use_dora: true}}", "use_dora: cannot be used: vLLM cannot serve"),
    "saved modules": ("training_config: {LoraConfig: {modules_to_save: [lm_head]}}", "vLLM cannot serve such"),
    "a bias": ("training_config: {LoraConfig: {bias: all}}", "bias: must be none, got all"),
    "rank 0": ("training_config: {LoraConfig: {r: 0}}", "r: must be between 1 and 512, got 0"),
    "another start": ("training_config: {LoraConfig: {init_lora_weights: pissa}}", "others change the base model"),
    "no batch": (
        "training_config: {TrainingArguments: {per_device_train_batch_size: 0}}",
        "per_device_train_batch_size: must be above 0, got 0",
    ),
    "deepspeed": ("training_config: {TrainingArguments: {deepspeed: ds.json}}", "holds a whole copy of the model"),
    "a split above 1": ("training_config: {DatasetConfig: {train_test_split: 2}}", "less than or equal to 1, got 2"),
    "a format": ("training_config: {DatasetConfig: {format: alpaca}}", "format: input should be 'messages'"),
    "data elsewhere": ("training_config: {DatasetConfig: {dataset_path: /etc/passwd}}", "must lie in /mnt/data"),
    "half a pair": ("training_config: {DatasetConfig: {context_column: q}}", "needs response_column beside it"),
    "old and new": (
        "training_config: {TrainingArguments: {max_seq_length: 1, max_length: 2}}",
        "is the old name of max_length, which is set as well",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named(case: str) -> None:
    text, expected = BAD[case]
    found = problems(text)
    assert any(expected in problem for problem in found), found


def test_lora_is_not_quantised() -> None:
    found = problems("training_config: {QuantizationConfig: {load_in_4bit: true}}", "lora")
    assert "write method: qlora" in found[0]


@pytest.mark.parametrize("quantization", [{}, {"load_in_4bit": False}, {"load_in_4bit": True}, {"load_in_8bit": True}])
def test_dpo_is_quantised_or_not(quantization: dict[str, bool]) -> None:
    assert section("QuantizationConfig", quantization, "dpo").quantization == quantization


PAIRS: dict[str, Any] = {
    "beta": 0.2,
    "loss_type": ["sigmoid", "sft"],
    "loss_weights": [1.0, 0.5],
    "max_length": 256,
    "label_smoothing": 0.1,
}


def test_dpo_takes_the_options_of_trls_dpo_config() -> None:
    assert section("TrainingArguments", PAIRS, "dpo").training == PAIRS
    assert section("TrainingArguments", {"loss_type": "ipo", "packing": False}, "dpo").training == {"loss_type": "ipo"}


ONLY_SFT, ONLY_DPO = "is an option of lora and qlora, not of method dpo", "is an option of dpo, not of method qlora"
BAD_WITH_METHOD: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "packing": ("dpo", "TrainingArguments", {"packing": True}, f"packing: {ONLY_SFT}"),
    "masks": ("dpo", "TrainingArguments", {"assistant_only_loss": True}, f"assistant_only_loss: {ONLY_SFT}"),
    "beta": ("qlora", "TrainingArguments", {"beta": 0.1}, f"beta: {ONLY_DPO}"),
    "another model": ("qlora", "TrainingArguments", {"sync_ref_model": True}, f"sync_ref_model: {ONLY_DPO}"),
    "a loss of the other": ("qlora", "TrainingArguments", {"loss_type": "ipo"}, "must be one of chunked_nll, dft, nll"),
    "a misspelt beta": ("dpo", "TrainingArguments", {"beat": 0.1}, "beat: is no option; did you mean beta?"),
    "a misspelt loss": ("dpo", "TrainingArguments", {"loss_type": "sigmiod"}, 'sppo_hard, got "sigmiod"'),
    "one of the losses": (
        "dpo",
        "TrainingArguments",
        {"loss_type": ["sft", "a"]},
        "must be one or several of aot, aot",
    ),
    "a second model": ("dpo", "TrainingArguments", {"sync_ref_model": True}, "the model itself with its adapter off"),
    "beta 0": ("dpo", "TrainingArguments", {"beta": 0}, "beta: must be above 0, got 0"),
    "half of the labels": ("dpo", "TrainingArguments", {"label_smoothing": 0.5}, "at least 0 and below 0.5, got 0.5"),
    "exo without": ("dpo", "TrainingArguments", {"loss_type": "exo_pair"}, "exo_pair needs a label_smoothing above 0"),
    "a weight too few": (
        "dpo",
        "TrainingArguments",
        {"loss_weights": [1.0, 2.0]},
        "must be 1 numbers, one for each of",
    ),
    "words as weights": ("dpo", "TrainingArguments", {"loss_weights": ["a"]}, "must be 1 numbers, one for each of"),
    "lengths": (
        "dpo",
        "TrainingArguments",
        {"train_sampling_strategy": "group_by_length"},
        "must be random or sequential with method dpo, got group_by_length",
    ),
    "a format": ("dpo", "DatasetConfig", {"format": "messages"}, "must be preference with method dpo, got messages"),
    "a column": ("dpo", "DatasetConfig", {"messages_column": "a"}, "its columns are prompt, chosen and rejected"),
    "4 and 8 bits": (
        "dpo",
        "QuantizationConfig",
        {"load_in_4bit": True, "load_in_8bit": True},
        "cannot have both load_in_4bit and load_in_8bit",
    ),
}


@pytest.mark.parametrize("case", BAD_WITH_METHOD)
def test_what_does_not_go_with_the_method_is_named(case: str) -> None:
    method, name, values, expected = BAD_WITH_METHOD[case]
    found = problems(yaml.safe_dump({"training_config": {name: values}}), method)
    assert len(found) == 1
    assert expected in found[0], found


@pytest.mark.parametrize(
    ("name", "values", "word"),
    [
        ("TrainingArguments", {"precompute_ref_log_probs": True}, "adapter off, which takes no memory"),
        ("TrainingArguments", {"label_smoothing_factor": 0.1}, "label_smoothing only"),
        ("LoraConfig", {"lora_dropout": 0.1}, "with method dpo unless disable_dropout is false"),
    ],
)
def test_what_has_no_effect_on_pairs_is_said(name: str, values: dict[str, Any], word: str) -> None:
    [warning] = section(name, values, "dpo").warnings
    assert "has no effect" in warning
    assert word in warning


def test_all_problems_come_at_once() -> None:
    found = problems("training_config: {LoraConfig: {r: x, use_dora: true}, Foo: {}, DatasetConfig: {format: x}}")
    assert len(found) == 4


def test_a_config_map_without_the_key() -> None:
    with pytest.raises(InvalidManifest, match=r"has no key training_config\.yaml"):
        parse_training_config({"config.yaml": TEMPLATE}, "qlora")


@pytest.mark.parametrize("name", ["QuantizationConfig", "LoraConfig", "TrainingArguments"])
def test_rules_speak_of_options_that_exist_or_did(name: str) -> None:
    known = options(name).keys()
    assert set(RENAMED[name].values()) <= known
    assert REFUSED[name].keys() <= known
    assert not REFUSED[name].keys() & IDLE[name].keys()


@pytest.mark.parametrize("trainer", sorted(set(TRAINERS.values())))
def test_rules_of_a_method_speak_of_its_own_options(trainer: str) -> None:
    assert REFUSED[trainer].keys() <= options(trainer).keys()
    assert IDLE[trainer].keys() <= options("TrainingArguments", trainer).keys()
