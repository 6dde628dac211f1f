"""Forward and backward against dense masked attention in float64, tokens in plain order."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from longtake.kernels.block_sparse import reference
from longtake.kernels.block_sparse.index import BlockIndex, BlockPairs
from longtake.kernels.block_sparse.layout import BlockLayout, Size3

Oracle = Callable[..., tuple[Tensor, Tensor]]
Blocks = Callable[[Size3, Size3], Tensor]


@dataclasses.dataclass(frozen=True)
class Case:
    grid_q: Size3
    grid_k: Size3
    block_q: Size3 = (4, 4, 4)
    block_k: Size3 = (4, 4, 4)
    heads: tuple[int, int] = (2, 2)
    logit_std: float = 1.0
    lists: str = "random"


CASES = {
    "aligned": Case((4, 8, 8), (4, 8, 8)),
    "ragged": Case((5, 6, 7), (5, 6, 7)),
    "unequal": Case((3, 5, 4), (6, 5, 7), (2, 4, 4), (4, 2, 4), heads=(4, 2)),
    "one head of keys": Case((4, 4, 8), (2, 6, 6), heads=(3, 1)),
    "hub": Case((5, 8, 8), (5, 8, 8), lists="hub", logit_std=4.0),
    "empty rows": Case((4, 6, 9), (4, 6, 9), lists="empty"),
    "all blocks": Case((4, 6, 5), (3, 7, 4), lists="all"),
    "sharp": Case((4, 8, 8), (4, 8, 8), logit_std=9.0),
    "very sharp": Case((5, 6, 7), (5, 6, 7), logit_std=16.0),
}


def block_mask(case: Case, num_q: int, num_k: int, g: torch.Generator) -> Tensor:
    shape = (2, case.heads[0], num_q, num_k)
    mask = torch.rand(shape, generator=g) < 0.3
    mask[..., 0] |= ~mask.any(-1)
    if case.lists == "hub":  # every query block wants the last key block, few want others
        mask = torch.rand(shape, generator=g) < 0.1
        mask[..., -1] = True
    if case.lists == "empty":
        mask[0, 1, 1] = False
        mask[1] = False
    if case.lists == "all":
        mask[:] = True
    return mask


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """Tensors in plain order, layouts, lists, and a cotangent of both results."""

    q: Tensor
    k: Tensor
    v: Tensor
    do: Tensor
    dlse: Tensor
    mask: Tensor
    layout_q: BlockLayout
    layout_k: BlockLayout
    scale: float


def problem(case: Case, seed: int, dim: int = 8) -> Problem:
    g = torch.Generator().manual_seed(seed)
    layout_q, layout_k = (
        BlockLayout(case.grid_q, case.block_q),
        BlockLayout(case.grid_k, case.block_k),
    )
    (hq, hk), n, m = case.heads, layout_q.num_tokens, layout_k.num_tokens

    def randn(heads: int, tokens: int) -> Tensor:
        return torch.randn(2, heads, tokens, dim, generator=g, dtype=torch.float64)

    mask = block_mask(case, layout_q.num_blocks, layout_k.num_blocks, g)
    return Problem(
        q=randn(hq, n) * case.logit_std,
        k=randn(hk, m),
        v=randn(hk, m),
        do=randn(hq, n),
        dlse=torch.randn(2, hq, n, generator=g, dtype=torch.float64),
        mask=mask,
        layout_q=layout_q,
        layout_k=layout_k,
        scale=dim**-0.5,
    )


def ours(p: Problem, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Results and gradients of the reference in plain order, in float64."""
    index = BlockIndex.from_dense_mask(p.mask)
    pairs = BlockPairs(index, p.layout_q.blocks(), p.layout_k.blocks())
    q, do = (p.layout_q.to_block(x.to(dtype), 2) for x in (p.q, p.do))
    k, v = (p.layout_k.to_block(x.to(dtype), 2) for x in (p.k, p.v))
    dlse = p.layout_q.to_block(p.dlse, 2)
    o, lse = reference.forward(q, k, v, pairs, p.scale)
    dq, dk, dv = reference.backward(do, q, k, v, o, lse, dlse, pairs, p.scale)
    assert o.dtype == dq.dtype == dk.dtype == dv.dtype == dtype
    found = {"o": o, "lse": lse, "dq": dq}
    plain = {name: p.layout_q.from_block(x, 2) for name, x in found.items()}
    plain |= {"dk": p.layout_k.from_block(dk, 2), "dv": p.layout_k.from_block(dv, 2)}
    return {name: x.double() for name, x in plain.items()}


def expected(p: Problem, case: Case, dense: Oracle, blocks: Blocks) -> dict[str, Tensor]:
    """The same from dense attention and autograd."""
    q, k, v = (x.clone().requires_grad_() for x in (p.q, p.k, p.v))
    of_q, of_k = blocks(case.grid_q, case.block_q), blocks(case.grid_k, case.block_k)
    o, lse = dense(q, k, v, p.mask, of_q, of_k, p.scale)
    finite = lse.isfinite()
    loss = (o * p.do).sum() + (lse * p.dlse)[finite].sum()
    dq, dk, dv = torch.autograd.grad(loss, (q, k, v))
    return {"o": o.detach(), "lse": lse.detach(), "dq": dq, "dk": dk, "dv": dv}


