# SPDX-License-Identifier: Apache-2.0
"""Whether a loaded adapter changes what the model says, told from a short sample. Called by adapters.py.

An adapter can pass every check of its files and still do nothing, when the engine quietly skips modules whose names
it does not know. The probabilities of the next token tell: equal to the last bit means that nothing was added anywhere.
"""

import asyncio
import uuid
from collections.abc import Mapping
from typing import Any

_TIMEOUT_S = 30.0
_SAMPLE_TOKENS = 8
Probabilities = Mapping[int, float]
"""The likeliest next tokens and their log probabilities."""


async def sample(engine: Any, adapter: Any = None) -> Probabilities:
    """What the model says to the sample with an adapter or by itself; empty when that cannot be told.

    An engine under load answers late, and one that was told to give no probabilities never does; neither is a fault
    of the adapter. Probabilities of the sample itself are not asked for: vLLM 0.32 dies of `prompt_logprobs` in a
    batch with adapters, because its output layer then gets more rows than the adapters were told of.
    """
    from vllm.inputs.engine import tokens_input
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    params = SamplingParams(
        max_tokens=1,  # a step with an adapter in it slows down everybody else's
        temperature=0.0,
        logprobs=5,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    vocabulary = engine.model_config.get_vocab_size()
    # Spread over the vocabulary, so that no tokenizer has to be asked what is a word.
    tokens = [(index + 1) * vocabulary // (_SAMPLE_TOKENS + 2) for index in range(_SAMPLE_TOKENS)]
    found: Probabilities = {}
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            outputs = engine.generate(tokens_input(tokens), params, f"probe-{uuid.uuid4().hex}", lora_request=adapter)
            async for output in outputs:
                for step in output.outputs[0].logprobs or ():
                    found = {token: entry.logprob for token, entry in step.items()}
    except (TimeoutError, ValueError):
        return {}
    return found
