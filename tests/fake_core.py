# SPDX-License-Identifier: Apache-2.0
"""An engine core that answers at once, at the seam where vLLM's frontend talks to the process with the model.

Everything in front of it is real: vLLM's AsyncLLM, tokenizer, detokenizer and HTTP app, and what serve_apps adds. It
answers each prompt with the prompt's own tokens, over and over, shifted by the number of the adapter. `install()`
puts it in the place of the real one; tests/apps and the overhead part of the serving bench use it.
"""

import asyncio
from types import SimpleNamespace
from typing import Any

from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.stats import SchedulerStats


class FakeCore:
    """One instance per engine; `requests` is what runs, `aborted` what was told to stop."""

    def __init__(self, vllm_config: Any, step_s: float) -> None:
        self.engine_ranks_managed = [0]
        self.resources = SimpleNamespace(engine_dead=False)
        self.requests: dict[str, list[Any]] = {}
        self.aborted: list[str] = []
        self.loras: dict[int, Any] = {}
        self._step_s = step_s
        self._vocabulary = vllm_config.model_config.get_vocab_size()
        self._width = vllm_config.scheduler_config.max_num_seqs
        self._busy = asyncio.Event()
        # What readiness brings from the real process.
        vllm_config.cache_config.num_gpu_blocks = 1000

    async def get_output_async(self) -> EngineCoreOutputs:
        """One step of the engine: a token for each running request."""
        await self._busy.wait()
        await asyncio.sleep(self._step_s)
        if self.resources.engine_dead:
            raise EngineDeadError
        running = list(self.requests)[: self._width]
        outputs = [self._next(request_id) for request_id in running]
        stats = SchedulerStats(num_running_reqs=len(running), num_waiting_reqs=len(self.requests) - len(running))
        if not self.requests:
            self._busy.clear()
        return EngineCoreOutputs(outputs=outputs, scheduler_stats=stats)

    def _next(self, request_id: str) -> EngineCoreOutput:
        request, made = self.requests[request_id]
        prompt = request.prompt_token_ids
        shift = request.lora_request.lora_int_id if request.lora_request else 0
        self.requests[request_id][1] = made + 1
        finish = None
        if made + 1 >= request.sampling_params.max_tokens:
            finish = FinishReason.LENGTH
            del self.requests[request_id]
        token = (prompt[made % len(prompt)] + shift) % self._vocabulary
        return EngineCoreOutput(request_id=request_id, new_token_ids=[token], finish_reason=finish)

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        self.requests[request.request_id] = [request, 0]
        self._busy.set()

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            if self.requests.pop(request_id, None):
                self.aborted.append(request_id)

    async def get_supported_tasks_async(self) -> tuple[str, ...]:
        return ("generate",)

    async def reset_mm_cache_async(self) -> None:
        """Nothing is cached."""

    async def add_lora_async(self, lora_request: Any) -> bool:
        self.loras[lora_request.lora_int_id] = lora_request
        return True

    async def remove_lora_async(self, lora_id: int) -> bool:
        return self.loras.pop(lora_id, None) is not None

    def die(self) -> None:
        """As if the process were killed."""
        self.resources.engine_dead = True
        self._busy.set()

    def shutdown(self, timeout: float | None = None) -> None:
        """Nothing to end."""


def install(step_s: float = 0.001) -> list[FakeCore]:
    """Replace the real core from now on; the returned list gets every core that is made."""
    made: list[FakeCore] = []

    def make(vllm_config: Any, *_: Any, **__: Any) -> FakeCore:
        made.append(FakeCore(vllm_config, step_s))
        return made[-1]

    EngineCoreClient.make_async_mp_client = staticmethod(make)
    return made
