# SPDX-License-Identifier: Apache-2.0
"""Our nodes against those of KAITO's estimator, and every difference explained."""

import csv
from pathlib import Path

import pytest

from kaito_ray.errors import DoesNotFit
from kaito_ray.preset import load_catalogue
from kaito_ray.sizing import Demand, size_model
from kaito_ray.sku import load_sizes

CONFORMANCE = Path(__file__).resolve().parents[2].parent / "shared" / "conformance"
CATALOGUE, SIZES = load_catalogue(), load_sizes()
needs_figures = pytest.mark.skipif(not CONFORMANCE.is_dir(), reason="KAITO's figures are not beside this checkout")

_PARTS = "a pipeline divides the cache too, and 92 % of the GPU is used instead of 84 %"
# (model, size, context): our nodes, and why they are fewer than KAITO's. Nowhere are they more.
DIFFERENCES = {
    ("meta-llama/Llama-3.3-70B-Instruct", "Standard_NC24ads_A100_v4", 2048): (2, _PARTS),
    ("meta-llama/Llama-3.3-70B-Instruct", "Standard_NC48ads_A100_v4", 2048): (1, "92 % of the GPU instead of 84 %"),
    ("meta-llama/Llama-3.3-70B-Instruct", "Standard_NC24ads_A100_v4", 131072): (3, _PARTS),
    ("Qwen/Qwen2.5-Coder-32B-Instruct", "Standard_NC24ads_A100_v4", 2048): (1, "92 % of the GPU instead of 84 %"),
    ("openai/gpt-oss-120b", "Standard_NC48ads_A100_v4", 2048): (1, "the second copy in original/ is not loaded"),
    ("google/gemma-3-27b-it", "Standard_NC24ads_A100_v4", 65536): (1, "52 of 62 layers keep a window of 1,024 tokens"),
    ("google/gemma-4-31B-it", "Standard_NC24ads_A100_v4", 262144): (2, "50 of 60 layers keep a window of 1,024 tokens"),
}


def _rows(name: str) -> list[dict[str, str]]:
    file = CONFORMANCE / name
    return list(csv.DictReader(file.read_text(encoding="utf-8").splitlines())) if file.is_file() else []


def _id(row: dict[str, str]) -> str:
    return f"{row['model'].rsplit('/', 1)[-1]} {row['sku']} {row['context']}"


@needs_figures
@pytest.mark.parametrize("row", _rows("estimator.csv"), ids=_id)
def test_never_more_nodes_than_kaito_and_every_difference_is_known(row: dict[str, str]) -> None:
    preset, context = CATALOGUE.get(row["model"]), int(row["context"])
    demand = Demand(context=context, lora=preset.lora)
    ours = size_model(preset, SIZES.get(row["sku"]), demand, max_nodes=8).nodes
    expected, _why = DIFFERENCES.get((row["model"], row["sku"], context), (row["kaito_nodes"], ""))
    assert ours == int(expected)
    if row["kaito_nodes"] != "error":
        assert ours <= int(row["kaito_nodes"])


@needs_figures
@pytest.mark.parametrize("row", _rows("estimator_edges.csv"), ids=_id)
def test_at_the_edges_of_kaitos_arithmetic(row: dict[str, str]) -> None:
    preset, context = CATALOGUE.get(row["model"]), int(row["context"])
    demand, sku = Demand(context=context, lora=preset.lora), SIZES.get(row["sku"])
    if context > preset.context:
        with pytest.raises(DoesNotFit, match=f"at most {preset.context} tokens"):
            size_model(preset, sku, demand, max_nodes=8)
    else:
        assert size_model(preset, sku, demand, max_nodes=8).nodes <= int(row["kaito_nodes"])


@needs_figures
def test_the_table_of_differences_holds_nothing_else() -> None:
    rows = {(row["model"], row["sku"], int(row["context"])): row["kaito_nodes"] for row in _rows("estimator.csv")}
    for case, (ours, why) in DIFFERENCES.items():
        assert rows[case] != str(ours)
        assert why
