# SPDX-License-Identifier: Apache-2.0
"""The server as a Workspace runs it: Serve config, HAProxy, Ray Serve, vLLM, a model; one start for all of it.

The tests run in the order of the file: the last ones kill the engine and take the application away.
"""

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from kaito_ray.serve_config import serve_config
from serve_rig import BASE, ServeRig
from waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300), pytest.mark.filterwarnings("default")]

KEY = "sk-of-the-test"
WIDTH, WAITING = 4, 2
QUESTION = {"role": "user", "content": "What is Kubernetes?"}
LONG: dict[str, Any] = {"model": BASE, "prompt": "What is Ray?", "max_tokens": 1500, "ignore_eos": True}


class KeyedRig(ServeRig):
    """A rig with API keys and a queue that is soon full."""

    keys: Path

    def deploy(self, adapters: Any = ()) -> None:
        plan = replace(
            self.plan, adapters=tuple(adapters), max_queued_requests=WAITING, max_ongoing_requests=1000, replicas=1
        )
        self.ray.deploy(serve_config(plan, port=self.port, api_keys_dir=str(self.keys)))


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyedRig]:
    folder = tmp_path_factory.mktemp("serving")
    (folder / "keys").mkdir()
    (folder / "keys" / "key").write_text(f"{KEY}\n")
    rig = KeyedRig(folder, replicas=1, engine={"max-num-seqs": WIDTH})
    rig.keys = folder / "keys"
    try:
        rig.start()
        yield rig
    finally:
        rig.stop()


@pytest.fixture(scope="module")
def http(rig: KeyedRig) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=rig.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60, trust_env=False
    ) as client:
        yield client


@pytest.fixture(scope="module")
def client(rig: KeyedRig) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{rig.url}/v1", api_key=KEY, max_retries=0) as opened:
        yield opened


def running(http: httpx.Client) -> float:
    """Requests in the engine, waiting ones included."""
    lines = http.get("/metrics").text.splitlines()
    gauges = ("vllm:num_requests_running{", "vllm:num_requests_waiting{")
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(gauges))


def test_chat_as_kaito_had_it(http: httpx.Client) -> None:
    answer = http.post("/chat", json={"prompt": "What is Kubernetes?", "generate_kwargs": {"do_sample": False}})
    assert answer.status_code == 200
    [(name, text)] = answer.json().items()
    assert name == "Result"
    assert text.startswith("What is Kubernetes? Kubernetes is")
    assert answer.headers["x-request-id"]


def test_chat_with_messages_and_as_a_stream(http: httpx.Client) -> None:
    body = {"messages": [QUESTION], "generate_kwargs": {"do_sample": False}}
    plain = http.post("/chat", json=body).json()["Result"]
    assert plain.startswith("Kubernetes is")
    lines = [line for line in http.post("/chat", json=body | {"stream": True}).text.splitlines() if line]
    assert lines.pop() == "data: [DONE]"
    assert "".join(json.loads(line.removeprefix("data: "))["Result"] for line in lines) == plain


def test_the_openai_client_works_unchanged(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [BASE]
    request: dict[str, Any] = {"model": BASE, "messages": [QUESTION], "temperature": 0}
    plain = client.chat.completions.create(**request).choices[0].message.content
    assert plain
    assert plain.startswith("Kubernetes is")
    chunks = client.chat.completions.create(**request, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == plain
    completion = client.completions.create(model=BASE, prompt="What is Kubernetes?", max_tokens=8, temperature=0)
    assert completion.choices[0].text
    assert client.responses.create(model=BASE, input="What is Kubernetes?", temperature=0).output_text == plain


def test_a_request_id_comes_back(http: httpx.Client) -> None:
    answer = http.post("/chat", json={"prompt": "x"}, headers={"X-Request-Id": "mine"})
    assert answer.headers.get_list("x-request-id") == ["mine"]


@pytest.mark.parametrize(
    ("path", "status"),
    [("/health", 200), ("/", 401), ("/v1/models", 401), ("/metrics", 401), ("/adapters", 401), ("/pause", 401)],
)
def test_without_a_key(rig: KeyedRig, path: str, status: int) -> None:
    answers = [
        httpx.get(f"{rig.url}{path}", headers=headers, trust_env=False)
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"X-Api-Key": KEY})
    ]
    assert {answer.status_code for answer in answers} == {status}
    assert httpx.post(f"{rig.url}/chat?key={KEY}", json={"prompt": "x"}, trust_env=False).status_code == 401


@pytest.mark.parametrize(
    "target",
    """/invocations /v1/load_lora_adapter /v1/unload_lora_adapter /pause /update_weights /scale_elastic_ep /sleep
    //chat /chat/ /./chat /chat;x /%63hat /%69nvocations /Chat /v1/../pause /metricsx /openapi.json""".split(),  # noqa: SIM905
)
def test_other_routes_are_404(rig: KeyedRig, target: str) -> None:
    head = (
        f"POST {target} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 2\r\n"
        "Connection: close\r\n\r\n{}"
    )
    with socket.create_connection(("127.0.0.1", rig.port), timeout=10) as wire:
        wire.sendall(head.encode())
        assert wire.makefile("rb").readline().split()[1] == b"404"


