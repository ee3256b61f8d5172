# SPDX-License-Identifier: Apache-2.0
"""Requests in; what reaches the app behind the allow-list, or the refusal, out."""

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest

from kaito_ray.operator_key import operator_key
from serve_apps import allow_list
from serve_apps.allow_list import MAX_BODY_BYTES, ROUTES, AllowList, QueueLimit
from serve_apps.api_keys import ApiKeys
from serve_apps.front import middlewares

KEY = "sk-correct"


@dataclass
class Answer:
    status: int = 0
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""

    @property
    def error(self) -> dict[str, Any]:
        error = json.loads(self.body)["error"]
        assert isinstance(error, dict)
        return error


class Behind:
    """The app behind: remembers what reached it, and answers 200 with the body it read."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.paths.append(scope["path"])
        body = b""
        if scope["method"] == "POST":
            body = (await receive())["body"]
            await self.go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})


def front(behind: Any, *, keys: ApiKeys | None = None, width: int = 1000, waiting: int = 1000) -> AllowList:
    queue = QueueLimit(width, lambda: 0)
    queue.waiting_max = waiting
    return AllowList(behind, queue=queue, keys=keys)


async def ask(
    app: AllowList,
    method: str,
    raw_path: str,
    *,
    headers: dict[str, str] | None = None,
    chunks: Iterable[bytes] = (b"{}",),
) -> Answer:
    parts = list(chunks)
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": part, "more_body": number < len(parts)} for number, part in enumerate(parts, 1)
    ]
    answer = Answer()

    async def receive() -> Any:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = dict(message["headers"])
        else:
            answer.body += message.get("body", b"")

    await app(
        {
            "type": "http",
            "method": method,
            "path": unquote_to_bytes(raw_path).decode("latin-1"),
            "raw_path": raw_path.encode("latin-1"),
            "query_string": b"",
            "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
        },
        receive,
        send,
    )
    return answer


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
async def test_what_is_on_the_list_gets_through(route: allow_list.Route) -> None:
    behind = Behind()
    answer = await ask(front(behind), route.method, route.path, chunks=[b'{"prompt":', b' "x"}'])
    assert answer.status == 200
    assert behind.paths == [route.path]
    assert answer.body == (b'{"prompt": "x"}' if route.method == "POST" else b"")


# Among others, every route of vLLM 0.32 beside those on the list.
OFF_THE_LIST = """
    /v1/load_lora_adapter /v1/unload_lora_adapter /invocations /ping /pause /resume /is_paused /update_weights
    /scale_elastic_ep /is_scaling_elastic_ep /collective_rpc /reset_prefix_cache /reset_mm_cache /sleep /wake_up
    /is_sleeping /server_info /load /docs /redoc /openapi.json /score /v1/score /rerank /v1/rerank /v2/rerank /pooling
    /classify /render /derender /inference/v1/generate /start_profile /stop_profile /abort_requests /tokenizer_info
    /v1/audio/transcriptions /v1/audio/translations /v1/responses/x /v1/responses/x/cancel /v1/messages/count_tokens
    /kv_event_sources /generative_scoring /v1/chat/completions/batch /init_weight_transfer_engine /get_world_size
    //chat /chat/ /chat// /./chat /x/../chat /chat/../chat /chat/. /chat;x /chat;jsessionid=1 /%63hat /cha%74 /Chat
    /CHAT /chat%20 /chat%00 /chat%2f /%2fchat /chat%3f /chat# \\chat /chat\\ /v1//models /v1/models/
    /v1/../v1/models /v1%2fmodels /v1/Models /V1/models /metrics/ /metricsx /metrics/x /health/ /health/x
    /%69nvocations /invocations/ //invocations /v1/chat/completions/ /v1/chat/completions/../../../invocations
    chat http://x/chat * /admin /.. /adapters/x
