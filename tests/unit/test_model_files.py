# SPDX-License-Identifier: Apache-2.0
"""Which files are a model, what its licence is, and the size of its image before there is one."""

from pathlib import Path

import pytest

from kaito_ray.artifacts.licence import check_licence, licence_of_card
from kaito_ray.artifacts.model_files import choose_files, is_wanted_of_image
from kaito_ray.artifacts.pack import Facts, Form, Packing, sizes_of
from kaito_ray.artifacts.reason import Reason
from kaito_ray.errors import ArtifactRefused
from model_images import a_model

MISTRAL = [
    "consolidated.safetensors",
    "model-00001-of-00001.safetensors",
    "model.safetensors.index.json",
    "params.json",
]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["config.json", "model.safetensors", "README.md"], ["README.md", "config.json", "model.safetensors"]),
        (["model.safetensors", "pytorch_model.bin", "model.pt", "tf_model.h5"], ["model.safetensors"]),
        (["original/consolidated.00.pth", "original/params.json", "metal/model.bin"], []),
        (["original/model.safetensors", "onnx/model.onnx"], []),
        (["model.safetensors", "model-q4.gguf", ".gitattributes", "figures/a.png"], ["model.safetensors"]),
        (
            ["1_Pooling/config.json", "LICENSE", "tokenizer.model"],
            ["1_Pooling/config.json", "LICENSE", "tokenizer.model"],
        ),
        ([*MISTRAL, "config.json"], ["config.json", "consolidated.safetensors", "params.json"]),
        (MISTRAL[:-1], MISTRAL[:-1]),
    ],
)
def test_files_of_a_repository(names: list[str], chosen: list[str]) -> None:
    assert choose_files(names) == chosen


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("workspace/weights/model.safetensors", True),
        ("data/config.json", True),
        ("config.json", True),
        ("opt/models/config.json", True),
        ("usr/lib/config.json", False),
        ("etc", False),
        ("workspace/weights/pytorch_model.bin", False),
        ("root/.cache/config.json", False),
        ("workspace/.wh.config.json", True),
    ],
)
def test_files_of_an_image(name: str, wanted: bool) -> None:
    assert is_wanted_of_image(name) is wanted


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: apache-2.0\ntags: [x]\n---\n# Model", "apache-2.0"),
        ("---\ntags: [x]\nlicense: 'mit'\n---\n", "mit"),
        ("---\nlicense:\n- apache-2.0\n---\n", ""),
        ("# Model\nlicense: mit\n", ""),
        ("", ""),
        (None, ""),
    ],
)
def test_the_licence_on_a_card(tmp_path: Path, card: str | None, licence: str) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert licence_of_card(tmp_path) == licence


@pytest.mark.parametrize(("licence", "words"), [("gemma", "has the licence gemma"), ("", "is not known")])
def test_licences_that_need_a_word(licence: str, words: str) -> None:
    with pytest.raises(ArtifactRefused, match=words) as caught:
        check_licence("org/model", licence, accepted=False)
    assert caught.value.reason == Reason.LICENSE_REFUSED
    check_licence("org/model", licence, accepted=True)
    check_licence("org/model", "Apache-2.0", accepted=False)


@pytest.mark.parametrize("form", Form)
def test_sizes_are_known_before_the_files(tmp_path: Path, form: Form) -> None:
    model = a_model(tmp_path / "model")
    (model / "1_Pooling").mkdir()
    (model / "1_Pooling/config.json").write_text("{}")
    files = {str(path.relative_to(model)): path.stat().st_size for path in model.rglob("*") if path.is_file()}
    assert sizes_of(files, form) == Packing.plan(model, Facts(), form).sizes


def test_a_shard_beyond_the_size_that_old_tars_know() -> None:
    files = {"config.json": 2, "model.safetensors": 9 * 1024**3}
    small, shard = sizes_of(files, Form.IMAGE)
    assert small.size < 10_000
    assert 9 * 1024**3 < shard.size < 9 * 1024**3 + 4096
