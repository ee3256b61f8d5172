# SPDX-License-Identifier: Apache-2.0
"""Adapter arithmetic on CPUs against what it means, row by row."""

import pytest

pytestmark = pytest.mark.filterwarnings("default")

SLOTS, RANK, WIDTH, ROWS = 3, 4, 6, 8
PER_ROW = [0, -1, 2, 2, -1, 0, 1, -1]


@pytest.mark.parametrize("squeezed", [False, True])
def test_each_row_gets_its_adapter_and_the_base_none(squeezed: bool) -> None:
    import torch

    from serve_apps import cpu_lora

    torch.manual_seed(0)
    inputs = torch.randn(ROWS, WIDTH)
    a, b = torch.randn(SLOTS, 1, RANK, WIDTH), torch.randn(SLOTS, 1, WIDTH, RANK)
    if squeezed:
        a, b = a.squeeze(1), b.squeeze(1)
    rows = torch.tensor(PER_ROW)
    stretches, counts = torch.unique_consecutive(rows, return_counts=True)
    starts = torch.cumsum(counts, 0) - counts
    meta = (starts, counts, stretches, len(stretches), int(counts.max()), ROWS)

    expected = torch.zeros(ROWS, WIDTH)
    for row, slot in enumerate(PER_ROW):
        if slot >= 0:
            expected[row] = 0.5 * inputs[row] @ a[slot].reshape(RANK, WIDTH).T @ b[slot].reshape(WIDTH, RANK).T

    small, before = torch.zeros(ROWS, RANK), torch.randn(ROWS, WIDTH + 2)
    cpu_lora.sgmv_shrink(inputs, a, small, *meta, 0.5)
    whole = before.clone()
    cpu_lora.sgmv_expand(small, b, whole, *meta, add_inputs=True)
    torch.testing.assert_close(whole[:, :WIDTH], before[:, :WIDTH] + expected)
    assert torch.equal(whole[:, WIDTH:], before[:, WIDTH:])

    part = torch.zeros(ROWS, 20)
    cpu_lora.sgmv_expand_slice(small, b, part, *meta, 5, WIDTH, add_inputs=True)
    torch.testing.assert_close(part[:, 5 : 5 + WIDTH], expected)
    assert part[:, :5].abs().sum() == part[:, 5 + WIDTH :].abs().sum() == 0

    small.zero_()
    single = before.clone()
    cpu_lora.bgmv_shrink(inputs, a, small, rows, 0.5)
    cpu_lora.bgmv_expand(small, b, single, rows)
    assert torch.equal(single, whole)


def test_vllm_uses_it() -> None:
    from vllm.lora.punica_wrapper import punica_cpu

    from serve_apps import cpu_lora

    assert punica_cpu.sgmv_shrink is cpu_lora.sgmv_shrink
    assert punica_cpu.bgmv_expand is cpu_lora.bgmv_expand
