# SPDX-License-Identifier: Apache-2.0
"""The adapters of one replica: brings what is loaded in line with what `user_config` asks for.

serve_apps/chat.py calls `apply` for every change of `user_config`, and `GET /adapters` shows `states`. One bad
adapter is reported there and never raised: Serve would take the whole replica for unhealthy.

A new version of an adapter is loaded beside the old one under a name and number of its own, and clients' name moves
over when it is ready. Requests that run keep the old weights, which leave the engine when the last of them ends.
vLLM's own `load_inplace` would swap weights under running requests, and reload them from disk at every step after.
"""

import asyncio
import contextlib
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from serve_apps import staging
from serve_apps.arguments import Adapter
from serve_apps.staging import BadAdapter, Staged

logger = logging.getLogger(__name__)

_RETIRE_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class AdapterState:
    """One line of `GET /adapters`. `state` is Loading, Ready or Failed; `error` is empty when all is good."""

    name: str
    source: dict[str, Any]
    digest: str = ""
    strength: float = 1.0
    rank: int = 0
    state: str = "Loading"
    error: str = ""


class Adapters:
    """`models` is vLLM's OpenAIServingModels, which resolves the `model` of every request."""

    def __init__(self, models: Any, *, cache: Path | None = None) -> None:
        self._models = models
        self._engine = models.engine_client
        self._cache = cache or Path(tempfile.mkdtemp(prefix="kaito-ray-adapters-"))
        self._wanted: Sequence[Adapter] = ()
        self._changed = False
        self._lock = asyncio.Lock()
        self._states: dict[str, AdapterState] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        _show_clients_names(models)

    def states(self) -> list[dict[str, Any]]:
        """Every adapter that is asked for, by name."""
        return [asdict(self._states[name]) for name in sorted(self._states)]

    async def apply(self, wanted: Sequence[Adapter]) -> None:
        """Load, replace and unload until `wanted` is what is loaded, or a later call asks for something else.

        Calls that arrive meanwhile collapse: the newest one is applied next, those between are not.
        """
        self._wanted, self._changed = wanted, True
        async with self._lock:
            if not self._changed:
                return
            self._changed = False
            wanted = self._wanted
            for name in self._states.keys() - {adapter.name for adapter in wanted}:
                self._unload(name)
            for adapter in wanted:
                if self._changed:
                    return
                await self._bring(adapter)

    async def _bring(self, adapter: Adapter) -> None:
        known = self._states.get(adapter.name)
        state = AdapterState(adapter.name, adapter.source, strength=adapter.strength)
        if known is None or known.state != "Ready":
            self._states[adapter.name] = state
        try:
            staged = await staging.stage(adapter.source, strength=adapter.strength, cache=self._cache)
            state = replace(state, digest=staged.digest, rank=staged.rank)
            await self._load(adapter.name, staged)
            state = replace(state, state="Ready")
        except Exception as error:
            if not isinstance(error, BadAdapter):
                logger.exception("adapter %s was not loaded", adapter.name)
            # A version that works is worth more than none; the error says that it is not the one asked for.
            state = replace(state, state="Failed", error=_sentence(error))
        self._states[adapter.name] = state

    async def _load(self, name: str, staged: Staged) -> None:
        from vllm.lora.request import LoRARequest

        if self._models.is_base_model(name):
            raise BadAdapter(f"{name} is the name of the base model")
        if self._engine.vllm_config.lora_config is None:
            raise BadAdapter("this model is served without LoRA")
        limit = self._engine.vllm_config.lora_config.max_lora_rank
        if staged.rank > limit:
            raise BadAdapter(f"its rank is {staged.rank}, this server takes up to {limit}")
        old = self._models.lora_requests.get(name)
        if old is not None and old.lora_path == str(staged.path):
            return
        new = LoRARequest(
            # vLLM takes two requests of one adapter name for the same adapter, so each version has its own.
            lora_name=f"{name}@{staged.path.name}",
            lora_int_id=self._models.lora_id_counter.inc(1),
            lora_path=str(staged.path),
            base_model_name=self._models.base_model_paths[0].name,
        )
        await self._engine.add_lora(new)
        self._models.lora_requests[name] = new
        if old is not None:
            self._retire(old)

    def _unload(self, name: str) -> None:
        self._states.pop(name)
        old = self._models.lora_requests.pop(name, None)
        if old is not None:
            self._retire(old)

    def _retire(self, old: Any) -> None:
        task = asyncio.create_task(self._remove_when_idle(old))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _remove_when_idle(self, old: Any) -> None:
        requests = self._engine.output_processor.request_states
        while any(state.lora_name == old.lora_name for state in requests.values()):  # noqa: ASYNC110 no event to await
            await asyncio.sleep(_RETIRE_POLL_S)
        with contextlib.suppress(Exception):
            await self._engine.remove_lora(old.lora_int_id)


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
