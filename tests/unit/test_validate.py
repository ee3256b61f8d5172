# SPDX-License-Identifier: Apache-2.0
"""`kaito-ray validate`: files in, `FILE:LINE field.path: sentence` out, and an exit code."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from kaito_ray.cli import app

USER_MANIFESTS = sorted((Path(__file__).parents[3] / "shared" / "user-manifests").glob("*.yaml"))

SERVE = """\
apiVersion: kaito.sh/v1alpha1
kind: Workspace
metadata:
  name: workspace-phi-3-mini-adapter
resource:
  instanceType: Standard_NC24ads_A100_v4
  labelSelector:
    matchLabels:
      apps: phi-3-adapter
inference:
  preset:
    name: phi-3-mini-128k-instruct
  adapters:
    - source:
        name: phi-3-adapter
        image: registry.example/adapters/phi-3:0.0.1
      strength: "1.0"
"""
TUNE = """\
apiVersion: kaito.sh/v1alpha1
kind: Workspace
metadata:
  name: workspace-tuning-phi-3
resource:
  instanceType: Standard_NC24ads_A100_v4
  labelSelector:
    matchLabels:
      app: tuning-phi-3
tuning:
  preset:
    name: phi-3-mini-128k-instruct
  method: qlora
  input:
    urls:
      - https://data.example/train.parquet?download=true
  output:
    image: registry.example/adapters/phi-3:0.0.1
    imagePushSecret: registry-push
