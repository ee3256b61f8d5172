# SPDX-License-Identifier: Apache-2.0
"""The whole replica over HTTP, with vLLM's own frontend and a fake engine core behind it.

The core repeats the prompt's tokens, so every answer can be told from its question.
"""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from safetensors.numpy import save_file

from serve_apps.arguments import Arguments, Model
from serve_apps.replica import Replica
from waiting import until

pytestmark = [pytest.mark.timeout(180), pytest.mark.filterwarnings("default")]

MODEL = "tiny"
CONTEXT = 512
WIDTH = 4
QUESTION = "What is Ray?"


class Server:
    """A replica behind uvicorn, in a thread with an event loop of its own."""

    def __init__(self, model: Path, **arguments: Any) -> None:
        import fake_core

        self._cores = fake_core.install(step_s=0.002)
        self._arguments = Arguments(
            model=Model(kind="path", reference=str(model), names=("org/tiny", MODEL)),
            served_model_name=MODEL,
            engine={
                "dtype": "float32",
                "enable-lora": True,
                "enforce-eager": True,
                "kv-cache-memory-bytes": 2**26,
                "max-model-len": CONTEXT,
                "max-num-seqs": WIDTH,
            },
            **arguments,
        )
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.replica = Replica(self._arguments)
        app = await self.replica.__serve_build_asgi_app__()
        await self.replica.reconfigure({"max_queued_requests": 8})
        self._uvicorn = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, ws="websockets-sansio"))
        task = asyncio.create_task(self._uvicorn.serve())
        while not self._uvicorn.started:  # noqa: ASYNC110 uvicorn gives no event
            await asyncio.sleep(0.01)
        [listening] = self._uvicorn.servers[0].sockets
        self.port = listening.getsockname()[1]
        self._ready.set()
        await task

    @property
    def core(self) -> Any:
        return self._cores[-1]

    def call(self, coroutine: Any) -> Any:
        """Run a coroutine in the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def __enter__(self) -> "Server":
        self._thread.start()
        assert self._ready.wait(120)
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self._uvicorn.should_exit = True
        self._thread.join(30)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Configuration and tokenizer of a model, and weights that the fake core does not look at."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Phi3Config, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([QUESTION], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|pad|>")
    tokenizer.chat_template = (
        "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}<|assistant|>"
    )
    tokenizer.save_pretrained(folder)
    Phi3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=CONTEXT,
        original_max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=3,
        pad_token_id=0,
        architectures=["Phi3ForCausalLM"],
        dtype="float32",
    ).save_pretrained(folder)
    save_file({"lm_head.weight": np.zeros((len(tokenizer), 32), np.float32)}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Server]:
    with Server(model) as running:
        yield running


def question(**more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 8} | more


# /chat as KAITO had it


@pytest.mark.parametrize(
    ("body", "result"),
    [
        ({"prompt": QUESTION, "generate_kwargs": {"max_new_tokens": 3}}, QUESTION + "What is Ray"),
        ({"prompt": QUESTION, "return_full_text": False, "generate_kwargs": {"max_new_tokens": 3}}, "What is Ray"),
        # max_length counts the prompt, here of four tokens.
        ({"prompt": QUESTION, "generate_kwargs": {"max_length": 6}}, QUESTION + "What is"),
        ({"prompt": QUESTION, "prefix": "Hm. ", "generate_kwargs": {"max_new_tokens": 4}}, QUESTION + "Hm. "),
        ({"prompt": "a b", "generate_kwargs": {"max_new_tokens": 3, "num_return_sequences": 2}}, "a ba ba ba b"),
        (
            {
                "prompt": "a .",
                "return_full_text": False,
                "clean_up_tokenization_spaces": True,
                "generate_kwargs": {"max_new_tokens": 3},
            },
            "a.",
        ),
        ({"prompt": QUESTION, "model": MODEL, "generate_kwargs": {"max_new_tokens": 3}}, QUESTION + "What is Ray"),
    ],
)
def test_chat_continues_a_prompt(server: Server, body: dict[str, Any], result: str) -> None:
    answer = server.http.post("/chat", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"Result": result}


def test_chat_answers_messages_through_the_template(server: Server) -> None:
    body = {"messages": [{"role": "user", "content": QUESTION}], "generate_kwargs": {"max_new_tokens": 5}}
    # The template's special tokens are in the prompt and not in the text.
    assert server.http.post("/chat", json=body).json() == {"Result": QUESTION}


def test_a_long_prompt_is_cut_only_on_request(server: Server) -> None:
    prompt = "b" * (CONTEXT - 3) + "aaa"
    body = {"prompt": prompt, "return_full_text": False, "generate_kwargs": {"max_new_tokens": 2}}
    refused = server.http.post("/chat", json=body)
    assert refused.status_code == 400
    assert str(CONTEXT) in refused.json()["detail"]
    cut = server.http.post("/chat", json=body | {"handle_long_generation": "hole"})
    assert cut.json() == {"Result": "bb"}
    longer = server.http.post("/chat", json=body | {"prompt": prompt + "a"})
    assert longer.status_code == 400


def test_chat_streams_the_same_text(server: Server) -> None:
    body = {"prompt": QUESTION, "generate_kwargs": {"max_new_tokens": 5}}
    plain = server.http.post("/chat", json=body).json()["Result"]
    streamed = server.http.post("/chat", json=body | {"stream": True})
    assert streamed.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in streamed.text.splitlines() if line]
    assert events.pop() == "[DONE]"
    pieces = [json.loads(event)["Result"] for event in events]
    assert len(pieces) > 3
    assert "".join(pieces) == plain


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({}, 400, "Text generation parameter prompt required"),
        ({"messages": []}, 400, "Conversational parameter messages required"),
        ({"prompt": "x", "model": "nobody"}, 404, "nobody"),
        ({"prompt": "x", "generate_kwargs": {"temperature": 7}}, 400, "generate_kwargs.temperature"),
        ({"prompt": "x", "generate_kwargs": {"num_beams": 2}}, 400, "generate_kwargs.num_beams"),
        ({"prompt": "x" * 300}, 400, "max_length"),
        ({"prompt": "x", "generate_kwargs": {"eos_token_id": -5}}, 400, "eos_token_id"),
        ({"prompt": "x", "generate_kwargs": {"stop": ""}}, 400, "stop"),
        ({"messages": [{"role": "user"}]}, 400, ""),
        ({"messages": [{"content": "x"}]}, 400, ""),
    ],
)
def test_chat_says_what_is_wrong(server: Server, body: dict[str, Any], status: int, words: str) -> None:
    answer = server.http.post("/chat", json=body)
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["detail"]
    assert words in answer.json()["detail"]


# vLLM's own routes


def test_chat_completions(server: Server) -> None:
    answer = server.http.post("/v1/chat/completions", json=question()).json()
    assert answer["choices"][0]["message"]["content"].startswith(QUESTION)
    assert answer["usage"]["completion_tokens"] == 8


def test_completions_stream(server: Server) -> None:
    body = {"model": MODEL, "prompt": QUESTION, "max_tokens": 4, "stream": True}
    events = server.http.post("/v1/completions", json=body).text.split()
    texts = [json.loads(line)["choices"][0]["text"] for line in _data(events)]
    assert "".join(texts) == QUESTION


def _data(words: list[str]) -> list[str]:
    joined = " ".join(words)
    return [event.strip() for event in joined.split("data:") if event.strip() and "[DONE]" not in event]


def test_responses_and_messages(server: Server) -> None:
    responses = server.http.post("/v1/responses", json={"model": MODEL, "input": QUESTION, "max_output_tokens": 8})
    assert QUESTION in responses.text
    messages = server.http.post("/v1/messages", json=question())
    assert QUESTION in messages.text


def test_tokens_there_and_back(server: Server) -> None:
    tokens = server.http.post("/tokenize", json={"model": MODEL, "prompt": QUESTION}).json()["tokens"]
    assert server.http.post("/detokenize", json={"model": MODEL, "tokens": tokens}).json() == {"prompt": QUESTION}


def test_what_the_server_says_of_itself(server: Server) -> None:
    assert server.http.get("/").json() == {"message": "Server is running"}
    assert server.http.get("/health").status_code == 200
    assert "version" in server.http.get("/version").json()
    assert server.http.get("/adapters").json() == []
    [card] = server.http.get("/v1/models").json()["data"]
    assert (card["id"], card["root"], card["max_model_len"]) == (MODEL, "org/tiny", CONTEXT)
    metrics = server.http.get("/metrics").text
    assert "vllm:num_requests_running" in metrics
    assert "kaito_ratelimit_rejected_total" in metrics


def test_an_unknown_model_is_404(server: Server) -> None:
    assert server.http.post("/v1/chat/completions", json=question(model="nobody")).status_code == 404


def test_request_ids_do_not_collide(server: Server) -> None:
    headers = {"X-Request-Id": "the-same"}

    def ask(_: int) -> int:
        return server.http.post("/v1/chat/completions", json=question(), headers=headers).status_code

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(ask, range(4))) == {200}


def test_what_a_browser_needs_to_ask_across_sites_is_not_given(server: Server) -> None:
    headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    assert server.http.options("/v1/chat/completions", headers=headers).status_code == 404
    answer = server.http.get("/v1/models", headers={"Origin": "http://evil.example"})
    assert "access-control-allow-origin" not in answer.headers


# What would hurt


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"])
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b'"x"', b"null", b"[" * 50_000, b'{"a":' * 50_000, b'{"model": NaN}', b"{}" * 2],
)
def test_broken_bodies_are_4xx(server: Server, path: str, content: bytes) -> None:
    answer = server.http.post(path, content=content, headers={"content-type": "application/json"})
    assert 400 <= answer.status_code < 500, answer.text
    assert len(answer.content) < 5000


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/v1/chat/completions", {"max_tokens": -1}),
        ("/v1/chat/completions", {"temperature": -1}),
        ("/v1/chat/completions", {"max_tokens": 10**30}),
        ("/v1/chat/completions", {"logprobs": True, "top_logprobs": 10**6}),
        ("/v1/chat/completions", {"messages": []}),
        ("/v1/chat/completions", {"messages": "hi"}),
        ("/v1/chat/completions", {"logit_bias": {"x": 1}}),
        ("/v1/chat/completions", {"stop": ["x"] * 3, "n": 0}),
        ("/v1/chat/completions", {"n": 16384}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 5000}]}),
        ("/v1/completions", {"prompt": "x" * 5000}),
        ("/v1/completions", {"prompt": [10**9]}),
        ("/v1/completions", {"prompt": [-1]}),
        ("/v1/completions", {"prompt": QUESTION, "n": 16384}),
        ("/v1/completions", {"prompt": QUESTION, "best_of": 16384, "n": 16384}),
    ],
)
def test_absurd_values_are_4xx(server: Server, path: str, more: dict[str, Any]) -> None:
    answer = server.http.post(path, json=question(**more))
    assert 400 <= answer.status_code < 500, answer.text
    assert server.http.get("/health").status_code == 200


def test_a_long_body_is_413_also_in_chunks(server: Server) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(160):
            yield b"x" * 65536

    with httpx.Client(base_url=server.http.base_url, timeout=30) as http:
        assert http.post("/chat", content=b"x" * 10 * 2**20).status_code == 413
    with httpx.Client(base_url=server.http.base_url, timeout=30) as http:
        assert http.post("/v1/completions", content=chunks()).status_code == 413
    assert server.http.post("/v1/chat/completions", json=question()).status_code == 200


@pytest.mark.parametrize(
    "target",
    """//chat /chat/ /./chat /x/../chat /chat/. /chat;x /%63hat /Chat /chat%20 /chat%2f /%69nvocations /invocations
    /v1/../pause /pause /v1//models /metrics/x /metricsx /v1/load_lora_adapter /openapi.json /docs *
    http://127.0.0.1/pause""".split(),  # noqa: SIM905 one long list reads worse
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_other_spellings_are_404_over_the_wire(server: Server, method: str, target: str) -> None:
    head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as wire:
        wire.sendall(head.encode())
        status = wire.makefile("rb").readline().split()[1]
    assert status in (b"404", b"400")


