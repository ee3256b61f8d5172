# SPDX-License-Identifier: Apache-2.0
"""How one copy of a model is cut, and what it is asked to carry: the two questions every part of the arithmetic shares.

Used by kv_cache.py, memory.py, sizing.py and cpu_sizing.py.
"""

from dataclasses import dataclass

GIB = 2**30
# The smallest piece of KV cache vLLM hands out, in tokens (its default block size).
BLOCK = 16
# The same for vLLM's attention kernel on CPUs.
CPU_BLOCK = 128


@dataclass(frozen=True, slots=True)
class Shape:
    """How one copy of a model is cut: tensor parallel within a node, pipeline parallel across nodes."""

    tensor: int
    pipeline: int

    @property
    def gpus(self) -> int:
        """GPUs of one copy."""
        return self.tensor * self.pipeline


@dataclass(frozen=True, slots=True)
class Load:
    """What the engine is asked to carry at once."""

    sequences: int
    """vLLM's max-num-seqs."""
    batched_tokens: int
    """vLLM's max-num-batched-tokens: tokens of one forward pass."""
    weight_bytes: float = 1.0
    """Factor on the stored weights: 2 when 16-bit weights are computed in float32."""
    kv_bytes: int = 2
    """Bytes of one number in the KV cache: 1 for fp8, 4 for float32."""
    lora_slots: int = 0
    lora_rank: int = 0
    block: int = BLOCK
