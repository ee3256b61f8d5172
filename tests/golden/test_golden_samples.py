# SPDX-License-Identifier: Apache-2.0
"""Every sample in, its Kubernetes objects out, compared byte by byte with the file of the same name beside this one."""

from pathlib import Path
from typing import Any, Protocol

import pytest
import yaml
from typer.testing import CliRunner

from kaito_ray.cli import app
from schemas import SHARED, problems

SAMPLES = sorted((Path(__file__).parents[2] / "manifests" / "samples").glob("*.yaml"))


class Golden(Protocol):
    def check(self, name: str, text: str) -> None: ...


def rendered(file: Path) -> str:
    done = CliRunner().invoke(app, ["render", "-f", str(file)])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.stem)
def test_sample_renders_as_before(sample: Path, golden: Golden) -> None:
    golden.check(sample.name, rendered(sample))


def test_no_golden_file_without_its_sample() -> None:
    assert {file.name for file in Path(__file__).parent.glob("*.yaml")} == {sample.name for sample in SAMPLES}


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the CRDs beside the checkout")
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.stem)
def test_api_server_and_kuberay_accept_the_sample(sample: Path) -> None:
    for thing in yaml.safe_load_all(rendered(sample)):
        assert problems(thing) == []


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.stem)
def test_no_secret_of_the_file_reaches_the_objects(sample: Path) -> None:
    documents: list[dict[str, Any]] = list(yaml.safe_load_all(sample.read_text()))
    values = [
        value
        for document in documents
        if document["kind"] == "Secret"
        for value in document.get("stringData", {}).values()
    ]
    text = rendered(sample)
    assert not [value for value in values if value in text]
    assert "kind: Secret" not in text
