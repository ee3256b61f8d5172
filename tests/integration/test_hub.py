# SPDX-License-Identifier: Apache-2.0
"""Models of the hub, asked of a server on this machine that answers as the hub does."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fake_hub import LLAMA, SHA, WEIGHTS, FakeHub
from kaito_ray.errors import HubRefused, KaitoRayError, NotReadyYet, UnknownPreset
from kaito_ray.hub import Hub, find_preset
from kaito_ray.preset import load_catalogue

CATALOGUE = load_catalogue()


@pytest.fixture
def hub_server() -> Iterator[FakeHub]:
    server = FakeHub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def ask(hub_server: FakeHub, tmp_path: Path) -> Callable[..., Any]:
    """Asks the server about a model and returns the preset."""
    hub = Hub(CATALOGUE, endpoint=hub_server.url, folder=tmp_path / "cache")
    return hub.preset


def test_facts_come_from_the_configuration_and_the_sizes_of_files(hub_server: FakeHub, ask: Callable[..., Any]) -> None:
    hub_server.put("me/llama", tags=["license:mit", "text-generation"], gated="auto")
    preset = ask("me/llama")
    assert (preset.name, preset.revision, preset.license, preset.gated) == ("me/llama", SHA, "mit", True)
    assert (preset.weights_gib, preset.context, preset.kv_bytes_per_token) == (15.0, 131072, 131072)
    assert preset.model_source.revision == SHA
    assert (preset.lora, preset.tuning) == (True, True)


def test_the_hub_is_asked_once_and_the_revision_stays(hub_server: FakeHub, ask: Callable[..., Any]) -> None:
    hub_server.put("me/llama")
    first = ask("me/llama")
    asked = len(hub_server.asked)
    hub_server.put("me/llama", LLAMA | {"num_hidden_layers": 64})
    assert ask("me/llama") == first
    assert len(hub_server.asked) == asked


def test_a_token_is_sent_and_never_shown(hub_server: FakeHub, ask: Callable[..., Any]) -> None:
    hub_server.answers["me/secret"] = (401, {"X-Error-Message": "Invalid credentials in Authorization header"})
    with pytest.raises(HubRefused, match="does not accept the token") as raised:
        ask("me/secret", token="hf_verysecret")
    assert "Bearer hf_verysecret" in hub_server.tokens
    assert "verysecret" not in str(raised.value)
    assert raised.value.__cause__ is None


@pytest.mark.parametrize(
    ("answer", "kind", "reason", "words"),
    [
        ((404, {"X-Error-Code": "RepoNotFound"}), HubRefused, "ModelNotFound", "the hub has no model me/one"),
        ((401, {"X-Error-Code": "GatedRepo"}), HubRefused, "ModelGated", "accept its terms"),
        ((403, {"X-Error-Code": "GatedRepo"}), HubRefused, "ModelGated", "modelAccessSecret"),
        ((403, {}), HubRefused, "TokenRefused", "403"),
        ((429, {"Retry-After": "7"}), NotReadyYet, "HubRateLimited", "429"),
        ((503, {}), NotReadyYet, "HubUnavailable", "503"),
        ((400, {}), HubRefused, "ModelUnavailable", "400"),
    ],
)
def test_each_refusal_says_what_to_do(
    hub_server: FakeHub,
    ask: Callable[..., Any],
    answer: tuple[int, dict[str, str]],
    kind: type[KaitoRayError],
    reason: str,
    words: str,
) -> None:
    hub_server.answers["me/one"] = answer
    with pytest.raises(kind, match=words) as raised:
        ask("me/one")
    assert raised.value.reason == reason
    if isinstance(raised.value, NotReadyYet):
        assert raised.value.delay_s == (7 if answer[0] == 429 else 60)


@pytest.mark.parametrize(
    ("config", "files", "reason", "words"),
    [
        (LLAMA, {"README.md": 10}, "NoWeights", "no weights"),
        (LLAMA, {"adapter_model.safetensors": 10}, "NoWeights", "inference.adapters"),
        (LLAMA, {"model-q4.gguf": 10}, "NoWeights", "GGUF"),
        (None, WEIGHTS, "IncompleteModel", r"no config\.json"),
        (b"not json", WEIGHTS, "IncompleteModel", "not a JSON object"),
        ({"architectures": ["LlamaForCausalLM"]}, WEIGHTS, "IncompleteModel", "num_hidden_layers, hidden_size"),
        (LLAMA | {"architectures": []}, WEIGHTS, "IncompleteModel", "names no architecture"),
        (LLAMA | {"architectures": ["LlamaForCausalLN"]}, WEIGHTS, "UnsupportedArchitecture", "LlamaForCausalLM"),
        (LLAMA | {"layer_types": ["full_attention"] * 31}, WEIGHTS, None, ""),
        (
            LLAMA | {"sliding_window": 8, "layer_types": ["sliding_attention"]},
            WEIGHTS,
            "IncompleteModel",
            "1 layers of 32",
        ),
    ],
)
def test_a_model_that_cannot_be_served_is_told_apart(
    hub_server: FakeHub, ask: Callable[..., Any], config: Any, files: dict[str, int], reason: str | None, words: str
) -> None:
    hub_server.put("me/one", config, files)
    if reason is None:
        assert ask("me/one").cache == ()
        return
    with pytest.raises(HubRefused, match=words) as raised:
        ask("me/one")
    assert raised.value.reason == reason


def test_without_a_hub_it_is_not_ready_yet(tmp_path: Path) -> None:
    hub = Hub(CATALOGUE, endpoint="http://127.0.0.1:9", folder=tmp_path)
    with pytest.raises(NotReadyYet, match="cannot be reached") as raised:
        hub.preset("me/one")
    assert raised.value.reason == "HubUnreachable"


def test_only_ids_go_to_the_hub() -> None:
    assert find_preset("phi-4", CATALOGUE).name == "microsoft/phi-4"
    for name in ("phi-44", "a/b/c", "../etc", "a b/c", "https://example.com/x"):
        with pytest.raises(UnknownPreset):
            find_preset(name, CATALOGUE)


def test_a_cache_that_cannot_be_written_costs_only_another_question(hub_server: FakeHub, tmp_path: Path) -> None:
    hub_server.put("me/llama")
    (tmp_path / "file").write_text("in the way")
    hub = Hub(CATALOGUE, endpoint=hub_server.url, folder=tmp_path / "file" / "cache")
    assert hub.preset("me/llama") == hub.preset("me/llama")
    assert sum(path.startswith("/api/") for path in hub_server.asked) == 2


def test_the_commands_plan_a_model_of_the_hub(
    hub_server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from kaito_ray.cli import app

    monkeypatch.setenv("HF_ENDPOINT", hub_server.url)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    hub_server.put("me/llama")
    words = ["plan", "--model", "me/llama", "--instance-type", "Standard_NV72ads_A10_v5", "-o", "json"]
    (record,) = json.loads(CliRunner().invoke(app, words).stdout)
    assert (record["model"], record["weightsGiB"], record["nodes"]) == ("me/llama", 15.0, 1)
    shown = CliRunner().invoke(app, ["presets", "me/llama"])
    assert (shown.exit_code, "Standard_NV36ads_A10_v5" in shown.stdout) == (0, True)
    missing = CliRunner().invoke(app, ["plan", "--model", "me/none", "-o", "json"])
    assert missing.exit_code == 1
    assert "the hub has no model me/none" in json.loads(missing.stdout)[0]["error"]
