# SPDX-License-Identifier: Apache-2.0
"""A tuning Workspace in, its plan out."""

from typing import Any

import pytest
import yaml

from kaito_ray.errors import DoesNotFit, InvalidManifest
from kaito_ray.plan import TunePlan, plan
from kaito_ray.preset import load_catalogue
from kaito_ray.settings import Settings
from kaito_ray.sku import cpu_size, load_sizes
from kaito_ray.workspace import parse_workspace

CATALOGUE, SIZES = load_catalogue(), load_sizes()
URLS = ["https://example.com/train.parquet?download=true"]


def a_plan(
    model: str,
    size: str,
    *,
    method: str = "qlora",
    count: int = 1,
    data: dict[str, str] | None = None,
    settings: Settings | None = None,
    annotations: dict[str, str] | None = None,
    **tuning: Any,
) -> TunePlan:
    """The plan of a Workspace that tunes `model`; `cpu` is a machine with 16 GiB, no size lets kaito-ray choose."""
    document = {
        "apiVersion": "kaito.sh/v1beta1",
        "kind": "Workspace",
        "metadata": {"name": "mine", "annotations": annotations or {}},
        "resource": {
            "instanceType": "" if size == "cpu" else size,
            "count": count,
            "labelSelector": {"matchLabels": {"app": "mine"}},
        },
        "tuning": {
            "preset": {"name": model},
            "method": method,
            "input": {"urls": URLS},
            "output": {"image": "registry.example.com/a:1", "imagePushSecret": "push"},
        }
        | tuning,
    }
    sku = cpu_size(4, 16.0) if size == "cpu" else SIZES.get(size) if size else None
    made = plan(parse_workspace(document), CATALOGUE.get(model), sku, settings or Settings(), config=data, sizes=SIZES)
    assert isinstance(made, TunePlan)
    return made


@pytest.mark.parametrize(
    ("model", "size", "method", "workers", "dtype"),
    [
        ("phi-3-mini-4k-instruct", "Standard_NC6s_v3", "qlora", 1, "float16"),
        ("phi-3-mini-4k-instruct", "Standard_NV36ads_A10_v5", "lora", 1, "bfloat16"),
        ("phi-4", "Standard_NC96ads_A100_v4", "lora", 4, "bfloat16"),
        ("tiny-phi-3", "cpu", "qlora", 1, "float32"),
        ("phi-3-mini-4k-instruct", "Standard_NV36ads_A10_v5", "dpo", 1, "bfloat16"),
    ],
)
def test_every_gpu_becomes_a_worker(model: str, size: str, method: str, workers: int, dtype: str) -> None:
    made = a_plan(model, size, method=method)
    assert (made.method, made.workers, made.arguments["model"]["dtype"]) == (method, workers, dtype)
    assert made.arguments["training"]["max_length"] <= CATALOGUE.get(model).context
    assert dict(made.input) == {"urls": URLS}
    assert dict(made.output) == {"image": "registry.example.com/a:1", "imagePushSecret": "push"}


def test_qlora_fits_where_lora_does_not() -> None:
    assert a_plan("phi-4", "Standard_NV36ads_A10_v5").nodes == 1
    with pytest.raises(
        DoesNotFit, match=r"lora of microsoft/phi-4 needs .* Standard_NV36ads_A10_v5 has .*; qlora needs"
    ):
        a_plan("phi-4", "Standard_NV36ads_A10_v5", method="lora")
    with pytest.raises(DoesNotFit, match="Coder-32B"):
        a_plan("qwen2.5-coder-32b-instruct", "Standard_NC6s_v3")


def a_config(**sections: Any) -> dict[str, Any]:
    text = yaml.safe_dump({"training_config": sections})
    return {"data": {"training_config.yaml": text}, "config": "training"}


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ({}, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}),
        ({"load_in_8bit": True}, {"load_in_8bit": True, "load_in_4bit": False}),
        ({"load_in_4bit": False}, None),
    ],
)
def test_dpo_has_4_bits_unless_others_are_asked_for(wish: dict[str, Any], expected: dict[str, Any] | None) -> None:
    made = a_plan(
        "phi-3-mini-4k-instruct", "Standard_NC24ads_A100_v4", method="dpo", **a_config(QuantizationConfig=wish)
    )
    quantization = made.arguments["quantization"]
    assert quantization is None if expected is None else expected.items() <= quantization.items()


def test_pairs_take_a_lower_rate_one_epoch_and_less_at_once() -> None:
    """As answers on the same size do, in twice the room."""
    answers, pairs = (a_plan("phi-4", "Standard_NV36ads_A10_v5", method=method) for method in ("qlora", "dpo"))
    one, other = answers.arguments["training"], pairs.arguments["training"]
    assert one["learning_rate"] == pytest.approx(20 * other["learning_rate"], rel=0.05)
    assert "num_train_epochs" not in one
    assert other["num_train_epochs"] == 1
    assert pairs.arguments["epochs_min_steps"] == answers.arguments["epochs_min_steps"]
    assert one["per_device_train_batch_size"] == 2 * other["per_device_train_batch_size"]
    assert 2 * one["gradient_accumulation_steps"] == other["gradient_accumulation_steps"]
    assert one["max_length"] == other["max_length"]


def test_what_the_config_map_says_of_pairs_wins() -> None:
    asked = a_config(TrainingArguments={"learning_rate": 1e-6, "num_train_epochs": 2, "beta": 0.3})
    made = a_plan("phi-4", "Standard_NC24ads_A100_v4", method="dpo", **asked)
    training = made.arguments["training"]
    assert (training["learning_rate"], training["num_train_epochs"], training["beta"]) == (1e-6, 2.0, 0.3)
    assert made.arguments["epochs_min_steps"] is None


