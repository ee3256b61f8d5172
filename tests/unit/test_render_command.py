# SPDX-License-Identifier: Apache-2.0
"""`kaito-ray render`: files in, YAML out, the same bytes every time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from builders import a_document
from kaito_ray.cli import app
from schemas import SHARED, problems

SAMPLES = Path(__file__).parents[2] / "manifests" / "samples"
USER_MANIFESTS = SHARED / "user-manifests"


def write(folder: Path, *documents: object) -> Path:
    file = folder / "workspaces.yaml"
    file.write_text(yaml.safe_dump_all(documents))
    return file


def test_the_same_bytes_whatever_the_hash_seed() -> None:
    command = [sys.executable, "-c", "from kaito_ray.cli import main; main()", "render"]
    for sample in sorted(SAMPLES.glob("*.yaml")):
        command += ["-f", str(sample)]
    running = [
        subprocess.Popen(command, env={**os.environ, "PYTHONHASHSEED": seed}, stdout=subprocess.PIPE)
        for seed in ("0", "1", "31337")
    ]
    texts = {process.communicate()[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    [text] = texts
    assert text.count(b"kind: RayService") == 8


@pytest.mark.skipif(not USER_MANIFESTS.is_dir(), reason="needs the manifests beside the checkout")
@pytest.mark.parametrize(
    ("file", "kind", "name"),
    [
        ("01-inference-phi-3-mini.yaml", "RayService", "workspace-phi-3-mini"),
        ("02-tuning-phi-3-mini.yaml", "RayJob", "workspace-phi-3-mini"),
        ("03-inference-phi-3-mini-adapter.yaml", "RayService", "workspace-phi-3-mini-adapter"),
        ("04-tuning-phi-3-mini-adapter.yaml", "RayJob", "workspace-phi-3-mini-adapter"),
        ("05-tuning-phi-3.yaml", "RayJob", "workspace-tuning-phi-3"),
    ],
)
def test_what_users_have_renders_to_the_right_kind(file: str, kind: str, name: str) -> None:
    done = CliRunner().invoke(app, ["render", "-f", str(USER_MANIFESTS / file)])
    assert done.exit_code == 0, done.output
    objects = list(yaml.safe_load_all(done.stdout))
    assert [thing["kind"] for thing in objects if thing["kind"].startswith("Ray")] == [kind]
    assert objects[-1]["metadata"]["name"].startswith(name)
    assert [found for thing in objects for found in problems(thing)] == []
    assert {thing["metadata"]["labels"]["kaito.sh/workspace"] for thing in objects} == {name}


def test_one_bad_workspace_keeps_all_from_being_applied(tmp_path: Path) -> None:
    good, bad = a_document(name="good"), a_document(name="bad", inference={"preset": {"name": "phi-33"}})
    file = write(tmp_path, good, bad)
    done = CliRunner().invoke(app, ["render", "-f", str(file)])
    assert done.exit_code == 1
    assert done.stdout == ""
    place, _, sentence = done.stderr.partition(" inference.preset.name: ")
    assert place.startswith(f"{file}:")
    assert '"phi-33"' in sentence


@pytest.mark.parametrize(
    ("document", "field"),
    [
        (
            {"resource": {"instanceType": "Standard_NC25", "labelSelector": {"matchLabels": {"a": "b"}}}},
            "resource.instanceType",
        ),
        ({"inference": {"template": {"spec": {"containers": []}}}}, "inference.template"),
        (
            {
                "tuning": {
                    "preset": {"name": "falcon-7b"},
                    "method": "qlora",
                    "input": {"urls": ["https://example.com/a.json"]},
                    "output": {"image": "registry.example.com/a:1", "imagePushSecret": "push"},
                }
            },
            "tuning.preset.name",
        ),
    ],
)
def test_what_cannot_be_planned_names_its_field(tmp_path: Path, document: dict[str, object], field: str) -> None:
    done = CliRunner().invoke(app, ["render", "-f", str(write(tmp_path, a_document(**document)))])
    assert done.exit_code == 1
    assert f" {field}: " in done.stderr


def test_config_of_the_file_is_used_and_one_of_the_cluster_accepted(tmp_path: Path) -> None:
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "short"},
        "data": {"inference_config.yaml": "vllm: {max-model-len: 1024}\n"},
    }
    inference = {"preset": {"name": "phi-3-mini-4k-instruct"}, "config": "short"}
    with_it = CliRunner().invoke(app, ["render", "-f", str(write(tmp_path, config, a_document(inference=inference)))])
    assert "max-model-len: 1024" in with_it.stdout
    without = CliRunner().invoke(app, ["render", "-f", str(write(tmp_path, a_document(inference=inference)))])
    assert "max-model-len: 4096" in without.stdout


def test_values_of_secrets_stay_where_they_are(tmp_path: Path) -> None:
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "keys"},
        "stringData": {"alice": "a-very-secret-key"},
    }
    workspace = a_document(annotations={"kaito-ray.io/api-keys": "keys"})
    done = CliRunner().invoke(app, ["render", "-f", str(write(tmp_path, secret, workspace))])
    assert done.exit_code == 0
    assert "secretName: keys" in done.stdout
    assert "a-very-secret-key" not in done.output
