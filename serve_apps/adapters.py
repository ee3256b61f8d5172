# SPDX-License-Identifier: Apache-2.0
"""The adapters of one replica: brings what is loaded in line with what `user_config` asks for.

serve_apps/replica.py calls `apply` for every change of `user_config`, and `GET /adapters` shows `states`. One bad
adapter is reported there and never raised: Serve would take the whole replica for unhealthy.

Each adapter that is asked for has a task of its own, which fetches, checks and loads it, and tries again later while
its source is down. A change starts and cancels tasks and is done; so the newest wish counts, whatever the one before
it was busy with, and a slow source holds up nobody else.

A new version of an adapter is loaded beside the old one under a name and number of its own, and clients' name moves
over when it is ready. Requests that run keep the old weights, which leave the engine when the last of them ends.
vLLM's own `load_inplace` would swap weights under running requests, and reload them from disk at every step after.
"""

import asyncio
import contextlib
import logging
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kaito_ray.artifacts.base import Base, read_base
from kaito_ray.artifacts.prepare import Prepared, prepare_adapter
from kaito_ray.artifacts.reason import Reason
from kaito_ray.artifacts.source import Stager
from kaito_ray.errors import AdapterRefused, ArtifactUnavailable, KaitoRayError
from serve_apps.arguments import Adapter
from serve_apps.probe import Probabilities, sample

logger = logging.getLogger(__name__)

_RETIRE_POLL_S = 0.5
_RETRY_MAX_S = 300.0
_TOGETHER = 4


@dataclass(frozen=True, slots=True)
class AdapterState:
    """One line of `GET /adapters`. `state` is Loading, Ready or Failed; `error` is empty when all is good.

    `source` and `strength` are those asked for. One that is Loading or Failed may still answer with the version before;
    then digest, rank, size and time are of that one.
    """

    name: str
    source: dict[str, Any]
    digest: str = ""
    strength: float = 1.0
    rank: int = 0
    size_bytes: int = 0
    state: str = "Loading"
    reason: str = ""
    error: str = ""
    loaded_at: str = ""


@dataclass(slots=True)
class _Loaded:
    """What the engine has under a client's name; its files stay in the cache, since the engine reads them again."""

    request: Any
    prepared: Prepared
    silent: bool = False
    """Whether it changes nothing."""


