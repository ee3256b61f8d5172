# SPDX-License-Identifier: Apache-2.0
"""vLLM's adapter arithmetic on CPUs, put right: requests without an adapter get none, and weights are not copied.

vLLM 0.32 marks tokens without an adapter with index -1 and, on CPUs, looks that up like any other: in a batch with
adapters the base model's tokens get the weights of the last slot. It also copies an adapter's weights once per token.
Here each adapter in a batch is one product with the rows that use it. Kernels of GPUs have neither fault.

vLLM's workers import this module because engine.py names its class as `--worker-extension-cls`.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from vllm.lora.punica_wrapper import punica_cpu


class AdapterArithmetic:
    """Adds nothing to a worker; naming it is what brings this module into the worker's process."""


def _products(
    inputs: Tensor, weights: Tensor, indices: Tensor, counts: Tensor | None, dtype: torch.dtype
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each adapter of the batch the rows that use it, and those rows of `inputs` times its weights.

    `weights` is (slots, 1, out, in) or (slots, out, in); `indices` names a slot per row, or per `counts` rows, and is
    negative where there is no adapter.
    """
    slots = set(indices.tolist())
    rows = indices if counts is None else torch.repeat_interleave(indices, counts)
    for slot in sorted(slot for slot in slots if slot >= 0):
        chosen = (rows == slot).nonzero().flatten()
        weight = weights[slot].reshape(weights.shape[-2:]).to(dtype)
        yield chosen, inputs[chosen].to(dtype) @ weight.T


def _shrink(
    inputs: Tensor, weights: Tensor, output: Tensor, indices: Tensor, counts: Tensor | None, scaling: float
) -> None:
    for rows, product in _products(inputs, weights, indices, counts, output.dtype):
        output[rows, : product.shape[1]] = scaling * product


def _expand(
    inputs: Tensor,
    weights: Tensor,
    output: Tensor,
    indices: Tensor,
    counts: Tensor | None,
    add_inputs: bool,
    start: int = 0,
    size: int | None = None,
) -> None:
    # Adapter and model may be padded differently.
    room = output.shape[1] - start if size is None else size
    for rows, product in _products(inputs, weights, indices, counts, output.dtype):
        width = min(product.shape[1], room)
        part = output[:, start : start + width]
        if add_inputs:
            part.index_add_(0, rows, product[:, :width])
        else:
            part[rows] = product[:, :width]


# The signatures of vllm/lora/ops/torch_ops/lora_ops.py.


def sgmv_shrink(
    inputs: Tensor,
    lora_a_weights: Tensor,
    output_tensor: Tensor,
    b_seq_start_loc: Tensor,  # noqa: ARG001
    seq_len_tensor: Tensor,
    lora_indices_tensor: Tensor,
    batches: int,  # noqa: ARG001
    max_seq_length: int,  # noqa: ARG001
    token_nums: int,  # noqa: ARG001
    scaling: float,
) -> None:
    """Rows of stretches of tokens, times A."""
    _shrink(inputs, lora_a_weights, output_tensor, lora_indices_tensor, seq_len_tensor, scaling)


def sgmv_expand(
    inputs: Tensor,
    lora_b_weights: Tensor,
    output_tensor: Tensor,
    b_seq_start_loc: Tensor,  # noqa: ARG001
    seq_len_tensor: Tensor,
    lora_indices_tensor: Tensor,
    batches: int,  # noqa: ARG001
    max_seq_length: int,  # noqa: ARG001
    token_nums: int,  # noqa: ARG001
    add_inputs: bool = False,
) -> None:
    """Rows of stretches of tokens, times B."""
    _expand(inputs, lora_b_weights, output_tensor, lora_indices_tensor, seq_len_tensor, add_inputs)


def sgmv_expand_slice(
    inputs: Tensor,
    lora_b_weights: Tensor,
    output_tensor: Tensor,
    b_seq_start_loc: Tensor,  # noqa: ARG001
    seq_len_tensor: Tensor,
    lora_indices_tensor: Tensor,
    batches: int,  # noqa: ARG001
    max_seq_length: int,  # noqa: ARG001
    token_nums: int,  # noqa: ARG001
    slice_offset: int,
    slice_size: int,
    add_inputs: bool = False,
) -> None:
    """The same for some columns of the output: projections that are one layer, such as q, k and v."""
    _expand(
        inputs,
        lora_b_weights,
        output_tensor,
        lora_indices_tensor,
        seq_len_tensor,
        add_inputs,
        slice_offset,
        slice_size,
    )


def bgmv_shrink(
    inputs: Tensor, lora_b_weights: Tensor, output_tensor: Tensor, lora_indices_tensor: Tensor, scaling: float = 1.0
) -> None:
    """Each row with an adapter of its own, times A; vLLM calls the weights so."""
    _shrink(inputs, lora_b_weights, output_tensor, lora_indices_tensor, None, scaling)


def bgmv_expand(
    inputs: Tensor, lora_b_weights: Tensor, output_tensor: Tensor, lora_indices_tensor: Tensor, add_inputs: bool = True
) -> None:
    """Each row with an adapter of its own, times B."""
    _expand(inputs, lora_b_weights, output_tensor, lora_indices_tensor, None, add_inputs)


for _operation in (sgmv_shrink, sgmv_expand, sgmv_expand_slice, bgmv_shrink, bgmv_expand):
    setattr(punica_cpu, _operation.__name__, _operation)
