# SPDX-License-Identifier: Apache-2.0
"""What runs behind Services, answering a real API server: one server at the address that all simulated pods share.

The API server's proxy dials the pod's address and says in `X-Forwarded-Uri` which Service was asked for. It dials no
loopback address, so this machine's own is taken; where a port of it is in use, or the API server cannot reach it,
nothing answers.
"""

import re
import socket
from collections.abc import Callable, Mapping
from typing import NamedTuple

from aiohttp import web


class Question(NamedTuple):
    """A request to a Service; `token` is what it says to Ray in `X-Ray-Authorization`."""

    method: str
    namespace: str
    service: str
    path: str
    query: Mapping[str, str]
    token: str
    body: bytes


Reply = tuple[int, bytes]
"""The status and the body."""

Answer = Callable[[Question], Reply | None]

# Ray Serve's and its dashboard's.
_PORTS = (8000, 8265)
_ASKED = re.compile(r".*/namespaces/([^/]+)/services/(?:https?:)?([^:/]+)[^/]*/proxy/(.*)")


class Answers:
    """A server for `answer`."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._runner = web.AppRunner(self._application())
        self.works = False

    def _application(self) -> web.Application:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._handle)
        return application

    async def start(self) -> None:
        """Listen, in the running loop."""
        await self._runner.setup()
        try:
            for port in _PORTS:
                await web.TCPSite(self._runner, own_address(), port).start()
        except OSError:
            await self._runner.cleanup()
        else:
            self.works = True

    async def stop(self) -> None:
        """Listen no more."""
        if self.works:
            await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.Response:
        asked = _ASKED.fullmatch(request.headers.get("X-Forwarded-Uri", ""))
        if asked is None:
            return web.Response(status=503)
        token = request.headers.get("X-Ray-Authorization", "")
        question = Question(request.method, asked[1], asked[2], asked[3], request.query, token, await request.read())
        status, body = self._answer(question) or (503, b"")
        return web.Response(status=status, body=body, content_type="application/json")


def own_address() -> str:
    """The address that this machine uses towards others."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("198.51.100.1", 9))
        return str(probe.getsockname()[0])