def test_pairs_in_16_bits_that_do_not_fit_are_told_of_4() -> None:
    asked = a_config(QuantizationConfig={"load_in_4bit": False})
    with pytest.raises(DoesNotFit, match=r"dpo of microsoft/phi-4 needs .*; QuantizationConfig\.load_in_4bit needs"):
        a_plan("phi-4", "Standard_NV36ads_A10_v5", method="dpo", **asked)


def test_a_model_without_tuning_facts_is_refused() -> None:
    with pytest.raises(DoesNotFit, match="cannot be tuned"):
        a_plan("deepseek-r1-0528", "Standard_ND96isr_H200_v5")


def test_without_a_size_the_cheapest_that_holds_it_is_taken_and_said() -> None:
    made = a_plan("phi-3-mini-4k-instruct", "")
    assert made.instance_type == "Standard_NC4as_T4_v3"
    assert "resource.instanceType is empty" in made.warnings[0]


def test_a_count_of_nodes_multiplies_workers_and_price() -> None:
    one, two = (a_plan("phi-4", "Standard_NC48ads_A100_v4", count=count) for count in (1, 2))
    assert (one.workers, two.workers) == (2, 4)
    assert one.hourly_usd is not None
    assert two.hourly_usd == 2 * one.hourly_usd


CONFIG = {
    "training_config.yaml": """
training_config:
  ModelConfig: {torch_dtype: bfloat16, chat_template: "{{ messages }}"}
  QuantizationConfig: {load_in_4bit: true, bnb_4bit_compute_dtype: bfloat16}
  LoraConfig: {r: 16, target_modules: [qkv_proj]}
  TrainingArguments: {learning_rate: 1e-4, num_train_epochs: 2, max_seq_length: 4096, gradient_accumulation_steps: 3}
  DatasetConfig: {shuffle_dataset: false, train_test_split: 0.9, response_column: answer, context_column: question}
"""
}


def test_what_the_config_map_says_wins_and_the_rest_is_filled_in() -> None:
    made = a_plan("phi-3-mini-128k-instruct", "Standard_NC24ads_A100_v4", data=CONFIG, config="training")
    arguments = made.arguments
    assert arguments["lora"] == {"r": 16, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": ["qkv_proj"]}
    training = arguments["training"]
    assert (training["learning_rate"], training["num_train_epochs"], training["max_length"]) == (1e-4, 2.0, 4096)
    assert (training["gradient_accumulation_steps"], training["train_sampling_strategy"]) == (3, "sequential")
    assert training["gradient_checkpointing_kwargs"] == {"use_reentrant": False}
    assert arguments["epochs_min_steps"] is None
    assert arguments["model"]["chat_template"] == "{{ messages }}"
    assert arguments["data"]["train_share"] == 0.9
    assert (arguments["data"]["context_column"], arguments["data"]["response_column"]) == ("question", "answer")
    assert any("max_seq_length is now called max_length" in warning for warning in made.warnings)


def test_the_gpu_decides_what_can_be_computed_in() -> None:
    made = a_plan("phi-3-mini-4k-instruct", "Standard_NC6s_v3", data=CONFIG, config="training")
    assert made.arguments["model"]["dtype"] == "float16"
    assert made.arguments["quantization"]["bnb_4bit_compute_dtype"] == "float16"
    assert (made.arguments["training"]["fp16"], made.arguments["training"]["bf16"]) == (True, False)


@pytest.mark.parametrize(("size", "count"), [("Standard_NC6s_v3", 1), ("Standard_NC96ads_A100_v4", 2), ("cpu", 3)])
def test_a_step_learns_from_about_sixteen_samples_whatever_fits_at_once(size: str, count: int) -> None:
    made = a_plan("tiny-phi-3" if size == "cpu" else "phi-3-mini-4k-instruct", size, count=count)
    training = made.arguments["training"]
    samples = training["per_device_train_batch_size"] * training["gradient_accumulation_steps"] * made.workers
    assert 16 <= samples <= 64
    assert made.workers * made.arguments["cpus_per_worker"] <= max(count, made.worker.cpus * count)


def test_problems_of_the_config_map_are_those_of_the_workspace() -> None:
    broken = {"training_config.yaml": "training_config: {LoraConfig: {r: x}}"}
    with pytest.raises(InvalidManifest, match=r"LoraConfig\.r: must be a whole number"):
        a_plan("phi-4", "Standard_NC24ads_A100_v4", data=broken, config="training")


def test_several_nodes_need_storage_that_all_of_them_see() -> None:
    settings = Settings(checkpoint_storage_class="none")
    with pytest.raises(InvalidManifest, match="CHECKPOINT_STORAGE_CLASS is none"):
        a_plan("phi-4", "Standard_NC24ads_A100_v4", count=2, settings=settings)
    assert a_plan("phi-4", "Standard_NC24ads_A100_v4", settings=settings).nodes == 1


def test_a_model_that_can_be_tuned_but_not_served_there_is_said_beforehand() -> None:
    made = a_plan("qwen2.5-coder-32b-instruct", "Standard_NV36ads_A10_v5")
    [warning] = [warning for warning in made.warnings if "not served afterwards" in warning]
    assert "kaito-ray.io/after-tuning: release" in warning
    released = a_plan(
        "qwen2.5-coder-32b-instruct", "Standard_NV36ads_A10_v5", annotations={"kaito-ray.io/after-tuning": "release"}
    )
    assert not any("not served afterwards" in warning for warning in released.warnings)
