# SPDX-License-Identifier: Apache-2.0
"""The API over HTTP on a port of 127.0.0.1."""

import asyncio

from aiohttp import web

from cluster.api import Api
from cluster.exchange import Request, Response
from cluster.failure import Failure, no_such_resource
from cluster.faults import Dropped
from cluster.port_forward import backend_of, check_access, forward
from cluster.target import parse_target

_BODY_MAX = 3 * 1024 * 1024


class Listener:
    """Serves an Api; `start` and `stop` run in the loop that serves."""

    def __init__(self, api: Api, port: int = 0) -> None:
        self._api = api
        self._port = port
        self._runner: web.ServerRunner | None = None
        self.url = ""

    async def start(self) -> None:
        """Listen, on a free port unless one was asked for."""
        server = web.Server(self._answer, access_log=None)
        self._runner = web.ServerRunner(server, handle_signals=False, shutdown_timeout=0.5)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"

    async def stop(self) -> None:
        """End the watches, then the server."""
        for watch in list(self._api.watching.open):
            watch.stop()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, incoming: web.BaseRequest) -> web.StreamResponse:
        if incoming.headers.get("Upgrade", "").lower() == "websocket":
            return await self._forward(incoming)
        body = await _body(incoming)
        if len(body) > _BODY_MAX:
            refusal = Failure("RequestEntityTooLarge", f"Request entity too large: limit is {_BODY_MAX}", code=413)
            return web.json_response(refusal.status, status=refusal.code)
        request = Request(
            incoming.method,
            incoming.path,
            dict(incoming.query),
            {name.lower(): value for name, value in incoming.headers.items()},
            body,
        )
        try:
            response = await self._api.handle(request)
            if response.stream is not None:
                return await self._stream(incoming, response)
        except (Dropped, ConnectionAbortedError):
            if incoming.transport is not None:
                incoming.transport.abort()
            return web.Response()
        answer = web.Response(
            status=response.code, body=response.body, headers=[("Content-Type", response.content_type)]
        )
        for name, value in response.headers:
            answer.headers.add(name, value)
        return answer

    async def _forward(self, incoming: web.BaseRequest) -> web.StreamResponse:
        try:
            target = parse_target(self._api.registry, incoming.path)
            if target.subresource != "portforward":
                raise no_such_resource()
            check_access(self._api, target, self._api.user_of(incoming.headers.get("authorization", "")))
            host, port = backend_of(self._api, (target.namespace, target.name))
        except Failure as refusal:
            return web.json_response(refusal.status, status=refusal.code)
        return await forward(incoming, host, port)

    async def _stream(self, incoming: web.BaseRequest, response: Response) -> web.StreamResponse:
        answer = web.StreamResponse(status=response.code)
        answer.content_type = response.content_type
        answer.enable_chunked_encoding()
        await answer.prepare(incoming)
        stream = response.stream
        assert stream is not None
        try:
            async for chunk in stream:
                await answer.write(chunk)
            await answer.write_eof()
        except (ConnectionResetError, asyncio.CancelledError):
            # The client has gone; nobody is left to tell.
            pass
        finally:
            await stream.aclose()  # type: ignore[attr-defined]
        return answer


async def _body(incoming: web.BaseRequest) -> bytes:
    """The whole body, up to a little more than the API allows: past aiohttp's own limit of one MiB."""
    parts = []
    size = 0
    while size <= _BODY_MAX and (part := await incoming.content.readany()):
        parts.append(part)
        size += len(part)
    return b"".join(parts)
