# SPDX-License-Identifier: Apache-2.0
"""A tuning Workspace in, its plan out."""

from typing import Any

import pytest

from kaito_ray.errors import DoesNotFit
from kaito_ray.plan import TunePlan, plan
from kaito_ray.preset import load_catalogue
from kaito_ray.settings import Settings
from kaito_ray.sku import cpu_size, load_sizes
from kaito_ray.workspace import parse_workspace

CATALOGUE, SIZES = load_catalogue(), load_sizes()
URLS = ["https://example.com/train.parquet?download=true"]


def a_plan(model: str, size: str, *, method: str = "qlora", count: int = 1, **tuning: Any) -> TunePlan:
    """The plan of a Workspace that tunes `model`; `cpu` is a machine with 16 GiB, no size lets kaito-ray choose."""
    document = {
        "apiVersion": "kaito.sh/v1beta1",
        "kind": "Workspace",
        "metadata": {"name": "mine"},
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
    made = plan(parse_workspace(document), CATALOGUE.get(model), sku, Settings(), sizes=SIZES)
    assert isinstance(made, TunePlan)
    return made


@pytest.mark.parametrize(
    ("model", "size", "method", "workers", "dtype"),
    [
        ("phi-3-mini-4k-instruct", "Standard_NC6s_v3", "qlora", 1, "float16"),
        ("phi-3-mini-4k-instruct", "Standard_NV36ads_A10_v5", "lora", 1, "bfloat16"),
        ("phi-4", "Standard_NC96ads_A100_v4", "lora", 4, "bfloat16"),
        ("tiny-phi-3", "cpu", "qlora", 1, "float32"),
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
