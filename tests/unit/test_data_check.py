# SPDX-License-Identifier: Apache-2.0
"""`kaito-ray validate --data`: the data of a manifest is judged on this machine."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from typer.testing import CliRunner

from kaito_ray.cli import app
from web import serving

TURNS = [{"role": "user", "content": "What is a pod?"}, {"role": "assistant", "content": "A barrel."}]


def a_manifest(folder: Path, data: dict[str, Any], method: str = "qlora") -> str:
    file = folder / "workspace.yaml"
    workspace = {
        "apiVersion": "kaito.sh/v1beta1",
        "kind": "Workspace",
        "metadata": {"name": "mine"},
        "resource": {
            "instanceType": "Standard_NC24ads_A100_v4",
            "labelSelector": {"matchLabels": {"app": "mine"}},
        },
        "tuning": {
            # No tokenizer of it is on this machine, so that lengths are rough.
            "preset": {"name": "phi-4"},
            "method": method,
            "input": data,
            "output": {"volumeSource": {"persistentVolumeClaim": {"claimName": "result"}}},
        },
    }
    file.write_text(yaml.safe_dump(workspace))
    return str(file)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengths by the rule of thumb, whatever the machine has or can reach."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)


@pytest.mark.usefixtures("offline")
def test_good_data_is_described_with_steps_and_price(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": TURNS}) + "\n")
    manifest = a_manifest(tmp_path, {"volumeSource": {"hostPath": {"path": str(tmp_path)}}})
    (tmp_path / "workspace.yaml").rename(tmp_path / ".workspace.yaml")
    result = CliRunner().invoke(app, ["validate", "--data", manifest.replace("workspace", ".workspace")])
    assert result.exit_code == 0, result.output
    assert "mine: 1 row of messages (messages)" in result.stdout
    assert "about 6 tokens" in result.stdout
    assert "sample: user: What is a pod? | assistant: A barrel." in result.stdout
    assert "150 steps, 150 epochs, less than 2 min and less than a cent of training" in result.stdout


@pytest.mark.usefixtures("offline")
async def test_data_of_a_server_that_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def data(_: web.Request) -> web.Response:
        return web.Response(text=json.dumps({"messages": TURNS}) + "\n")

    monkeypatch.setenv("KAITO_RAY_ALLOW_PRIVATE_URLS", "127.0.0.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    async with serving(data) as url:
        manifest = a_manifest(tmp_path, {"urls": [f"{url}/chats.jsonl?download=true"]})
        result = await asyncio.to_thread(CliRunner().invoke, app, ["validate", "--data", manifest])
    assert result.exit_code == 0, result.output
    assert "mine: 1 row of messages (messages)" in result.stdout


@pytest.mark.usefixtures("offline")
def test_bad_data_is_named_by_file_and_line_and_fails(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "rows.jsonl").write_text(json.dumps({"messages": TURNS}) + "\n{\n")
    manifest = a_manifest(tmp_path, {"volumeSource": {"hostPath": {"path": str(data)}}})
    result = CliRunner().invoke(app, ["validate", "--data", manifest])
    assert result.exit_code == 1
    assert "rows.jsonl:2 column 2: is no JSON" in result.stdout
    told = CliRunner().invoke(app, ["validate", "--data", "-o", "json", manifest])
    assert {"file": "rows.jsonl", "line": 2} in [
        {"file": one["file"], "line": one["line"]} for one in json.loads(told.stdout)
    ]


@pytest.mark.usefixtures("offline")
def test_pairs_are_shown_with_both_sides_and_other_data_is_no_pair(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    manifest = a_manifest(tmp_path, {"volumeSource": {"hostPath": {"path": str(data)}}}, method="dpo")
    (data / "rows.jsonl").write_text(json.dumps({"prompt": "A pod?", "chosen": "A barrel.", "rejected": "No."}) + "\n")
    result = CliRunner().invoke(app, ["validate", "--data", manifest])
    assert result.exit_code == 0, result.output
    assert "mine: 1 row of preference (prompt, chosen, rejected)" in result.stdout
    assert "sample: user: A pod? | chosen: A barrel. | rejected: No." in result.stdout
    assert "150 steps, 150 epochs, less than 2 min and less than a cent of training" in result.stdout
    (data / "rows.jsonl").write_text(json.dumps({"messages": TURNS}) + "\n")
    result = CliRunner().invoke(app, ["validate", "--data", manifest])
    assert result.exit_code == 1
    assert "rows.jsonl:1 is in the format messages (messages), and method dpo learns from pairs" in result.stdout


@pytest.mark.parametrize(
    ("source", "expected", "code"),
    [
        ({"volumeSource": {"persistentVolumeClaim": {"claimName": "data"}}}, "is a volume of a cluster", 0),
        ({"volumeSource": {"hostPath": {"path": "/nowhere/at/all"}}}, "there is no such file or folder", 1),
        ({"urls": ["http://127.0.0.1:9/a.jsonl"]}, "127.0.0.1", 1),
    ],
)
@pytest.mark.usefixtures("offline")
def test_data_that_cannot_be_read(tmp_path: Path, source: dict[str, Any], expected: str, code: int) -> None:
    result = CliRunner().invoke(app, ["validate", "--data", a_manifest(tmp_path, source)])
    assert (result.exit_code, expected in result.stdout) == (code, True), result.output