"""


def validate(tmp_path: Path, text: str, *options: str) -> Result:
    (tmp_path / "w.yaml").write_text(text)
    return CliRunner().invoke(app, ["validate", str(tmp_path / "w.yaml"), *options])


@pytest.mark.parametrize("manifest", USER_MANIFESTS, ids=lambda path: path.stem)
def test_manifests_of_users_pass(manifest: Path) -> None:
    result = CliRunner().invoke(app, ["validate", str(manifest)])
    assert result.exit_code == 0, result.stdout
    assert "retired" in result.stdout
    assert ("replace ACR_REPO_HERE" in result.stdout) == ("_HERE" in manifest.read_text())


@pytest.mark.parametrize("text", [SERVE, TUNE])
def test_good_files_pass(tmp_path: Path, text: str) -> None:
    result = validate(tmp_path, text)
    assert result.exit_code == 0, result.stdout
    assert ":1 " not in result.stdout


# What is written instead of what; the line and field that are then named; words of the sentence.
@pytest.mark.parametrize(
    ("text", "old", "new", "place", "words"),
    [
        (SERVE, "kaito.sh/v1alpha1", "kaito.sh/v1", "1 apiVersion", "kaito.sh/v1beta1"),
        (SERVE, "name: workspace-phi-3-mini-adapter", "name: Phi_3", "4 metadata.name", 'got "Phi_3"'),
        (SERVE, "instanceType:", "instancetype:", "6 resource.instancetype", "did you mean instanceType?"),
        (SERVE, "NC24ads_A100_v4", "NC24ads_A100_v9", "6 resource.instanceType", "Standard_NC24ads_A100_v4"),
        (SERVE, "NC24ads_A100_v4\n", "NC24ads_A100_v4\n  count: 0\n", "7 resource.count", "at least 1"),
        (SERVE, "labelSelector:", "selector:", "7 resource.selector", "labelSelector"),
        (SERVE, "inference:", "inferense:", "10 inferense", "did you mean inference?"),
        (
            SERVE,
            "phi-3-mini-128k-instruct",
            "phi-3-mini-12k-instruct",
            "12 inference.preset.name",
            "phi-3-mini-128k-instruct",
        ),
        (SERVE, "adapters:", "template: {}\n  adapters:", "10 inference", "both preset and template"),
        (SERVE, "        name: phi-3-adapter\n", "", "14 inference.adapters[0].source.name", "is missing"),
        (
            SERVE,
            "image: registry.example/adapters",
            "image: registry.example/Adapters",
            "16 inference.adapters[0].source.image",
            "must be an image",
        ),
        (SERVE, '"1.0"', "1.0", "17 inference.adapters[0].strength", "in quotes"),
        (SERVE, '"1.0"', '"1.1"', "17 inference.adapters[0].strength", 'between "0" and "1"'),
        (TUNE, "tuning:", "inference: {preset: {name: phi-4}}\ntuning:", "1", "both inference and tuning"),
        (TUNE, "method: qlora", "method: dora", "13 tuning.method", "lora, qlora"),
        (
            TUNE,
            "    urls:\n      - https://data.example/train.parquet?download=true\n",
            "    name: x\n",
            "14 tuning.input",
            "exactly one",
        ),
        (TUNE, "data.example", "169.254.169.254", "16 tuning.input.urls[0]", "metadata"),
        (TUNE, "    imagePushSecret: registry-push\n", "", "17 tuning.output.imagePushSecret", "is missing"),
        (
            TUNE,
            "    image:",
            "    volumeSource: {hostPath: {path: /data}}\n    image:",
            "17 tuning.output",
            "exactly one",
        ),
        (TUNE, "phi-3-mini-128k-instruct", "llama-3.1-405b-instruct", "12 tuning.preset.name", "llama-3.1"),
    ],
)
def test_broken_files_name_line_and_field(
    tmp_path: Path, text: str, old: str, new: str, place: str, words: str
) -> None:
    assert text.count(old) >= 1
    result = validate(tmp_path, text.replace(old, new, 1))
    assert result.exit_code == 1
    lines = [line for line in result.stdout.splitlines() if line.startswith(f"{tmp_path / 'w.yaml'}:{place}")]
    assert lines, result.stdout
    assert any(words in line for line in lines)
    assert "Traceback" not in result.output


def test_json_is_stable(tmp_path: Path) -> None:
    result = validate(tmp_path, SERVE.replace('"1.0"', '"2"'), "-o", "json")
    assert result.exit_code == 1
    (error,) = (finding for finding in json.loads(result.stdout) if finding["severity"] == "error")
    assert error == {
        "file": str(tmp_path / "w.yaml"),
        "line": 17,
        "field": "inference.adapters[0].strength",
        "message": 'must be a number between "0" and "1", got "2"',
        "severity": "error",
    }


def test_all_files_are_judged(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(SERVE)
    result = CliRunner().invoke(app, ["validate", str(tmp_path / "none.yaml"), str(tmp_path / "a.yaml")])
    assert result.exit_code == 1
    assert "none.yaml:1 there is no such file" in result.stdout
    assert "2 files, 1 error, " in result.stderr


def test_the_command_line_at_fault_is_another_exit_code() -> None:
    assert CliRunner().invoke(app, ["validate"]).exit_code == 2
    assert CliRunner().invoke(app, ["validate", "-o", "xml", "x"]).exit_code == 2


CONFIG = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: flags}\ndata: {%s: 'vllm: {}'}\n"


@pytest.mark.parametrize(
    ("beside", "said", "code"),
    [
        ("", "note: ConfigMap flags is not in this file; it must exist in namespace default", 0),
        (CONFIG % "inference_config.yaml", "", 0),
        (CONFIG % "config.yaml", "ConfigMap flags has no key inference_config.yaml, only config.yaml", 1),
        (
            CONFIG.replace("name: flags", "name: flags, namespace: ml") % "inference_config.yaml",
            "warning: ConfigMap flags stands here in namespace ml; it must exist in namespace default",
            0,
        ),
    ],
)
def test_references_are_looked_up_in_the_file(tmp_path: Path, beside: str, said: str, code: int) -> None:
    result = validate(tmp_path, SERVE.replace("  adapters:", "  config: flags\n  adapters:") + beside)
    assert result.exit_code == code, result.stdout
    about = [line for line in result.stdout.splitlines() if "inference.config" in line]
    assert bool(about) == bool(said)
    assert all(f"w.yaml:13 inference.config: {said}" in line for line in about if "key" not in line)


def test_an_adapter_of_a_workspace_needs_one_that_tunes(tmp_path: Path) -> None:
    text = SERVE.replace("image: registry.example/adapters/phi-3:0.0.1", "workspace: workspace-tuning-phi-3")
    alone = validate(tmp_path, text)
    assert alone.exit_code == 0
    assert "Workspace workspace-tuning-phi-3 is not in this file" in alone.stdout
    assert validate(tmp_path, f"{text}---\n{TUNE}").exit_code == 0
    serving = validate(
        tmp_path, f"{text}---\n{SERVE.replace('workspace-phi-3-mini-adapter', 'workspace-tuning-phi-3')}"
    )
    assert serving.exit_code == 1
    assert "must be a Workspace with tuning" in serving.stdout


def test_private_addresses_can_be_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = TUNE.replace("data.example", "minio.data.svc")
    assert validate(tmp_path, text).exit_code == 1
    monkeypatch.setenv("KAITO_RAY_ALLOW_PRIVATE_URLS", "minio.data.svc")
    assert validate(tmp_path, text).exit_code == 0


def test_unknown_model_and_unknown_size_are_both_said(tmp_path: Path) -> None:
    text = SERVE.replace("phi-3-mini-128k-instruct", "phi-33").replace("NC24ads_A100_v4", "NC24ads_A100_v5")
    result = validate(tmp_path, text)
    assert result.exit_code == 1
    assert "w.yaml:6 resource.instanceType: " in result.stdout
    assert "w.yaml:12 inference.preset.name: " in result.stdout


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    text = SERVE.replace("phi-3-mini-128k-instruct", "deepseek-ai/DeepSeek-R1-0528").split("  adapters:")[0]
    result = validate(tmp_path, text)
    assert result.exit_code == 1
    assert "w.yaml:6 resource.instanceType: " in result.stdout
