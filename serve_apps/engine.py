# SPDX-License-Identifier: Apache-2.0
"""The arguments of a replica in; a running vLLM engine and vLLM's own HTTP app over it out.

Called by serve_apps/replica.py. Everything that depends on vLLM's inner modules, which move with each of
its releases, is here; tests/apps/test_server.py says so when they have moved.
"""

import asyncio
import gc
import json
from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from http import HTTPStatus
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

from serve_apps.arguments import Arguments
from serve_apps.engine_log import explained

if TYPE_CHECKING:
    from fastapi import FastAPI
    from vllm.v1.engine.async_llm import AsyncLLM

MAX_CHOICES = 128
"""Most `n` of one request; vLLM accepts 16384 by default, which keeps a server busy for minutes."""
Lifespan = Callable[["FastAPI"], AbstractAsyncContextManager[Any]]


def command_line(engine: Mapping[str, Any]) -> list[str]:
    """The flags as vLLM's command line takes them.

    >>> command_line({"max-model-len": 512, "enable-lora": True, "speculative-config": {"method": "ngram"}})
    ['--enable-lora', '--max-model-len=512', '--speculative-config={"method": "ngram"}']
    """
    words: list[str] = []
    for flag, value in sorted(engine.items()):
        if value is True:
            words.append(f"--{flag}")
        elif value is False:
            words.append(f"--no-{flag}")
        elif isinstance(value, list | tuple):
            words += [f"--{flag}", *map(str, value)]
        elif isinstance(value, Mapping):
            words.append(f"--{flag}={json.dumps(value)}")
        elif value is not None:
            words.append(f"--{flag}={value}")
    return words


def namespace(arguments: Arguments, model: str) -> Namespace:
    """What vLLM's server makes of its command line. `model` is a hub id or a folder; blocks for some seconds."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    words = [f"--model={model}", f"--served-model-name={arguments.served_model_name}"]
    if arguments.model.revision:
        words.append(f"--revision={arguments.model.revision}")
    # No documentation pages: the allow-list hides them, and their schema takes seconds to build.
    words += ["--disable-fastapi-docs", *_cpu_flags(arguments.engine), *command_line(arguments.engine)]
    parser = make_arg_parser(FlexibleArgumentParser())
    parser.error = _refuse  # argparse would end the process
    parsed: Namespace = parser.parse_args(words)
    validate_parsed_serve_args(parsed)
    return parsed


def _cpu_flags(engine: Mapping[str, Any]) -> list[str]:
    from vllm.platforms import current_platform

    return (
        ["--worker-extension-cls=serve_apps.cpu_lora.AdapterArithmetic"]
        if (engine.get("enable-lora") and current_platform.is_cpu())
        else []
    )


def _refuse(message: str) -> NoReturn:
    raise ValueError(f"vLLM does not take these engine arguments: {message}")


def limit_queue(engine: "AsyncLLM", waiting_max: int) -> None:
    """Let the engine itself refuse what exceeds the queue limit by more than one request's choices.

    The allow-list counts requests; only the engine sees that one of them holds ten thousand prompts. Its own limit
    (max_num_queued_reqs) would answer 503, as if this server were at fault.
    """
    from vllm.exceptions import GracefulHTTPError, VLLMValidationError

    room = engine.scheduler_config.max_num_seqs + waiting_max + MAX_CHOICES

    def check_admission(n: int = 1, request_id: str | None = None) -> None:  # noqa: ARG001 vLLM's signature
        if n > MAX_CHOICES:
            raise VLLMValidationError(f"n must be at most {MAX_CHOICES}, got {n}", parameter="n", value=n)
        if engine.get_num_unfinished_requests() + n > room:
            raise GracefulHTTPError("Too many requests are waiting, try again later", HTTPStatus.TOO_MANY_REQUESTS)

    engine.check_admission = check_admission


async def start_engine(options: Namespace) -> "AsyncLLM":
    """Start the engine's processes and load the model: seconds to minutes, off the event loop.

    Raises RuntimeError with the reason that the failing process gave.
    """
    with explained("vLLM did not start"):
        engine = await asyncio.to_thread(_start_engine, options)
    # As vLLM's server does: the pictures it warmed up with need not stay in memory.
    await engine.reset_mm_cache()
    return engine


def _start_engine(options: Namespace) -> "AsyncLLM":
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    arguments = AsyncEngineArgs.from_cli_args(options)
    # The context of vLLM's own server: some defaults, such as max_num_seqs, hang on it.
    context = UsageContext.OPENAI_API_SERVER
    return AsyncLLM.from_vllm_config(
        arguments.create_engine_config(usage_context=context),
        usage_context=context,
        enable_log_requests=arguments.enable_log_requests,
        disable_log_stats=arguments.disable_log_stats,
    )


async def http_app(engine: "AsyncLLM", options: Namespace, paths: Sequence[str]) -> "FastAPI":
    """The OpenAI server of vLLM itself as an ASGI app that has the routes named, as far as the model offers them."""
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app
    from vllm.envs import enable_envs_cache

    tasks = await engine.get_supported_tasks()
    app: FastAPI = build_app(options, tasks, engine.model_config)
    await init_app_state(engine, app.state, options, tasks)
    _slim(app, paths)
    # vLLM asks for its settings dozens of times per request, and reads the environment each time.
    enable_envs_cache()
    # A request makes hundreds of objects that live until its answer: look for garbage less often than every 700.
    gc.set_threshold(5_000, 10, 10)
    # When the engine has died, vLLM asks its own uvicorn server to exit. Here Serve replaces the replica instead.
    app.state.server = SimpleNamespace()
    app.router.lifespan_context = _ending_with(app.router.lifespan_context, engine)
    return app


def _slim(app: "FastAPI", paths: Sequence[str]) -> None:
    """Take out what no request needs: each takes its time from every request, or from every token of a stream.

    Routes that the allow-list hides would be matched first, and twice. Of the middleware, CORS has nothing to say
    where preflight requests are refused, request metrics are Serve's, and scaling belongs to elastic experts.
    """
    order = {path: number for number, path in enumerate(paths)}
    kept = [route for route in app.router.routes if getattr(route, "path", None) in order]
    app.router.routes[:] = sorted(kept, key=lambda route: order[getattr(route, "path", "")])
    unneeded = {"CORSMiddleware", "PrometheusInstrumentatorMiddleware", "ScalingMiddleware"}
    app.user_middleware[:] = [each for each in app.user_middleware if each.cls.__name__ not in unneeded]  # type: ignore[attr-defined]


def _ending_with(lifespan: Lifespan, engine: "AsyncLLM") -> Lifespan:
    """The app's lifespan, at whose end the engine's processes end too."""

    @asynccontextmanager
    async def longer(app: "FastAPI") -> AsyncIterator[Any]:
        try:
            async with lifespan(app) as state:
                yield state
        finally:
            await asyncio.to_thread(engine.shutdown)

    return longer