@pytest.mark.parametrize(
    ("path", "content", "status"),
    [
        ("/chat", b"{}", 400),
        ("/chat", b"{", 400),
        ("/chat", b'{"prompt": "x", "generate_kwargs": {"num_beams": 2}}', 400),
        ("/chat", b'{"prompt": "x", "model": "nobody"}', 404),
        ("/v1/chat/completions", b"{", 400),
        ("/v1/chat/completions", json.dumps({"model": BASE, "messages": [QUESTION], "n": 16384}).encode(), 400),
        ("/v1/chat/completions", json.dumps({"model": "nobody", "messages": [QUESTION]}).encode(), 404),
        ("/v1/completions", json.dumps({"model": BASE, "prompt": "x " * 5000}).encode(), 400),
        ("/v1/completions", b"x" * 10 * 2**20, 413),
    ],
)
def test_bad_input(http: httpx.Client, path: str, content: bytes, status: int) -> None:
    answer = http.post(path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text


def test_too_many_requests(http: httpx.Client) -> None:
    def ask(_: int) -> httpx.Response:
        return http.post("/v1/completions", json=LONG | {"max_tokens": 200})

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(16)))
    assert {answer.status_code for answer in answers} == {200, 429}
    assert sum(answer.status_code == 200 for answer in answers) >= WIDTH + WAITING
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert refused.headers["retry-after"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_the_engine(rig: KeyedRig, http: httpx.Client, stream: bool) -> None:
    until(lambda: running(http) == 0, 10)
    content = json.dumps(LONG | {"stream": stream}).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {KEY}\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", rig.port)) as wire:
        wire.sendall(head.encode() + content)
        until(lambda: running(http) == 1, 10)
    started = time.monotonic()
    until(lambda: running(http) == 0, 10)
    # Far less than its 1500 tokens take.
    assert time.monotonic() - started < 2


@pytest.mark.usefixtures("rig")
def test_rays_exporter_has_vllms_metrics() -> None:
    import ray

    [node] = ray.nodes()  # type: ignore[no-untyped-call]
    url = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
    # Handed over every ten seconds, and shown by the exporter ten seconds later at the latest.
    until(lambda: "ray_vllm_generation_tokens_total{" in httpx.get(url, trust_env=False).text, 40)
    lines = httpx.get(url, trust_env=False).text.splitlines()
    [tokens] = [line for line in lines if line.startswith("ray_vllm_generation_tokens_total{")]
    assert float(tokens.rpartition(" ")[2]) > 100
    assert f'model_name="{BASE}"' in tokens
    assert 'replica="' in tokens


@pytest.mark.usefixtures("rig")
def test_an_idle_server_rests() -> None:
    engines = _engines()
    assert len(engines) == 1
    for engine in engines:
        engine.cpu_percent()
    time.sleep(2)
    assert engines[0].cpu_percent() < 20


def _engines() -> list[psutil.Process]:
    """The engine's processes, of this test's own descendants."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.name().startswith("VLLM::"):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_a_dead_engine_is_noticed_and_replaced(rig: KeyedRig, http: httpx.Client) -> None:
    [before] = rig.replicas()
    [engine] = _engines()
    engine.kill()
    until(lambda: http.get("/health").status_code >= 500, 20)
    assert http.post("/chat", json={"prompt": "x"}).status_code >= 500
    until(lambda: http.get("/health").status_code == 200, 120)
    answer = http.post("/chat", json={"prompt": "What is Kubernetes?"})
    assert answer.json()["Result"].startswith("What is Kubernetes?")
    until(lambda: [replica["replica_id"] for replica in rig.replicas()] != [before["replica_id"]], 10)


def test_what_runs_may_finish_when_the_application_goes(rig: KeyedRig, http: httpx.Client) -> None:
    body = LONG | {"stream": True, "max_tokens": 600}
    with http.stream("POST", "/v1/completions", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        rig.ray.deploy({"applications": []})
        assert [line for line in lines if line][-1] == "data: [DONE]"
    until(lambda: not _engines(), 30)


def test_an_engine_that_cannot_start_says_why(rig: KeyedRig) -> None:
    # A few pages of cache, for a context of thousands of tokens.
    engine = dict(rig.plan.engine) | {"kv-cache-memory-bytes": 2**20}
    rig.ray.deploy(serve_config(replace(rig.plan, engine=engine), port=rig.port))
    until(lambda: "vLLM did not start" in rig.ray.application()[1], 60)
    message = rig.ray.application()[1]
    assert "KV cache memory" in message
    assert "lower max-model-len" in message
