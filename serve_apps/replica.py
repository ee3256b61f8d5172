# SPDX-License-Identifier: Apache-2.0
"""Arguments in; one running copy of the model with its HTTP application out.

serve_apps/chat.py makes a Serve deployment of this class; Serve calls the methods. It knows nothing of Ray, so that
the whole of it can be tried without.
"""

import asyncio
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kaito_ray import names
from kaito_ray.artifacts.cache import Cache
from kaito_ray.artifacts.prepare import adapter_stager
from kaito_ray.artifacts.source import Stager
from kaito_ray.operator_key import operator_key
from kaito_ray.settings import Settings
from kaito_ray.tiny_model import cache_folder
from serve_apps import engine, legacy_chat
from serve_apps.adapters import Adapters
from serve_apps.allow_list import ROUTES, AllowList, QueueLimit
from serve_apps.api_keys import ApiKeys
from serve_apps.arguments import Arguments, UserConfig
from serve_apps.engine_log import explained
from serve_apps.model import model_location
from serve_apps.probe import sample

if TYPE_CHECKING:
    from fastapi import FastAPI

_FIRST_WAIT_S = 120.0
Report = dict[str, Any]
"""One replica: `{"replica": its id, "adapters": [...], "engine_started_at": ..., "first_token_at": ...}`."""


class Replica:
    """The engine, vLLM's HTTP app over it with our routes added, and the allow-list in front of everything."""

    def __init__(self, arguments: Arguments) -> None:
        self._arguments = arguments
        self._configured = False

    async def __serve_build_asgi_app__(self) -> AllowList:
        """Start the engine; called once, before the first `reconfigure`."""
        model = await model_location(self._arguments.model)
        options = await asyncio.to_thread(engine.namespace, self._arguments, model)
        self._engine = await engine.start_engine(options)
        self._reached = {"engine_started_at": _now()}
        # Nobody is let in before the model has said something, if it is one that does.
        if "generate" in await self._engine.get_supported_tasks():
            with explained("vLLM started, but did not make its first token"):
                if await sample(self._engine):
                    self._reached["first_token_at"] = _now()
        app = await engine.http_app(self._engine, options, [route.path for route in ROUTES])
        models, called = app.state.openai_serving_models, self._arguments.model.names
        for shown in models.base_model_paths if called else ():
            shown.model_path = called[0]  # what `/v1/models` says is the root of the model; a folder tells nobody
        self._adapters = Adapters(models, _stager(self._arguments), called)
        self._add_routes(app)
        self._state = app.state
        self._queue = QueueLimit(self._engine.scheduler_config.max_num_seqs, self._engine.get_num_unfinished_requests)
        return AllowList(app, queue=self._queue, keys=_keys(self._arguments))

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Apply what may change while serving.

        Serve lets no traffic to a replica before this is done: to a new one only when its adapters were tried, and not
        to a running one either (Ray 2.60 routes to replicas in state RUNNING), which therefore does not wait.
        """
        config = UserConfig.model_validate(user_config)
        if config.max_queued_requests is not None:
            self._queue.waiting_max = config.max_queued_requests
        engine.limit_queue(self._engine, self._queue.waiting_max)
        self._state.default_adapter = config.default_adapter
        self._adapters.apply(config.adapters, config.follow_tags_s)
        if not self._configured:
            await self._adapters.wait_until_tried(_FIRST_WAIT_S)
            self._configured = True

    async def adapter_report(self) -> Report:
        """What is loaded here, and since when this replica works."""
        return {"replica": self.replica_id, "adapters": self._adapters.states(), **self._reached}

    async def adapter_reports(self) -> list[Report]:
        """What is loaded in every replica; this one knows only of itself."""
        return [await self.adapter_report()]

    @property
    def replica_id(self) -> str:
        """What tells replicas apart."""
        return "local"

    async def check_health(self) -> None:
        """Raise when the engine is dead, so that Serve replaces this replica."""
        await self._engine.check_health()

    def _add_routes(self, app: "FastAPI") -> None:
        legacy_chat.add_route(app)

        async def running() -> dict[str, str]:
            return {"message": "Server is running"}

        async def loaded(replicas: Literal["this", "all"] = "this") -> list[dict[str, Any]]:
            return await self.adapter_reports() if replicas == "all" else self._adapters.states()

        app.add_api_route("/", running, methods=["GET"])
        app.add_api_route("/adapters", loaded, methods=["GET"])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _keys(arguments: Arguments) -> ApiKeys | None:
    if not arguments.api_keys_dir:
        return None
    token = os.environ.get("RAY_AUTH_TOKEN")  # where KubeRay puts it
    return ApiKeys(Path(arguments.api_keys_dir), operator_key=operator_key(token) if token else "")


def _stager(arguments: Arguments) -> Stager:
    """Fetches adapters, into one folder for all replicas of this machine."""
    return adapter_stager(
        Cache(cache_folder().parent / "adapters"),
        allowed=Settings.from_env(os.environ).allow_private_urls,
        auth_dir=_auth_dir(arguments),
        hub_token=os.environ.get("HF_TOKEN"),
    )


def _auth_dir(arguments: Arguments) -> Path:
    return Path(arguments.registry_auth_dir or names.REGISTRY_AUTH_DIR)
