import pytest
import torch
from torch import Tensor

from longtake.kernels.block_sparse.context_parallel.ring import lists_within, merge_into


def softmax_attention(s: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    if not s.shape[-1]:
        return torch.zeros(len(s), v.shape[-1], dtype=s.dtype), s.new_full((len(s),), -torch.inf)
    return s.softmax(-1) @ v, s.logsumexp(-1)


@pytest.mark.parametrize("spread", [1.0, 300.0])
def test_parts_in_any_order_are_the_softmax_over_all(spread: float) -> None:
    g = torch.Generator().manual_seed(0)
    s = torch.randn((6, 20), generator=g, dtype=torch.float64) * spread
    v = torch.randn((20, 4), generator=g, dtype=torch.float64)
    expected_o, expected_lse = softmax_attention(s, v)
    for order in ([0, 1, 2, 3], [2, 3, 1, 0]):
        bounds = [(0, 5), (5, 5), (5, 6), (6, 20)]  # the second part has no keys
        parts = [softmax_attention(s[:, a:b], v[a:b]) for a, b in (bounds[i] for i in order)]
        o, lse = (x.clone() for x in parts[0])
        for part in parts[1:]:
            merge_into(o, lse, *part)
        torch.testing.assert_close(o, expected_o, rtol=0, atol=1e-13)
        torch.testing.assert_close(lse, expected_lse, rtol=1e-14, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_part_without_keys_changes_no_bit(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    o, lse = torch.randn((50, 8), generator=g), torch.randn((50,), generator=g) * 40
    nothing = torch.zeros((50, 8), dtype=dtype), torch.full((50,), -torch.inf)
    merged = o.clone(), lse.clone()
    merge_into(*merged, *nothing)
    assert torch.equal(merged[0], o) and torch.equal(merged[1], lse)
    first = o.to(dtype)
    merged = nothing[0].float(), nothing[1].clone()
    merge_into(*merged, first, lse)
    assert torch.equal(merged[0], first.float()) and torch.equal(merged[1], lse)


def test_lists_of_a_stretch_of_blocks() -> None:
    g = torch.Generator().manual_seed(0)
    rows = [sorted(torch.randperm(11, generator=g)[:n].tolist()) for n in (0, 1, 4, 5, 5, 2)]
    indices = torch.tensor([row + [-1] * (5 - len(row)) for row in rows], dtype=torch.int32)
    for first in range(11):
        for stop in range(first, 12):
            listed, counts = lists_within(indices[None, None], first, stop)
            assert listed.dtype == counts.dtype == torch.int32
            assert listed.shape == (1, 1, 6, min(5, stop - first))
            for row, found, count in zip(rows, listed[0, 0], counts[0, 0], strict=True):
                inside = [block - first for block in row if first <= block < stop]
                assert count == len(inside)
                assert found.tolist() == inside + [-1] * (listed.shape[-1] - len(inside))
