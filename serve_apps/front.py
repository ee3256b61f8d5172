# SPDX-License-Identifier: Apache-2.0
"""Who notices that a client has left: vLLM, not Serve.

Serve watches each request's connection with two tasks and a queue, and cancels the request when the client leaves.
vLLM's handlers watch it as well, end the generation on the ASGI message that says so, and leave it running to its end
when they are cancelled instead. So Serve is told not to watch, through the header it has for that.

Serve calls `middlewares` by the import path in RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH (kaito_ray/serve_config.py),
and puts what it returns in front of its own handling of HTTP, in replicas as in its proxies.
"""

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

UNWATCHED = "kaito-ray.unwatched"
"""In the scope of requests that nobody in front of the app will cancel."""
_HEADER = (b"x-request-disconnect-disabled", b"?1")


class Unwatched:
    """Marks every HTTP request as one that Serve need not watch."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on."""
        if scope["type"] == "http":
            # Serve takes the last of several.
            scope["headers"].append(_HEADER)
            scope[UNWATCHED] = True
        await self._app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """What Serve puts in front of every HTTP request."""
    return [Middleware(Unwatched)]