def test_a_websocket_is_404(server: Server) -> None:
    head = (
        "GET /v1/realtime HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as wire:
        wire.sendall(head.encode())
        assert wire.makefile("rb").readline().split()[1] == b"404"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", question(max_tokens=400)),
        ("/chat", {"prompt": QUESTION, "generate_kwargs": {"max_new_tokens": 400}}),
    ],
)
def test_a_client_that_leaves_ends_its_generation(
    server: Server, path: str, body: dict[str, Any], stream: bool
) -> None:
    content = json.dumps(body | {"stream": stream}).encode()
    before = len(server.core.aborted)
    with socket.create_connection(("127.0.0.1", server.port)) as wire:
        wire.sendall(
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n\r\n".encode()
            + content
        )
        until(lambda: bool(server.core.requests), 10)
    until(lambda: len(server.core.aborted) > before, 10)
    assert not server.core.requests


def test_too_many_requests_get_429_and_the_others_their_answer(server: Server) -> None:
    def ask(_: int) -> httpx.Response:
        with httpx.Client(timeout=60) as http:
            return http.post(f"{server.http.base_url}/v1/chat/completions", json=question(max_tokens=100))

    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(ask, range(40)))
    assert {answer.status_code for answer in answers} == {200, 429}
    served = [answer for answer in answers if answer.status_code == 200]
    assert len(served) >= WIDTH + 8
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert refused.headers["retry-after"]
    counter = next(
        line
        for line in server.http.get("/metrics").text.splitlines()
        if line.startswith("kaito_ratelimit_rejected_total ")
    )
    assert float(counter.split()[-1]) >= len(answers) - len(served)