class Adapters:
    """`models` is vLLM's OpenAIServingModels, which resolves the `model` of every request.

    `names` is what the model is called, where it lies in a folder that does not say.
    """

    def __init__(self, models: Any, stager: Stager, names: Collection[str] = ()) -> None:
        self._models = models
        self._engine = models.engine_client
        self._stager = stager
        self._wanted: dict[str, Adapter] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._tried: dict[str, asyncio.Event] = {}
        self._states: dict[str, AdapterState] = {}
        self._loaded: dict[str, _Loaded] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Semaphore(_TOGETHER)
        # The engine stands still while it loads, and loads all that it was asked for before the next step: so one at a
        # time, with the step of its sample between it and the next.
        self._engine_turn = asyncio.Lock()
        self._base: asyncio.Task[Base] | None = None
        self._plain: asyncio.Task[Probabilities] | None = None
        if self._engine.vllm_config.lora_config is not None:
            # Before the first adapter comes: reading headers takes a moment, and so does an engine's first answer.
            self._base = asyncio.create_task(asyncio.to_thread(_read_base, self._engine.model_config, models, names))
            self._plain = asyncio.create_task(sample(self._engine))
        self._follow_s: float | None = None
        _show_clients_names(models)

    def states(self) -> list[dict[str, Any]]:
        """Every adapter that is asked for, by name."""
        return [asdict(self._states[name]) for name in sorted(self._states)]

    def apply(self, wanted: Sequence[Adapter], follow_s: float | None = None) -> None:
        """Ask for these adapters; returns at once.

        With `follow_s` the tags of images are looked up again every so many seconds.
        """
        followed, self._follow_s = self._follow_s, follow_s
        before, self._wanted = self._wanted, {adapter.name: adapter for adapter in wanted}
        for name in before.keys() - self._wanted.keys():
            self._cancel(name)
            self._unload(name)
        for name, adapter in self._wanted.items():
            known = self._states.get(name)
            if known is not None and known.state == "Ready" and _pinned(before.get(name), known.digest) == adapter:
                self._states[name] = replace(known, source=adapter.source)
            elif before.get(name) != adapter or known is None or known.state == "Failed" or followed != follow_s:
                self._cancel(name)
                self._start(adapter)

    async def wait_until_tried(self, timeout_s: float) -> None:
        """Return when each adapter that is asked for was tried once, or after a while that no source may exceed."""
        waits = [asyncio.create_task(event.wait()) for event in self._tried.values()]
        if waits:
            _, late = await asyncio.wait(waits, timeout=timeout_s)
            for task in late:
                task.cancel()

    def _start(self, adapter: Adapter) -> None:
        fresh = AdapterState(adapter.name, adapter.source, strength=adapter.strength)
        known = self._states.get(adapter.name)
        self._states[adapter.name] = (
            replace(fresh, digest=known.digest, rank=known.rank, size_bytes=known.size_bytes, loaded_at=known.loaded_at)
            if known
            else fresh
        )
        self._tried[adapter.name] = asyncio.Event()
        self._tasks[adapter.name] = asyncio.create_task(self._bring(adapter, self._tried[adapter.name]))

    def _cancel(self, name: str) -> None:
        if task := self._tasks.pop(name, None):
            task.cancel()
        if tried := self._tried.pop(name, None):
            tried.set()  # for those who wait for what is no longer wanted

    async def _bring(self, adapter: Adapter, tried: asyncio.Event) -> None:
        """Fetch, check and load; again and again while the source is down, and now and then where tags are followed."""
        tries = 0
        while True:
            error = await self._try(adapter)
            tried.set()
            if isinstance(error, ArtifactUnavailable):
                tries += 1
                await asyncio.sleep(min(_RETRY_MAX_S, max(error.retry_after_s, 2.0**tries)))
            elif self._follow_s is not None and "image" in adapter.source:
                tries = 0
                await asyncio.sleep(self._follow_s)
            else:
                return

    async def _try(self, adapter: Adapter) -> Exception | None:
        """One try, its outcome in the state."""
        try:
            async with self._turn:
                prepared = await self._prepare(adapter)
                try:
                    await self._load(adapter, prepared)
                except BaseException:
                    prepared.release()
                    raise
        except Exception as error:
            if not isinstance(error, KaitoRayError):
                logger.exception("adapter %s was not loaded", adapter.name)
            # A version that works is worth more than none; the error says that it is not the one asked for.
            reason = error.reason if isinstance(error, KaitoRayError) else "LoadFailed"
            self._states[adapter.name] = replace(
                self._states[adapter.name], state="Failed", reason=reason, error=_sentence(error)
            )
            return error
        return None

    async def _prepare(self, adapter: Adapter) -> Prepared:
        if self._models.is_base_model(adapter.name):
            raise AdapterRefused(f"{adapter.name} is the name of the base model", reason=Reason.INVALID_SOURCE)
        if self._base is None:
            raise AdapterRefused("this model is served without LoRA", reason=Reason.UNSUPPORTED_FEATURE)
        return await prepare_adapter(
            self._stager,
            adapter.source,
            base=await asyncio.shield(self._base),
            max_rank=self._engine.vllm_config.lora_config.max_lora_rank,
            strength=adapter.strength,
        )

    async def _load(self, adapter: Adapter, prepared: Prepared) -> None:
        from vllm.lora.request import LoRARequest

        old = self._loaded.get(adapter.name)
        if old is not None and old.request.lora_path == str(prepared.path):
            old.prepared.release()
            self._loaded[adapter.name] = replace(old, prepared=prepared)
            self._set_ready(adapter, self._loaded[adapter.name], self._states[adapter.name].loaded_at)
            return
        request = LoRARequest(
            # vLLM takes two requests of one adapter name for the same adapter, so each version has its own.
            lora_name=f"{adapter.name}@{prepared.path.name}",
            lora_int_id=self._models.lora_id_counter.inc(1),
            lora_path=str(prepared.path),
            base_model_name=self._models.base_model_paths[0].name,
        )
        try:
            async with self._engine_turn:
                await self._engine.add_lora(request)
                silent = adapter.strength > 0 and await self._changes_nothing(request)
        except BaseException:
            self._retire(_Loaded(request, prepared), release=False)
            raise
        self._models.lora_requests[adapter.name] = request
        self._loaded[adapter.name] = _Loaded(request, prepared, silent)
        if old is not None:
            self._retire(old)
        self._set_ready(adapter, self._loaded[adapter.name], datetime.now(UTC).isoformat(timespec="seconds"))

    async def _changes_nothing(self, request: Any) -> bool:
        with_it = await sample(self._engine, request)
        return bool(with_it) and self._plain is not None and with_it == await asyncio.shield(self._plain)

    def _set_ready(self, adapter: Adapter, loaded: _Loaded, loaded_at: str) -> None:
        prepared, silent = loaded.prepared, loaded.silent
        self._states[adapter.name] = AdapterState(
            adapter.name,
            adapter.source,
            digest=prepared.digest,
            strength=adapter.strength,
            rank=prepared.facts.rank,
            size_bytes=prepared.facts.size_bytes,
            state="Ready",
            reason=Reason.CHANGES_NOTHING if silent else "",
            error="changes nothing: the model gave a sample the same probabilities with and without it"
            if silent
            else "",
            loaded_at=loaded_at,
        )

    def _unload(self, name: str) -> None:
        self._states.pop(name, None)
        self._models.lora_requests.pop(name, None)
        if old := self._loaded.pop(name, None):
            self._retire(old)

    def _retire(self, old: _Loaded, *, release: bool = True) -> None:
        task = asyncio.create_task(self._remove_when_idle(old, release=release))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _remove_when_idle(self, old: _Loaded, *, release: bool) -> None:
        requests = self._engine.output_processor.request_states
        name = old.request.lora_name
        while any(state.lora_name == name for state in requests.values()):  # noqa: ASYNC110 no event to await
            await asyncio.sleep(_RETIRE_POLL_S)
        with contextlib.suppress(Exception):
            await self._engine.remove_lora(old.request.lora_int_id)
        if release:
            old.prepared.release()


