# SPDX-License-Identifier: Apache-2.0
"""What stands between the network and vLLM's own app: which routes exist, who may call them, and how much.

A pure ASGI application, called by Ray Serve for every request, with vLLM's app behind it. vLLM serves far more than
inference (adapter admin, pausing, weights, scaling), and its own key check skips several of these, so only the
routes named here exist at all; everything else is 404, however it is spelled. The body of a request is read here,
within limits of size and time, before it counts as work: a slow or endless sender never holds a place in the queue.
"""

import asyncio
import gc
import json
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

from prometheus_client import Counter
from starlette.routing import Route as StarletteRoute
from starlette.routing import Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_apps.api_keys import ApiKeys
from serve_apps.front import UNWATCHED


class Route(NamedTuple):
    """One way in. `work` routes take a body and end up in the engine, so the queue limit applies to them."""

    method: str
    path: str
    work: bool = False


ROUTES = (
    Route("POST", "/v1/chat/completions", work=True),
    Route("POST", "/chat", work=True),
    Route("POST", "/v1/completions", work=True),
    Route("POST", "/v1/responses", work=True),
    Route("POST", "/v1/messages", work=True),
    Route("POST", "/v1/embeddings", work=True),
    Route("POST", "/tokenize", work=True),
    Route("POST", "/detokenize", work=True),
    Route("GET", "/v1/models"),
    Route("GET", "/adapters"),
    Route("GET", "/health"),
    Route("GET", "/metrics"),
    Route("GET", "/version"),
    Route("GET", "/"),
)

MAX_BODY_BYTES = 8 * 1024 * 1024
MAX_BUFFERED_BYTES = 32 * MAX_BODY_BYTES
"""Of all bodies still being received, together."""
BODY_TIMEOUT_S = 30.0
_NOTICE_S = 5.0
_LARGE_BYTES = 256 * 1024

# Compared with the path as it came over the wire, so that no other spelling of an allowed path is one.
_TABLE = {(route.method, route.path.encode()): route for route in ROUTES}

# KAITO's name, so that its dashboards and alerts keep working.
_REJECTED = Counter("kaito_ratelimit_rejected", "Requests answered 429 because too many were waiting")


class QueueLimit:
    """How many requests may wait for a place in the engine.

    `width` is how many the engine works on at once (max_num_seqs) and `unfinished` tells how many it has, waiting
    ones included. Requests that are on their way to the engine are counted here.
    """

    def __init__(self, width: int, unfinished: Callable[[], int]) -> None:
        self._width = width
        self._unfinished = unfinished
        self._inside = 0
        self.waiting_max = width
        """Requests that may wait; as many as the engine's width, KAITO's rule, until somebody says otherwise."""

    def full(self) -> bool:
        """Whether one more request would have to wait behind too many."""
        return max(self._inside, self._unfinished()) >= self._width + self.waiting_max

    def enter(self) -> None:
        """A request is let in."""
        self._inside += 1

    def leave(self) -> None:
        """A request that was let in is answered or gone."""
        self._inside -= 1


