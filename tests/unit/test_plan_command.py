# SPDX-License-Identifier: Apache-2.0
"""`kaito-ray plan` and `kaito-ray presets`, as a user types them."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from kaito_ray.cli import app

LLAMA = "meta-llama/Llama-3.3-70B-Instruct"
CONTRACT = {
    "name",
    "kind",
    "model",
    "instanceType",
    "nodes",
    "gpusPerNode",
    "tensorParallel",
    "pipelineParallel",
    "replicas",
    "maxModelLen",
    "weightsGiB",
    "kvBytesPerToken",
    "hourlyUSD",
    "warnings",
}


def _run(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.output


def _json(*words: str, code: int = 0) -> Any:
    return json.loads(_run(*words, "-o", "json", code=code))


def a_file(folder: Path, *models: str, size: str = "Standard_NC24ads_A100_v4") -> str:
    """A manifest with one Workspace per model."""
    documents = [
        {
            "apiVersion": "kaito.sh/v1beta1",
            "kind": "Workspace",
            "metadata": {"name": f"w{index}"},
            "resource": {"instanceType": size, "labelSelector": {"matchLabels": {"apps": "w"}}},
            "inference": {"preset": {"name": model}},
        }
        for index, model in enumerate(models)
    ]
    file = folder / "workspaces.yaml"
    file.write_text(yaml.safe_dump_all(documents))
    return str(file)


def test_json_has_the_keys_that_are_promised(tmp_path: Path) -> None:
    (record,) = _json("plan", "-f", a_file(tmp_path, "phi-3-mini-4k-instruct"))
    assert record.keys() >= CONTRACT
    assert (record["name"], record["kind"], record["model"]) == ("w0", "serve", "microsoft/Phi-3-mini-4k-instruct")
    assert (record["weightsGiB"], record["kvBytesPerToken"], record["maxModelLen"]) == (7.12, 393216, 4096)
    assert (record["nodes"], record["hourlyUSD"]) == (1, 3.673)


def test_a_workspace_that_cannot_be_planned_does_not_hide_the_others(tmp_path: Path) -> None:
    good, bad = _json("plan", "-f", a_file(tmp_path, "phi-4", "phi-44"), code=1)
    assert "error" not in good
    assert bad["name"] == "w1"
    assert "phi-44" in bad["error"]
    assert "did you mean phi-4" in bad["error"]


def test_a_context_is_planned_for(tmp_path: Path) -> None:
    file = a_file(tmp_path, "llama-3.1-8b-instruct", size="Standard_NV36ads_A10_v5")
    assert _json("plan", "-f", file, "--context", "4096")[0]["maxModelLen"] == 4096
    assert _json("plan", "-f", file, "--context", "32768")[0]["nodes"] == 2
    assert "at most 131072 tokens" in _json("plan", "-f", file, "--context", "999999", code=1)[0]["error"]


def test_an_expert_answers_a_question() -> None:
    text = _run("plan", "--model", LLAMA, "--instance-type", "Standard_NC48ads_A100_v4", "--context", "131072")
    for words in (
        "2 x Standard_NC48ads_A100_v4 (2 x NVIDIA A100 PCIe, 80 GB), $14.69 an hour",
        "tensor parallel 2 inside a node, pipeline parallel 2 across nodes",
        "131.42 GiB of weights",
        "131,072 tokens of context",
        "40.0 GiB of KV cache",
        "on 1 node at most",
        "simpler: 1 x Standard_NC96ads_A100_v4",
        "weights 33.5",
        "79.1 GiB",
    ):
        assert words in text


def test_a_question_without_a_size_is_answered_with_one() -> None:
    (record,) = _json("plan", "--model", "phi-4")
    assert record["instanceType"] == "Standard_NC24ads_A100_v4"
    assert any("resource.instanceType is empty" in warning for warning in record["warnings"])


def test_advice_ranks_sizes_by_price() -> None:
    (record,) = _json("plan", "--model", "phi-4", "--instance-type", "Standard_NC40ads_H100_v5", "--advise")
    prices = [offer["hourlyUSD"] for offer in record["advice"] if offer["hourlyUSD"] is not None]
    assert prices == sorted(prices)
    assert {"Standard_NC24ads_A100_v4", "Standard_NV72ads_A10_v5"} <= {o["instanceType"] for o in record["advice"]}
    assert "sizes that hold phi-4" in _run("plan", "--model", "phi-4", "--advise")
    too_small = _json("plan", "--model", LLAMA, "--instance-type", "Standard_NC4as_T4_v3", "--advise", code=1)
    assert too_small[0]["advice"]
    assert "cheapest size that holds it" in too_small[0]["error"]


@pytest.mark.parametrize(
    "words",
    [["plan"], ["plan", "-f", "x.yaml", "--model", "phi-4"], ["plan", "-f", "x.yaml", "--instance-type", "y"]],
)
def test_a_question_that_makes_no_sense_is_a_usage_error(words: list[str]) -> None:
    _run(*words, code=2)


def test_tuning_is_planned_too(tmp_path: Path) -> None:
    document = {
        "apiVersion": "kaito.sh/v1beta1",
        "kind": "Workspace",
        "metadata": {"name": "tuned"},
        "resource": {"instanceType": "Standard_NC24ads_A100_v4", "labelSelector": {"matchLabels": {"app": "t"}}},
        "tuning": {
            "preset": {"name": "phi-4"},
            "method": "qlora",
            "input": {"urls": ["https://example.com/a.json"]},
            "output": {"image": "registry.example.com/a:1", "imagePushSecret": "push"},
        },
    }
    file = tmp_path / "tune.yaml"
    file.write_text(yaml.safe_dump(document))
    (record,) = _json("plan", "-f", str(file))
    assert record.keys() >= CONTRACT
    assert (record["kind"], record["method"], record["workers"]) == ("tune", "qlora", 1)
    assert "tunes microsoft/phi-4 with qlora" in _run("plan", "-f", str(file))


def test_the_catalogue_is_listed() -> None:
    records = _json("presets")
    assert len(records) >= 66
    assert {"name", "weightsGiB", "kvBytesPerToken", "aliases", "license"} <= records[0].keys()
    text = _run("presets")
    assert all(record["name"] in text for record in records)


def test_a_preset_is_shown_with_the_sizes_it_fits_on() -> None:
    record = _json("presets", "gemma-3-27b-instruct")
    assert record["name"] == "google/gemma-3-27b-it"
    assert "Standard_NC24ads_A100_v4" in {size["instanceType"] for size in record["sizes"]}
    text = _run("presets", "gemma-3-27b-instruct")
    assert "52 layers keep a window of 1024" in text
    assert "Standard_NC24ads_A100_v4" in text
    assert "gated" in text


def test_an_unknown_preset_is_a_sentence_and_not_a_traceback() -> None:
    result = CliRunner().invoke(app, ["presets", "phi-44"])
    assert result.exit_code == 1
    assert "phi-44" in str(result.exception)
