# SPDX-License-Identifier: Apache-2.0
"""How much memory one worker of a tuning takes, and the batch and length that fit: facts in, figures out. Pure.

Called by plan_tune.py. Every worker holds a whole copy of the base model, on one GPU.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from kaito_ray.preset import Preset
from kaito_ray.shape import GIB
from kaito_ray.sku import Sku

# Samples that one step learns from, over all workers: what the QLoRA paper (arXiv 2305.14314, table 9) used.
_STEP_SAMPLES = 16
_BATCHES = (8, 4, 2, 1)
_LENGTHS = (2048, 1024, 512)
# How much lower a rate pairs want than answers: what the defaults of TRL's two configurations say, 1e-6 and 2e-5.
_PAIRS_RATE = 20
# Tokens whose logits TRL's fused head holds at a time.
_TILE = 1024


@dataclass(frozen=True, slots=True)
class Load:
    """What one worker is asked to hold; `bits` of a weight of a layer: 16, 32 on a CPU, 8 or 4 quantised."""

    bits: int
    rank: int
    batch: int
    length: int
    checkpointing: bool
    pairs: bool = False
    """Whether every sample of a batch is two texts, the chosen and the rejected one."""


def training_gib(preset: Preset, load: Load) -> float:
    """Memory of one worker.

    Weights: as many bits as they have; nf4 with double quantisation takes 4.127 per weight of the layers (QLoRA paper),
    embedding and output head stay in 16. Adapter: rank x (inputs + outputs) of every linear layer, about 20 x hidden
    per layer, in float32 with its gradient and Adam's two moments, 16 bytes each. Activations: with gradient
    checkpointing one hidden state per layer and one layer's own in full, without it all layers' own. Logits of a tile
    with their gradient in float32. 1 GiB for CUDA and the allocator.

    Pairs go through the model as one batch of twice the texts (DPOTrainer of TRL 1.16, its collator and _compute_loss).
    The log-probabilities of the reference come from the same weights with the adapter off, while all of that is held:
    without gradients, so one layer's own again, which with checkpointing is free by then; the tile is as well.
    """
    scale = 2.0 if load.bits == 32 else 1.0
    tables = 2 * preset.vocab_size * preset.hidden_size * 2 / GIB
    layers = max(preset.engine_gib - tables, 0.0)
    per_weight = {4: 4.127 / 16, 8: 0.51}.get(load.bits, 1.0)
    weights = scale * (layers * per_weight + min(tables, preset.engine_gib))
    adapter = 16 * load.rank * 20 * preset.hidden_size * preset.layers / GIB
    inner = preset.intermediate_size or 4 * preset.hidden_size
    tokens = load.batch * load.length * (2 if load.pairs else 1)
    own = 8 * preset.hidden_size + 6 * inner
    kept = preset.layers * preset.hidden_size + own if load.checkpointing else (preset.layers + load.pairs) * own
    activations = scale * tokens * 2 * kept / GIB
    logits = 2 * 4 * min(tokens, _TILE) * preset.vocab_size / GIB
    return weights + adapter + activations + logits + 1.0


def available_gib(sku: Sku) -> float:
    """What one worker may fill: a GPU less its context, or this machine less its other processes."""
    return sku.gpu_gib - 1.0 if sku.gpus else sku.ram_gib - 3.0


def candidates(preset: Preset, asked: Load, *, batch: int | None, length: int | None) -> Iterator[Load]:
    """What to try, the most wanted first: a long context matters more than a large batch.

    `batch` and `length` are the user's own, where there are any.
    """
    lengths: Iterable[int] = (length,) if length else dict.fromkeys(min(preset.context, one) for one in _LENGTHS)
    for one_length in lengths:
        for one_batch in (batch,) if batch else _BATCHES:
            yield replace(asked, batch=one_batch, length=one_length)


def accumulation(batch: int, workers: int) -> int:
    """Batches per worker and step, so that a step learns from about as many samples whatever fits at once."""
    return max(1, round(_STEP_SAMPLES / (batch * workers)))


def learning_rate(preset: Preset, *, pairs: bool) -> float:
    """A rate for LoRA that smaller models take higher, to two digits.

    "LoRA Without Regret" (Thinking Machines, 2025) found ten times the rate of full fine-tuning, 5e-4 at a hidden size
    of 2000, falling with the 0.78th power of it: 2.9e-4 at 4096. At that rate pairs soon make tiny-phi-3 babble.
    """
    rate = 5e-4 * (2000 / preset.hidden_size) ** 0.775
    return float(f"{rate / _PAIRS_RATE if pairs else rate:.1e}")
