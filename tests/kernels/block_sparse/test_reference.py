"""The reference against dense masked attention in float64; ``bsa_checks`` has the 16-bit types."""

from typing import Any

import pytest
import torch

from longtake.bench.bsa_checks import make_case
from longtake.kernels.block_sparse import reference
from longtake.kernels.block_sparse.index import BlockIndex, BlockPairs
from longtake.kernels.block_sparse.layout import BlockLayout

CPU = torch.device("cpu")
EVEN, RAGGED = ((4, 8, 8), (4, 8, 8)), ((5, 6, 7), (5, 6, 7))
CASES: dict[str, tuple[tuple[Any, Any], dict[str, Any]]] = {
    "aligned": (EVEN, {}),
    "ragged": (RAGGED, {}),
    "unequal": (((3, 5, 4), (6, 5, 7)), {"heads": (4, 2), "block": (2, 4, 4)}),
    "hub": (((5, 8, 8), (5, 8, 8)), {"kind": "hub", "deviation": 4.0}),
    "tokens first": (RAGGED, {"tokens_first": True}),
    "all blocks": (((4, 6, 5), (3, 7, 4)), {"density": 1.0}),
    "sharp": (EVEN, {"deviation": 16.0}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_results_and_gradients(name: str, dtype: torch.dtype) -> None:
    grids, options = CASES[name]
    case = make_case(CPU, dtype, *grids, **{"heads": (2, 2), "dim": 8} | options)
    bound = 1e-12 if dtype == torch.float64 else 1e-6 * options.get("deviation", 1.0)
    for found, exact in zip(case.run("reference"), case.exact(), strict=True):
        assert torch.equal(found.isneginf(), exact.isneginf())
        found, exact = found.double().nan_to_num(neginf=0), exact.nan_to_num(neginf=0)
        assert (found - exact).norm() <= bound * exact.norm()


def test_rows_and_blocks_that_nobody_lists() -> None:
    case = make_case(CPU, torch.float64, *EVEN, heads=(2, 2), dim=8)
    o, lse, dq, dk, dv = case.run("reference")
    empty = lse == -torch.inf
    assert empty[0, 0].any() and not empty.all()
    assert not o[empty].any() and not dq[empty].any()
    unread = slice(*case.of_k.offsets()[3:5].tolist())
    assert not dk[:, :, unread].any() and not dv[:, :, unread].any()
    # A merge gives exp(-inf - -inf) as the gradient of an empty row: it must stay there.
    pairs = BlockPairs(case.index, case.of_q.blocks(), case.of_k.blocks())
    dlse = torch.where(empty, torch.nan, 0.0)
    run = case.do, case.q, case.k, case.v, o, lse, dlse, pairs, 8**-0.5
    for found, clean in zip(reference.backward(*run), (dq, dk, dv), strict=True):
        assert torch.equal(found, clean)


def test_small_steps_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(CPU, torch.float64, *RAGGED, heads=(4, 2), dim=8)
    whole = case.run("reference")
    monkeypatch.setattr(reference, "CHUNK_BYTES", 1)
    for found, expected in zip(case.run("reference"), whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_results_keep_the_memory_order_of_the_inputs() -> None:
    layout = BlockLayout((4, 4, 8))
    q, k, v = (torch.randn(2, 128, 3, 8).transpose(1, 2) for _ in range(3))
    index = BlockIndex.from_dense_mask(torch.eye(2, dtype=torch.bool)).expand(2, 3)
    pairs = BlockPairs(index, layout.blocks(), layout.blocks())
    o, lse = reference.forward(q, k, v, pairs, 0.3)
    gradients = reference.backward(torch.randn(2, 3, 128, 8), q, k, v, o, lse, None, pairs, 0.3)
    assert all(x.stride() == q.stride() for x in (o, *gradients))
    assert lse.shape == (2, 3, 128) and lse.is_contiguous() and lse.dtype == torch.float32
    packed = reference.forward(*(x.contiguous() for x in (q, k, v)), pairs, 0.3)[0]
    assert packed.is_contiguous() and torch.equal(packed, o)
