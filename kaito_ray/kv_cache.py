# SPDX-License-Identifier: Apache-2.0
"""The KV cache of one GPU: the layers of a model and a shape in, a layout and its bytes out.

Pure arithmetic, called by sizing.py and cpu_sizing.py. It follows the rules by which vLLM 0.32 checks at start-up if
one sequence of `max-model-len` tokens fits (v1/core/kv_cache_utils.py, v1/kv_cache_interface.py), so that a plan made
from it starts. A cache that grows with every token, a window, a state and a latent are all counted as what they are.
"""

import math
from dataclasses import dataclass

from kaito_ray.preset import CacheLayers, Preset
from kaito_ray.shape import GIB, Load, Shape


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers with one block table: each block of the pool holds `block` tokens of them, or one state."""

    count: int
    block: int
    window: int | None = None
    recurrent: bool = False


@dataclass(frozen=True, slots=True)
class KvLayout:
    """How vLLM lays the cache of a model out on one GPU: groups of layers that share a pool of equal blocks."""

    groups: tuple[LayerGroup, ...]
    pool_block_bytes: int
    in_flight: int
    """Tokens scheduled and not yet settled, whose blocks a window cannot free."""

    @property
    def recurrent(self) -> bool:
        """Whether some layers keep a state; then every running sequence holds blocks of its own."""
        return any(group.recurrent for group in self.groups)

    def sequence_bytes(self, tokens: int) -> int:
        """Bytes that one sequence of `tokens` tokens takes."""
        return self.pool_block_bytes * sum(group.count * self._blocks(group, tokens) for group in self.groups)

    def sequence_gib(self, tokens: int) -> float:
        """The same in GiB."""
        return self.sequence_bytes(tokens) / GIB

    def longest(self, room_gib: float, limit: int) -> int:
        """Tokens of the longest sequence within `room_gib`, at most `limit`; 0 if not even one token fits."""
        low, high = 0, limit
        while low < high:
            middle = (low + high + 1) // 2
            if self.sequence_gib(middle) <= room_gib:
                low = middle
            else:
                high = middle - 1
        return low

    def _blocks(self, group: LayerGroup, tokens: int) -> int:
        if group.recurrent:
            # The running state, and one that prefix caching keeps.
            return 2
        if group.window is None:
            return math.ceil(tokens / group.block)
        # One more, because a window may start inside a block.
        return math.ceil(min(group.window - 1 + self.in_flight, tokens) / group.block) + 1


def kv_layout(preset: Preset, shape: Shape, load: Load) -> KvLayout:
    """The layout on the fullest GPU, by the rules of vLLM 0.32 (v1/core/kv_cache_utils.py).

    Layers of one kind form groups of equal size, the smallest kind giving the size, and all groups take blocks from
    one pool, so a block is as wide as the widest kind and holds more tokens of the others. A state is padded to whole
    blocks of attention, and so is any width that does not divide. Scheduled tokens are one batch per pipeline stage and
    one more, because scheduling overlaps computing (config/vllm.py, max_concurrent_batches).
    """
    kinds = [group for group in _cache_layers(preset) if group.kind != "none"]
    in_flight = load.batched_tokens * (shape.pipeline + 1)
    share = math.ceil(preset.layers / shape.pipeline) / preset.layers
    if not kinds:
        return KvLayout((), 0, in_flight)
    if any(group.ratio for group in kinds):
        return _compressed_layout(kinds, in_flight, share)
    widths = [_layer_bytes(preset, group, shape, load) for group in kinds]
    states = [width for group, width in zip(kinds, widths, strict=True) if group.kind == "recurrent"]
    pages = [width * load.block for group, width in zip(kinds, widths, strict=True) if group.kind != "recurrent"]
    page = max(pages, default=max(states, default=0))
    if states:
        page *= max(math.ceil(max(states) / page), 1)
    size = min(group.layers for group in kinds)
    if max(group.layers for group in kinds) < 1.5 * size:
        size = max(group.layers for group in kinds)
    groups = tuple(
        LayerGroup(
            count=math.ceil(group.layers / size),
            block=load.block * (page // (width * load.block) if page % (width * load.block) == 0 else 1),
            window=group.window,
            recurrent=group.kind == "recurrent",
        )
        for group, width in zip(kinds, widths, strict=True)
    )
    return KvLayout(groups, math.ceil(size * share) * page, in_flight)


def _compressed_layout(kinds: list[CacheLayers], in_flight: int, share: float) -> KvLayout:
    """Layers that keep one entry for several tokens: each is counted by itself, in blocks of 256 tokens.

    vLLM packs such models into blocks of unequal groups (_get_packed_kv_cache_groups), which wastes less than this.
    """
    tokens = 256
    full = sum(
        math.ceil(group.layers * share) * math.ceil(tokens / group.ratio) * (group.entry_bytes or 0)
        for group in kinds
        if group.ratio
    )
    window = sum(math.ceil(group.layers * share) * tokens * (group.entry_bytes or 0) for group in kinds)
    unit = math.gcd(full, window)
    return KvLayout(
        (
            LayerGroup(count=full // unit, block=tokens),
            LayerGroup(count=window // unit, block=tokens, window=max(group.window or 0 for group in kinds)),
        ),
        unit,
        in_flight,
    )


def _cache_layers(preset: Preset) -> tuple[CacheLayers, ...]:
    return preset.cache or (CacheLayers(layers=preset.layers, kind="full"),)


def _layer_bytes(preset: Preset, group: CacheLayers, shape: Shape, load: Load) -> int:
    """Bytes on one GPU of one token in one layer, or of one state.

    Tensor parallelism divides key heads down to one per GPU; a latent (MLA) is whole on every GPU.
    """
    if group.state_bytes is not None:
        return math.ceil(group.state_bytes / shape.tensor)
    if group.entry_bytes is not None:
        return group.entry_bytes
    if preset.mla:
        return preset.kv_elements * load.kv_bytes
    heads = max((group.kv_heads or preset.kv_heads) // shape.tensor, 1)
    return 2 * heads * (group.head_dim or preset.head_dim) * load.kv_bytes