def test_one_body_may_not_hold_a_thousand_prompts(server: Server) -> None:
    body = {"model": MODEL, "prompt": [QUESTION] * 1000, "max_tokens": 4}
    answer = server.http.post("/v1/completions", json=body)
    assert answer.status_code == 429, answer.text
    until(lambda: not server.core.requests, 10)


def test_the_queue_limit_changes_while_serving(server: Server) -> None:
    server.call(server.replica.reconfigure({"max_queued_requests": 0}))
    slow = question(max_tokens=300)
    with ThreadPoolExecutor(WIDTH) as pool:
        running = [pool.submit(server.http.post, "/v1/chat/completions", json=slow) for _ in range(WIDTH)]
        until(lambda: len(server.core.requests) == WIDTH, 10)
        assert server.http.post("/v1/chat/completions", json=question()).status_code == 429
        server.call(server.replica.reconfigure({"max_queued_requests": 8}))
        assert server.http.post("/v1/chat/completions", json=question()).status_code == 200
        assert {each.result().status_code for each in running} == {200}


# Keys, and the end: each with a server of its own


def test_keys(model: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-right\n")
    with Server(model, api_keys_dir=str(tmp_path)) as server:
        right = {"Authorization": "Bearer sk-right"}
        assert server.http.get("/health").status_code == 200
        for headers in ({}, {"Authorization": "Bearer sk-wrong"}, {"Authorization": "Basic sk-right"}):
            for path in ("/", "/v1/models", "/metrics", "/version", "/adapters", "/tokenize", "/pause"):
                assert server.http.get(path, headers=headers).status_code == 401
            assert server.http.post("/chat?key=sk-right", json={"prompt": "x"}, headers=headers).status_code == 401
        assert server.http.post("/v1/chat/completions", json=question(), headers=right).status_code == 200
        assert server.http.post("/chat", json={"prompt": "x"}, headers=right).status_code == 200
        assert server.http.post("/pause", headers=right).status_code == 404


def test_a_dead_engine_is_unhealthy(model: Path) -> None:
    with Server(model) as server:
        server.call(server.replica.check_health())
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(server.http.post, "/v1/chat/completions", json=question(max_tokens=400))
            until(lambda: bool(server.core.requests), 10)
            server.loop.call_soon_threadsafe(server.core.die)
            assert running.result().status_code == 500
        assert server.http.get("/health").status_code == 503
        with pytest.raises(Exception, match="EngineCore"):
            server.call(server.replica.check_health())
        assert server.http.post("/chat", json={"prompt": "x"}).status_code == 500


def test_arguments_that_vllm_does_not_know(model: Path) -> None:
    replica = Replica(
        Arguments(
            model=Model(kind="path", reference=str(model)),
            served_model_name=MODEL,
            engine={"max-model-length": 5},
        )
    )
    with pytest.raises(ValueError, match="max-model-length"):
        asyncio.run(replica.__serve_build_asgi_app__())