"""
METHODS = ("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE", "chat")


async def test_nothing_else_exists() -> None:
    behind = Behind()
    app = front(behind)
    found = {
        (method, path)
        for path in OFF_THE_LIST.split()
        for method in METHODS
        if (await ask(app, method, path)).status != 404
    }
    assert not found
    assert behind.paths == []


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
async def test_only_its_own_method(route: allow_list.Route) -> None:
    others = {"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "get", "post"} - {route.method}
    others -= {other.method for other in ROUTES if other.path == route.path}
    app = front(Behind())
    assert {(await ask(app, method, route.path)).status for method in others} == {404}


async def test_websockets_do_not_exist() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def never_asked() -> Any:
        raise AssertionError

    scope = {"type": "websocket", "path": "/v1/realtime", "raw_path": b"/v1/realtime", "headers": []}
    behind = Behind()
    await front(behind)(scope | {"extensions": {"websocket.http.response": {}}}, never_asked, send)
    await front(behind)(scope, never_asked, send)
    assert sent[0]["status"] == 404
    assert sent[-1]["type"] == "websocket.close"
    assert behind.paths == []


@pytest.fixture
def keys(tmp_path: Path) -> ApiKeys:
    (tmp_path / "first").write_text(f"{KEY}\n")
    (tmp_path / "second").write_text("sk-other")
    return ApiKeys(tmp_path)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        f"Bearer {KEY.upper()}",
        KEY,
        f"Basic {KEY}",
        f"Bearer {KEY}, Bearer {KEY}",
        "Bearer sk-correct\\n",
        "Bearer \u00e9",
    ],
)
async def test_without_a_key_nothing_but_health(keys: ApiKeys, header: str | None) -> None:
    behind = Behind()
    app = front(behind, keys=keys)
    headers = {} if header is None else {"Authorization": header}
    for route in ROUTES:
        answer = await ask(app, route.method, route.path, headers=headers)
        if route.path == "/health":
            assert answer.status == 200
        else:
            assert answer.status == 401
            assert answer.headers[b"www-authenticate"] == b"Bearer"
            assert answer.error["code"] == "invalid_api_key"
            assert KEY.encode() not in answer.body
    assert behind.paths == ["/health"]


@pytest.mark.parametrize(("given", "opened"), [(operator_key("ray"), {"/adapters", "/health"}), ("ray", {"/health"})])
async def test_the_operator_reads_what_is_loaded_and_no_more(tmp_path: Path, given: str, opened: set[str]) -> None:
    app = front(Behind(), keys=ApiKeys(tmp_path, operator_key=operator_key("ray")))
    statuses = {
        route.path: (await ask(app, route.method, route.path, headers={"X-Kaito-Ray-Operator": given})).status
        for route in ROUTES
    }
    assert {path for path, status in statuses.items() if status == 200} == opened


async def test_a_key_in_the_url_is_none(keys: ApiKeys) -> None:
    answer = await ask(front(Behind(), keys=keys), "POST", f"/chat?api_key={KEY}")
    assert answer.status == 401


@pytest.mark.parametrize("header", [f"Bearer {KEY}", f"bearer {KEY}", "Bearer sk-other", f"Bearer   {KEY}"])
async def test_any_of_the_keys_opens(keys: ApiKeys, header: str) -> None:
    app = front(Behind(), keys=keys)
    assert (await ask(app, "POST", "/chat", headers={"Authorization": header})).status == 200
    assert (await ask(app, "POST", "/pause", headers={"Authorization": header})).status == 404


async def test_changed_keys_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_apps.api_keys.RECHECK_S", 0.0)
    app = front(Behind(), keys=ApiKeys(tmp_path))

    async def status(key: str) -> int:
        return (await ask(app, "GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})).status

    assert await status("one") == 401
    (tmp_path / "key").write_text("one")
    assert await status("one") == 200
    (tmp_path / "key").write_text("two")
    assert (await status("one"), await status("two")) == (401, 200)
    (tmp_path / "key").unlink()
    assert await status("two") == 401


async def test_a_secret_as_kubelets_mount_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_apps.api_keys.RECHECK_S", 0.0)
    for version, key in (("v1", "one"), ("v2", "two")):
        (tmp_path / f"..{version}").mkdir()
        (tmp_path / f"..{version}" / "key").write_text(key)
    data, spare = tmp_path / "..data", tmp_path / "..spare"
    data.symlink_to("..v1")
    (tmp_path / "key").symlink_to("..data/key")
    keys = ApiKeys(tmp_path)
    assert keys.allow([(b"authorization", b"Bearer one")])
    spare.symlink_to("..v2")
    spare.rename(data)
    assert keys.allow([(b"authorization", b"Bearer two")])
    assert not keys.allow([(b"authorization", b"Bearer one")])


@pytest.mark.parametrize("size", [0, 1, MAX_BODY_BYTES])
async def test_bodies_up_to_the_limit(size: int) -> None:
    answer = await ask(front(Behind()), "POST", "/chat", chunks=[b"x" * (size // 2), b"x" * (size - size // 2)])
    assert (answer.status, len(answer.body)) == (200, size)


@pytest.mark.parametrize(
    ("chunks", "headers"),
    [
        ([b"x" * (MAX_BODY_BYTES + 1)], {}),
        ([b"x" * MAX_BODY_BYTES, b"x"], {}),
        ([b"x" * (1024 * 1024)] * 20, {"Transfer-Encoding": "chunked"}),
        # Refused by what it announces, before it is read.
        ([b"x", b"x"], {"Content-Length": str(MAX_BODY_BYTES + 1)}),
    ],
)
async def test_longer_bodies_are_refused(chunks: list[bytes], headers: dict[str, str]) -> None:
    behind = Behind()
    assert (await ask(front(behind), "POST", "/chat", chunks=chunks, headers=headers)).status == 413
    assert behind.paths == []


async def test_many_long_bodies_at_once_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allow_list, "MAX_BUFFERED_BYTES", 1000)
    app = front(Behind())
    never = asyncio.Event()

    async def receive() -> Any:
        if sent:
            await never.wait()
        sent.append(1)
        return {"type": "http.request", "body": b"x" * 900, "more_body": True}

    async def ignore(_: Any) -> None: ...

    sent: list[int] = []
    scope = {"type": "http", "method": "POST", "path": "/chat", "raw_path": b"/chat", "headers": []}
    slow = asyncio.create_task(app(scope, receive, ignore))
    while not sent:  # noqa: ASYNC110 the app gives no event
        await asyncio.sleep(0)
    assert (await ask(app, "POST", "/chat", chunks=[b"x" * 100] * 3)).status == 413
    slow.cancel()
    await asyncio.gather(slow, return_exceptions=True)
    assert (await ask(app, "POST", "/chat", chunks=[b"x" * 100] * 3)).status == 200


async def test_a_slow_body_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allow_list, "BODY_TIMEOUT_S", 0.01)
    answer = Answer()

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        answer.status = message.get("status", answer.status)

    scope = {"type": "http", "method": "POST", "path": "/chat", "raw_path": b"/chat", "headers": []}
    await front(Behind())(scope, receive, send)
    assert answer.status == 408


async def test_a_client_that_leaves_before_its_body_ends_costs_nothing() -> None:
    behind = Behind()

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise AssertionError(message)

    scope = {"type": "http", "method": "POST", "path": "/chat", "raw_path": b"/chat", "headers": []}
    await front(behind)(scope, receive, send)
    assert behind.paths == []


async def test_more_than_may_wait_get_429() -> None:
    behind = Behind()
    behind.go.clear()
    app = front(behind, width=2, waiting=3)
    asked = [asyncio.create_task(ask(app, "POST", "/chat")) for _ in range(12)]
    while len(behind.paths) < 5:  # noqa: ASYNC110 the app gives no event
        await asyncio.sleep(0)
    # What costs no place in the engine still answers.
    assert (await ask(app, "GET", "/health")).status == 200
    behind.go.set()
    answers = await asyncio.gather(*asked)
    assert sorted(answer.status for answer in answers) == [200] * 5 + [429] * 7
    refused = next(answer for answer in answers if answer.status == 429)
    assert refused.error["type"] == "requests"
    assert refused.error["code"] == "rate_limit_exceeded"
    assert int(refused.headers[b"retry-after"]) >= 1
    assert (await ask(app, "POST", "/chat")).status == 200


async def test_what_waits_in_the_engine_counts_too() -> None:
    in_engine = [0]
    queue = QueueLimit(4, lambda: in_engine[0])
    app = AllowList(Behind(), queue=queue)
    for in_engine[0], status in ((7, 200), (8, 429), (100, 429), (0, 200)):
        assert (await ask(app, "POST", "/v1/completions")).status == status
    queue.waiting_max = 0
    in_engine[0] = 4
    assert (await ask(app, "POST", "/v1/completions")).status == 429


async def test_a_request_that_fails_gives_its_place_back() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001
        raise RuntimeError("no")

    app = front(broken, width=1, waiting=0)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            await ask(app, "POST", "/chat")


@pytest.mark.parametrize("unwatched", [True, False])
async def test_the_app_is_told_that_its_client_left(unwatched: bool) -> None:
    """As Serve does it where it watches: the message is there, and the request is cancelled at once."""
    gone, started = asyncio.Event(), asyncio.Event()
    told: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001
        await receive()
        started.set()
        told.append(await receive())

    async def receive() -> Any:
        if started.is_set():
            await gone.wait()
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": b"{}"}

    async def send(message: Any) -> None:
        raise AssertionError(message)

    scope = {"type": "http", "method": "POST", "path": "/chat", "raw_path": b"/chat", "headers": []}
    if unwatched:
        await front_middleware(scope)
    request = asyncio.create_task(front(app)(scope, receive, send))
    await started.wait()
    gone.set()
    if not unwatched:
        request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    assert told == [{"type": "http.disconnect"}]


async def front_middleware(scope: Any) -> None:
    """What Serve sees of a request behind serve_apps/front.py."""
    seen: list[Any] = []

    async def serve(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001
        seen.append(dict(scope["headers"])[b"x-request-disconnect-disabled"])

    [middleware] = middlewares()
    await middleware.cls(serve)(scope, None, None)  # type: ignore[call-arg, arg-type]
    assert seen == [b"?1"]
