# SPDX-License-Identifier: Apache-2.0
"""Whether a loaded adapter changes what the model says, asked once with a short sample. Called by adapters.py.

An adapter can pass every check of its files and still do nothing, when the engine quietly skips modules whose names
it does not know. The probabilities of a few tokens tell: equal to the last bit means that nothing was added anywhere.
"""

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

_TIMEOUT_S = 30.0
_SAMPLE_TOKENS = 8
_NEW_TOKENS = 4


async def changes_output(engine: Any, adapter: Any) -> bool:
    """False only when every probability of the sample is the same with and without; True also when nobody can tell.

    An engine under load answers late, and one that cannot give probabilities never does; neither is a fault of the
    adapter.
    """
    vocabulary = engine.model_config.get_vocab_size()
    # Spread over the vocabulary, so that no tokenizer has to be asked what is a word.
    sample = [(index + 1) * vocabulary // (_SAMPLE_TOKENS + 2) for index in range(_SAMPLE_TOKENS)]
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            with_it = await _probabilities(engine, sample, adapter)
            without = await _probabilities(engine, sample, None)
    except (TimeoutError, ValueError):
        return True
    return not with_it or with_it != without


async def _probabilities(engine: Any, sample: Sequence[int], adapter: Any) -> list[Mapping[int, float]]:
    """The likeliest next tokens and their log probabilities, step by step.

    Not those of the sample itself: vLLM 0.32 dies of `prompt_logprobs` in a batch with adapters, because its output
    layer then gets more rows than the adapters were told of.
    """
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    params = SamplingParams(
        max_tokens=_NEW_TOKENS,
        temperature=0.0,
        logprobs=5,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    found: list[Mapping[int, float]] = []
    prompt = {"prompt_token_ids": list(sample)}
    async for output in engine.generate(prompt, params, f"probe-{uuid.uuid4().hex}", lora_request=adapter):
        steps = output.outputs[0].logprobs or ()
        found = [{token: entry.logprob for token, entry in step.items()} for step in steps]
    return found
