# SPDX-License-Identifier: Apache-2.0
"""`kaito-ray run` as a user has it: one manifest, a real engine behind real Ray Serve, curl and the openai client."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
import yaml

from kaito_ray.tiny_corpus import QUESTIONS
from kaito_ray.tiny_model import model_path
from waiting import free_port, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

QUESTION, ANSWER = QUESTIONS[0]
KEY = "key-of-team-a"
START_S = 240


@dataclass
class Run:
    """A `kaito-ray run` under way."""

    process: subprocess.Popen[str]
    manifest: Path
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {KEY}"}
        return httpx.post(f"{self.url}{path}", json=body, headers=headers, timeout=60, **options)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", headers={"Authorization": f"Bearer {KEY}"}, timeout=60)

    def says(self, text: str) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return text in self.log.read_text()


def documents(adapters: list[dict[str, Any]]) -> str:
    workspace = {
        "apiVersion": "kaito.sh/v1beta1",
        "kind": "Workspace",
        "metadata": {"name": "tiny", "annotations": {"kaito-ray.io/api-keys": "keys"}},
        "resource": {"labelSelector": {"matchLabels": {"apps": "tiny"}}},
        "inference": {"preset": {"name": "tiny-phi-3"}, "config": "flags", "adapters": adapters},
    }
    # A narrow engine, so that a test can fill it.
    flags = yaml.safe_dump({"vllm": {"max-num-seqs": "2"}})
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "flags"},
        "data": {"inference_config.yaml": flags},
    }
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "stringData": {"team-a": KEY}}
    return yaml.safe_dump_all([workspace, config, secret])


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter with random weights, which changes what the model says."""
    folder = tmp_path_factory.mktemp("adapter")
    code = (
        "import sys, torch; from peft import LoraConfig, get_peft_model\n"
        "from transformers import AutoModelForCausalLM\n"
        "torch.manual_seed(1)\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "config = LoraConfig(r=8, target_modules='all-linear', init_lora_weights=False, task_type='CAUSAL_LM')\n"
        "get_peft_model(model, config).save_pretrained(sys.argv[2])\n"
    )
    subprocess.run([sys.executable, "-c", code, str(model_path()), str(folder)], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("run")
    manifest, log, port = folder / "workspace.yaml", folder / "stderr", free_port()
    manifest.write_text(documents([]))
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("kaito-ray")), "run", str(manifest), "--port", str(port)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            # A laptop needs no compiler.
            env={**os.environ, "CXX": "no-compiler", "TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled")},
        )
    run = Run(process, manifest, port, log)
    try:
        until(lambda: run.says("ready"), START_S, log.read_text)
        yield run
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=30)
        if process.stdout is not None:
            process.stdout.close()