def _pinned(adapter: Adapter | None, digest: str) -> Adapter | None:
    """What was asked for, at the digest that was loaded: to ask for that changes nothing."""
    return adapter.model_copy(update={"source": {**adapter.source, "digest": digest}}) if adapter else None


def _read_base(model_config: Any, models: Any, called: Collection[str]) -> Base:
    """What adapters must fit: the layers of the weights on this machine, wherever vLLM has them."""
    from huggingface_hub import try_to_load_from_cache

    model = str(model_config.model)
    names = {*(called or [model]), *(path.name for path in models.base_model_paths)}
    folder = Path(model)
    if not folder.is_dir():
        found = try_to_load_from_cache(model, "config.json", revision=model_config.revision)
        if not isinstance(found, str):
            return Base(frozenset(names))
        folder = Path(found).parent
    return read_base(folder, names)


def _show_clients_names(models: Any) -> None:
    """Make answers and `/v1/models` carry the names that clients use, not those of versions."""
    model_name, show_available = models.model_name, models.show_available_models

    def clients_name(lora_request: Any = None) -> str:
        return str(model_name(lora_request)).partition("@")[0] if lora_request else str(model_name())

    async def clients_models() -> Any:
        shown = await show_available()
        for card in shown.data:
            if card.parent:
                card.id = card.id.partition("@")[0]
        return shown

    models.model_name, models.show_available_models = clients_name, clients_models


def _sentence(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
