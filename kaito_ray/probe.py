# SPDX-License-Identifier: Apache-2.0
"""`/healthz`, `/readyz` and `/metrics` of the operator, over HTTP. Started by operator/main.py."""

import logging
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from kaito_ray.metrics import REGISTRY

logger = logging.getLogger(__name__)


async def serve_probes(port: int, waits_for: Callable[[], list[str]]) -> web.AppRunner:
    """Serve on `port`; `waits_for` names what is missing until the operator is of use. Clean the runner up to stop."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")  # that the loop answers is what is asked

    async def readyz(_: web.Request) -> web.Response:
        missing = waits_for()
        return web.Response(
            text=f"waits for {', '.join(missing)}\n" if missing else "ok\n", status=503 if missing else 200
        )

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    try:
        await web.TCPSite(runner, port=port).start()
    except OSError as error:
        # Two operators on one machine, as in development: the second one works as well without probes.
        logger.warning("no probes and metrics on port %s: %s", port, error.strerror)
    return runner
