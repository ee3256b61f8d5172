# SPDX-License-Identifier: Apache-2.0
"""The Serve application of a Workspace: one deployment, one hop from the proxy to vLLM's own server.

`build(args)` is the import path in `serveConfigV2`, which kaito_ray/serve_config.py writes. A replica holds the
engine, vLLM's HTTP app over it with `/chat`, `/adapters` and `/` added, and the allow-list in front of everything.
The environment that the Ray processes need is in kaito_ray/serve_config.py as well.

By hand, on a machine with the packages of extra `serve-cpu`, `kaito-ray run` does all of this.
"""

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve import Application

from kaito_ray import names
from serve_apps import engine, legacy_chat
from serve_apps.adapters import Adapters
from serve_apps.allow_list import AllowList, QueueLimit
from serve_apps.api_keys import ApiKeys
from serve_apps.arguments import Arguments, Model, UserConfig

if TYPE_CHECKING:
    from fastapi import FastAPI

logger = logging.getLogger(__name__)


def build(args: dict[str, Any]) -> Application:
    """The application for finished arguments; raises pydantic's ValidationError naming what is wrong with them."""
    return Chat.bind(Arguments.model_validate(args))  # type: ignore[attr-defined, no-any-return]


@serve.deployment(name=names.SERVE_DEPLOYMENT)
@serve.ingress()
class Chat:
    """One copy of the model. Serve calls every method here."""

    def __init__(self, arguments: Arguments) -> None:
        self._arguments = arguments

    async def __serve_build_asgi_app__(self) -> AllowList:
        """Start the engine; called once, before the first `reconfigure`."""
        model = await model_location(self._arguments.model)
        options = await asyncio.to_thread(engine.namespace, self._arguments, model)
        self._engine = await engine.start_engine(options)
        app = await engine.http_app(self._engine, options)
        self._adapters = Adapters(app.state.openai_serving_models)
        _add_routes(app, self._adapters)
        self._queue = QueueLimit(self._engine.scheduler_config.max_num_seqs, self._engine.get_num_unfinished_requests)
        folder = self._arguments.api_keys_dir
        return AllowList(app, queue=self._queue, keys=ApiKeys(Path(folder)) if folder else None)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Apply what may change while serving; Serve lets no traffic to a new replica before this is done."""
        config = UserConfig.model_validate(user_config)
        self._queue.waiting_max = config.max_queued_requests
        await self._adapters.apply(config.adapters)

    async def check_health(self) -> None:
        """Raise when the engine is dead, so that Serve replaces this replica."""
        await self._engine.check_health()

    async def __del__(self) -> None:
        if hasattr(self, "_engine"):
            await asyncio.to_thread(self._engine.shutdown)


async def model_location(model: Model) -> str:
    """What vLLM's `--model` takes: a hub id or a folder of this machine, made or fetched first where needed."""
    if model.kind == "builtin":
        from kaito_ray.tiny_model import model_path

        return str(await asyncio.to_thread(model_path))
    return model.reference


def _add_routes(app: "FastAPI", adapters: Adapters) -> None:
    legacy_chat.add_route(app)

    async def running() -> dict[str, str]:
        return {"message": "Server is running"}

    async def loaded() -> list[dict[str, Any]]:
        return adapters.states()

    app.add_api_route("/", running, methods=["GET"])
    app.add_api_route("/adapters", loaded, methods=["GET"])
