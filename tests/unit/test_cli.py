# SPDX-License-Identifier: Apache-2.0
"""The command itself: what it loads, how it speaks of mistakes, how it leaves."""

import subprocess
import sys

import pytest
import yaml
from typer.testing import CliRunner

from kaito_ray.cli import app, main


def test_help_loads_nothing_heavy() -> None:
    code = "import sys, kaito_ray.cli; print({'pydantic', 'yaml', 'ray', 'kaito_ray.workspace'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"


def test_version_is_printed() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.stdout.startswith("kaito-ray 0.")


def test_crd_is_printed() -> None:
    result = CliRunner().invoke(app, ["crd"])
    assert yaml.safe_load(result.stdout)["metadata"]["name"] == "workspaces.kaito.sh"


def test_mistakes_are_a_sentence_each_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KAITO_RAY_MAX_NODES", "many")
    monkeypatch.setenv("KAITO_RAY_PROVISIONER", "gke")
    monkeypatch.setattr("sys.argv", ["kaito-ray", "validate", "x.yaml"])
    with pytest.raises(SystemExit) as left:
        main()
    said = capsys.readouterr()
    assert left.value.code == 1
    assert said.out == ""
    assert sorted(line.split(": ")[1] for line in said.err.splitlines()) == [
        "KAITO_RAY_MAX_NODES",
        "KAITO_RAY_PROVISIONER",
    ]


@pytest.mark.parametrize("arguments", [[], ["no-such-command"], ["crd", "--no-such-option"]])
def test_a_wrong_command_line_leaves_with_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2