def test_chat_with_curl(run: Run) -> None:
    body = json.dumps({"prompt": QUESTION, "generate_kwargs": {"do_sample": False}, "return_full_text": False})
    url = f"{run.url}/chat"
    shown = subprocess.run(
        [
            *["curl", "-sS", "-H", "content-type:application/json", "-H"],
            f"Authorization: Bearer {KEY}",
            "-d",
            body,
            url,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(shown.stdout)["Result"].strip() == ANSWER


def test_openai_client(run: Run) -> None:
    client = openai.OpenAI(base_url=f"{run.url}/v1", api_key=KEY)
    assert [model.id for model in client.models.list()] == ["tiny-phi-3"]
    messages: Any = [{"role": "user", "content": QUESTION}]
    whole = client.chat.completions.create(model="tiny-phi-3", messages=messages, temperature=0)
    assert whole.choices[0].message.content == ANSWER
    parts = client.chat.completions.create(model="tiny-phi-3", messages=messages, temperature=0, stream=True)
    texts = [part.choices[0].delta.content or "" for part in parts]
    assert "".join(texts) == ANSWER
    assert sum(map(bool, texts)) > 3
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="no-such-adapter", messages=messages)


@pytest.mark.parametrize("path", ["/v1/load_lora_adapter", "/pause", "/invocations", "//invocations", "/%69nvocations"])
def test_routes_of_the_engine_are_hidden(run: Run, path: str) -> None:
    assert run.post(path, {}).status_code == 404


def test_keys(run: Run) -> None:
    assert httpx.get(f"{run.url}/v1/models").status_code == 401
    wrong = httpx.get(f"{run.url}/v1/models", headers={"Authorization": "Bearer wrong"})
    assert wrong.status_code == 401
    assert httpx.get(f"{run.url}/health").status_code == 200
    assert run.get("/v1/models").status_code == 200


def test_bad_input(run: Run) -> None:
    missing = run.post("/chat", {})
    assert missing.status_code == 400
    assert "prompt" in missing.text
    broken = httpx.post(f"{run.url}/chat", content="{", headers={"Authorization": f"Bearer {KEY}"})
    assert broken.status_code == 400
    assert run.post("/chat", {"prompt": "x", "generate_kwargs": {"no_such_knob": 1}}).status_code == 400


def test_full_queue(run: Run) -> None:
    body = {"model": "tiny-phi-3", "prompt": "a", "max_tokens": 400, "ignore_eos": True}

    def status(_: int) -> int:
        return run.post("/v1/completions", body).status_code

    with ThreadPoolExecutor(40) as pool:
        statuses = set(pool.map(status, range(40)))
    assert statuses == {200, 429}


def test_saved_adapter_is_live(run: Run, adapter: Path) -> None:
    entry = {"source": {"name": "fun", "volumeSource": {"hostPath": {"path": str(adapter)}}}, "strength": "1.0"}
    run.manifest.write_text(documents([entry]))
    until(lambda: [each["state"] for each in run.get("/adapters").json()] == ["Ready"], 60, run.log.read_text)
    body: dict[str, Any] = {"prompt": QUESTION, "return_full_text": False, "generate_kwargs": {"do_sample": False}}
    base = run.post("/chat", body).json()["Result"]
    assert run.post("/chat", body | {"model": "fun"}).json()["Result"] != base
    until(lambda: run.says("fun is live, rank 8, sha256:"), 30, run.log.read_text)

    saved = run.manifest.with_suffix(".new")  # as an editor saves: by renaming over the file
    saved.write_text(documents([]))
    saved.rename(run.manifest)
    until(lambda: run.get("/adapters").json() == [], 60, run.log.read_text)
    assert run.post("/chat", body | {"model": "fun"}).status_code == 404


def test_an_adapter_that_is_refused_is_told_where_the_edit_was_made(run: Run, tmp_path: Path) -> None:
    entry = {"source": {"name": "gone", "volumeSource": {"hostPath": {"path": str(tmp_path / "nowhere")}}}}
    run.manifest.write_text(documents([entry]))
    until(lambda: run.says("gone is not loaded: "), 60, run.log.read_text)
    assert run.get("/v1/models").status_code == 200
    run.manifest.write_text(documents([]))
    until(lambda: run.get("/adapters").json() == [], 60, run.log.read_text)


def test_a_bad_edit_changes_nothing(run: Run) -> None:
    run.manifest.write_text(documents([]).replace("tiny-phi-3", "no-such-model"))
    until(lambda: run.says("not applied"), 30, run.log.read_text)
    assert run.get("/v1/models").status_code == 200
    run.manifest.write_text(documents([]))


def test_interrupt_leaves_nothing(run: Run) -> None:
    """Last in this file: it ends the run."""
    started = psutil.Process(run.process.pid).children(recursive=True)
    assert any("raylet" in process.name() for process in started)
    os.kill(run.process.pid, signal.SIGINT)
    assert run.process.wait(timeout=10) == 0
    assert [process for process in started if process.is_running()] == []
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{run.url}/health")
    assert run.process.stdout is not None
    assert run.process.stdout.read() == ""