@pytest.mark.parametrize("name", CASES)
def test_results_and_gradients(
    name: str, dense_attention: Oracle, tokens_to_blocks: Blocks
) -> None:
    case = CASES[name]
    p = problem(case, 0)
    found, exact = ours(p), expected(p, case, dense_attention, tokens_to_blocks)
    for key, value in exact.items():
        assert torch.allclose(found[key], value, rtol=1e-10, atol=1e-11), key
    if case.lists == "empty":
        empty = found["lse"] == -torch.inf
        assert empty[1].all() and not empty[0].all() and empty[0, 1].any()
        assert (found["o"][empty] == 0).all() and (found["dq"][empty] == 0).all()
        assert (found["dk"][1] == 0).all() and (found["dv"][1] == 0).all()


def test_small_steps_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(CASES["unequal"], 4)
    whole = ours(p)
    monkeypatch.setattr(reference, "CHUNK_BYTES", 1)
    for name, value in ours(p).items():
        assert torch.allclose(value, whole[name], rtol=1e-12, atol=1e-12), name


@pytest.mark.parametrize("logit_std", [1.0, 16.0])
def test_float32_accuracy(
    logit_std: float, dense_attention: Oracle, tokens_to_blocks: Blocks
) -> None:
    case = dataclasses.replace(CASES["ragged"], logit_std=logit_std)
    p = problem(case, 5)
    found, exact = ours(p, torch.float32), expected(p, case, dense_attention, tokens_to_blocks)
    for name, value in exact.items():
        assert (found[name] - value).norm() <= 1e-6 * logit_std * value.norm(), name


@pytest.mark.parametrize("logit_std", [1.0, 4.0, 16.0])
def test_bfloat16_is_as_accurate_as_dense_attention(
    logit_std: float, dense_attention: Oracle, tokens_to_blocks: Blocks
) -> None:
    # Against float64 on the rounded inputs, and PyTorch's masked attention as the yardstick.
    case = dataclasses.replace(CASES["ragged"], logit_std=logit_std)
    p = problem(case, 6, dim=64)
    rounded = {name: getattr(p, name).bfloat16().double() for name in ("q", "k", "v", "do")}
    p = dataclasses.replace(p, **rounded, dlse=torch.zeros_like(p.dlse))
    found, exact = ours(p, torch.bfloat16), expected(p, case, dense_attention, tokens_to_blocks)
    of_token = tokens_to_blocks(case.grid_q, case.block_q)
    attended = p.mask[:, :, of_token][:, :, :, of_token]
    q, k, v = (x.bfloat16().requires_grad_() for x in (p.q, p.k, p.v))
    o = F.scaled_dot_product_attention(q, k, v, attn_mask=attended)
    gradients = torch.autograd.grad(o, (q, k, v), p.do.bfloat16())
    dense = dict(zip(("o", "dq", "dk", "dv"), (o.detach(), *gradients), strict=True))
    for name, value in dense.items():
        allowed = 1.5 * float((value.double() - exact[name]).norm())
        assert float((found[name] - exact[name]).norm()) <= allowed, name


def test_a_nan_reaches_only_who_attends_to_it() -> None:
    p = problem(CASES["ragged"], 7)
    p.mask[..., 2] = False  # nobody attends to key block 2
    clean = ours(p)
    tokens = p.layout_k.permutation()[slice(*p.layout_k.offsets()[2:4].tolist())]
    p.k[:, :, tokens] = torch.nan
    p.v[:, :, tokens] = torch.inf
    poisoned = ours(p)
    for name in ("o", "lse", "dq", "dk", "dv"):
        assert torch.equal(poisoned[name], clean[name]), name


def test_an_infinite_gradient_of_an_empty_row_stays_there() -> None:
    p = problem(CASES["empty rows"], 8)
    clean = ours(p)
    p.dlse[1] = torch.nan  # as exp(-inf - -inf) of a merge would give
    for name, value in ours(p).items():
        assert torch.equal(value, clean[name]), name


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


class LargestTensor(TorchDispatchMode):
    """Notes the number of entries of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else (result,):
            if isinstance(x, Tensor):
                self.entries = max(self.entries, x.numel())
        return result


def test_memory_does_not_grow_with_the_square(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "CHUNK_BYTES", 1 << 16)
    layout = BlockLayout((4, 32, 32))
    q, k, v = (torch.randn(1, 1, layout.num_tokens, 4) for _ in range(3))
    index = BlockIndex.from_dense_mask(torch.eye(layout.num_blocks, dtype=torch.bool))
    pairs = BlockPairs(index, layout.blocks(), layout.blocks())
    with LargestTensor() as largest:
        o, lse = reference.forward(q, k, v, pairs, 0.5)
        reference.backward(o, q, k, v, o, lse, None, pairs, 0.5)
    assert largest.entries <= (layout.num_tokens + layout.max_block_size) * 4