class AllowList:
    """The ASGI application in front of `app`."""

    def __init__(self, app: ASGIApp, *, queue: QueueLimit, keys: ApiKeys | None = None) -> None:
        self._app = app
        self._queue = queue
        self._keys = keys
        self._buffered = 0
        # Serve matches requests against these to label its metrics, and nothing else.
        self.router = Router(
            [StarletteRoute(route.path, _never, methods=[route.method]) for route in ROUTES], redirect_slashes=False
        )
        self.routes = self.router.routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await _refuse_websocket(scope, send)
            return
        route = _TABLE.get((scope["method"], scope["raw_path"]))
        if self._keys and not _may_enter(self._keys, route, scope["headers"]):
            await _refuse(
                send,
                401,
                "A valid API key is needed: Authorization: Bearer <key>",
                "invalid_api_key",
                headers=((b"www-authenticate", b"Bearer"),),
            )
        elif route is None:
            await _refuse(send, 404, "Not Found", 404, kind="Not Found")
        elif not route.work:
            await self._app(scope, receive, send)
        else:
            await self._work(scope, receive, send)

    async def _work(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                body = await self._body(scope["headers"], receive)
        except TimeoutError:
            await _refuse(send, 408, f"The body did not arrive within {BODY_TIMEOUT_S:.0f} s", 408)
            return
        except _TooLarge as error:
            await _refuse(send, 413, str(error), 413)
            return
        if body is None:
            return
        queue = self._queue
        if queue.full():
            _REJECTED.inc()
            # KAITO's answer.
            await _refuse(
                send,
                429,
                "Too many requests are waiting, try again later",
                "rate_limit_exceeded",
                kind="requests",
                headers=((b"retry-after", b"1"),),
            )
            return
        queue.enter()
        try:
            answer = self._app(scope, _replay(body, receive), send)
            await (answer if UNWATCHED in scope else _told_not_cancelled(answer))
        finally:
            queue.leave()
            if len(body) > _LARGE_BYTES:
                # An error keeps what it refused in a cycle with its traceback, which only the collector frees.
                gc.collect(1)

    async def _body(self, headers: Iterable[tuple[bytes, bytes]], receive: Receive) -> bytes | None:
        """The whole body; None when the client left."""
        message = await receive()
        if message["type"] != "http.request":
            return None
        body: bytes = message.get("body", b"")
        if not message.get("more_body", False):
            if len(body) > MAX_BODY_BYTES:
                raise _TooLarge
            return body
        announced = next((value for name, value in headers if name == b"content-length"), b"0")
        if int(announced) > MAX_BODY_BYTES:
            raise _TooLarge
        return await self._long_body(body, receive)

    async def _long_body(self, first: bytes, receive: Receive) -> bytes | None:
        chunks, size, more = [first], len(first), True
        self._buffered += size
        try:
            while more:
                if size > MAX_BODY_BYTES or self._buffered > MAX_BUFFERED_BYTES:
                    raise _TooLarge
                message = await receive()
                if message["type"] != "http.request":
                    return None
                chunk = message.get("body", b"")
                chunks.append(chunk)
                size += len(chunk)
                self._buffered += len(chunk)
                more = message.get("more_body", False)
            if size > MAX_BODY_BYTES:
                raise _TooLarge
            return b"".join(chunks)
        finally:
            self._buffered -= size


def _may_enter(keys: ApiKeys, route: Route | None, headers: list[tuple[bytes, bytes]]) -> bool:
    path = route.path if route else ""
    return path == "/health" or keys.allow(headers) or (path == "/adapters" and keys.is_operator(headers))


class _TooLarge(Exception):
    def __str__(self) -> str:
        return f"The body is larger than {MAX_BODY_BYTES} bytes, or too many large bodies arrive at once"


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once and then what follows it, which is the disconnect."""
    pending = True

    async def replay() -> Message:
        nonlocal pending
        if pending:
            pending = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay


async def _told_not_cancelled(answer: Awaitable[None]) -> None:
    """Where Serve cancels a request because its client has left: let the ASGI message end it (serve_apps/front.py)."""
    task = asyncio.ensure_future(answer)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task], timeout=_NOTICE_S)
        task.cancel()
        raise


async def _refuse(
    send: Send,
    status: int,
    message: str,
    code: int | str,
    *,
    kind: str = "invalid_request_error",
    headers: tuple[tuple[bytes, bytes], ...] = (),
) -> None:
    body = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


async def _refuse_websocket(scope: Scope, send: Send) -> None:
    if "websocket.http.response" in scope.get("extensions", {}):
        await send({"type": "websocket.http.response.start", "status": 404, "headers": []})
        await send({"type": "websocket.http.response.body", "body": b""})
    else:
        await send({"type": "websocket.close", "code": 1008})


async def _never(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001
    raise AssertionError("these routes are for matching alone")
