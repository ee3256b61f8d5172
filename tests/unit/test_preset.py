# SPDX-License-Identifier: Apache-2.0
"""The catalogue: every model and name of KAITO's, with the architecture behind its published numbers."""

import csv
from pathlib import Path

import pytest

from kaito_ray.errors import InvalidManifest, UnknownPreset
from kaito_ray.preset import Preset, load_catalogue

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
CATALOGUE = load_catalogue()
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the published figures are not beside this checkout")


def _rows(name: str) -> list[dict[str, str]]:
    file = SHARED / name
    return list(csv.DictReader(file.read_text(encoding="utf-8").splitlines())) if file.is_file() else []


@needs_shared
@pytest.mark.parametrize("row", _rows("catalogue.csv"), ids=lambda row: str(row["name"]))
def test_a_preset_agrees_with_the_published_figures(row: dict[str, str]) -> None:
    preset = CATALOGUE.get(row["name"])
    published = (int(row["bytes_per_token"]), row["attention"], float(row["weights_gib"]), int(row["token_limit"]))
    assert (preset.kv_bytes_per_token, preset.attention, preset.weights_gib, preset.context) == published
    assert (preset.quantization or "") == row["quant_method"]
    assert (preset.tool_parser or "", preset.reasoning_parser or "") == (row["tool_parser"], row["reasoning_parser"])
    for flag in ("load_format", "config_format", "tokenizer_mode"):
        if row[flag]:
            assert preset.engine[flag.replace("_", "-")] == row[flag]


@needs_shared
def test_every_alias_of_kaito_names_its_model() -> None:
    rows = _rows("aliases.csv")
    assert len(rows) == 25
    assert {row["alias"]: CATALOGUE.get(row["alias"]).name for row in rows} == {
        row["alias"]: row["model"] for row in rows
    }


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("falcon-7b", "tiiuae/falcon-7b"),
        ("falcon-40b-instruct", "tiiuae/falcon-40b-instruct"),
        ("phi-2", "microsoft/phi-2"),
        ("PHI-3-MINI-4K-INSTRUCT", "microsoft/Phi-3-mini-4k-instruct"),
        ("microsoft/phi-3-mini-4k-instruct", "microsoft/Phi-3-mini-4k-instruct"),
        ("smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("tiny-phi-3", "tiny-phi-3"),
    ],
)
def test_a_model_is_found_by_any_of_its_names(name: str, model: str) -> None:
    assert CATALOGUE.get(name).name == model


def test_a_wrong_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownPreset, match=r'"phi-3-mini-4k-instrct".*did you mean phi-3-mini-4k-instruct'):
        CATALOGUE.get("phi-3-mini-4k-instrct")
    with pytest.raises(UnknownPreset, match="kaito-ray presets"):
        CATALOGUE.get("zzz")


@pytest.mark.parametrize("preset", list(CATALOGUE), ids=lambda preset: preset.name)
def test_a_preset_is_complete(preset: Preset) -> None:
    assert preset.served_name == preset.served_name.lower()
    assert "/" not in preset.served_name
    assert preset.model_source.kind == preset.source
    assert not (preset.lora and preset.mixture_of_experts)
    layers = sum(group.layers for group in preset.cache)
    assert layers in (0, preset.layers)


def test_a_folder_of_ones_own_replaces_the_catalogue(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "one.yaml").write_text(
        "name: me/one\nlicense: mit\narchitecture: LlamaForCausalLM\nweights_gib: 1.5\ncontext: 4096\n"
        "hidden_size: 1024\nlayers: 8\nheads: 16\nkv_heads: 4\n"
    )
    catalogue = load_catalogue(tmp_path)
    assert [preset.name for preset in catalogue] == ["me/one"]
    assert catalogue.get("me/one").kv_bytes_per_token == 8 * 2 * 4 * 64 * 2


def test_a_broken_file_is_named_with_every_fault(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "bad.yaml").write_text("name: me/bad\nlayers: -1\ncolour: blue\n")
    with pytest.raises(InvalidManifest) as raised:
        load_catalogue(tmp_path)
    fields = {problem.path[1] for problem in raised.value.problems}
    assert {"layers", "colour", "license", "weights_gib"} <= fields
    assert all("bad.yaml" in str(problem.path[0]) for problem in raised.value.problems)
    (tmp_path / "mine" / "bad.yaml").write_text("name: [")
    with pytest.raises(InvalidManifest, match=r"bad\.yaml: cannot be read"):
        load_catalogue(tmp_path)
