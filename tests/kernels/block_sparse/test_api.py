from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from longtake.kernels.block_sparse import (
    BlockIndex,
    BlockLayout,
    attention_from_index,
    block_sparse_attention,
    local_window,
    select_blocks,
)
from longtake.kernels.block_sparse.layout import Size3
from longtake.runtime.errors import UserError

GRID, BLOCK = (5, 6, 7), (2, 4, 4)
N = 5 * 6 * 7


def tensors(
    dtype: torch.dtype = torch.float64, heads: tuple[int, int] = (4, 2), seed: int = 0, n: int = N
) -> list[Tensor]:
    """Queries [2, Hq, N, 8], keys and values [2, Hk, N, 8]."""
    g = torch.Generator().manual_seed(seed)
    shapes = [(2, h, n, 8) for h in (heads[0], heads[1], heads[1])]
    return [torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in shapes]


def attend(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Any:
    options = {"grid_q": GRID, "block_q": BLOCK, "block_k": BLOCK, **options}
    return block_sparse_attention(q, k, v, **options)


@pytest.mark.parametrize(
    "rule", [{"topk": 3}, {"sparsity": 0.7}, {"cdf_p": 0.4}, {"topk": 2, "cdf_p": 0.3}]
)
def test_against_selection_and_attention_by_hand(
    rule: dict[str, Any],
    dense_attention: Callable[..., tuple[Tensor, Tensor]],
    tokens_to_blocks: Callable[[Size3, Size3], Tensor],
) -> None:
    q, k, v = (x.requires_grad_() for x in tensors())
    of_token = tokens_to_blocks(GRID, BLOCK)
    num = int(of_token.max()) + 1
    q_mean, k_mean = (
        torch.stack([x.detach()[:, :, of_token == i].mean(2) for i in range(num)], dim=2)
        for x in (q, k)
    )
    scores = q_mean @ k_mean.repeat_interleave(2, 1).mT
    order = scores.argsort(dim=-1, descending=True)
    mass = (scores * 8**-0.5).softmax(-1).gather(-1, order).cumsum(-1)
    count = torch.full(scores.shape[:-1], rule.get("topk", 1))
    if "sparsity" in rule:
        count = torch.full(scores.shape[:-1], int(0.3 * num + 1e-6))
    if "cdf_p" in rule:
        count = torch.maximum(count, (mass < rule["cdf_p"]).sum(-1) + 1)
    mask = torch.zeros_like(scores, dtype=torch.bool)
    mask.scatter_(-1, order, torch.arange(num) < count[..., None])
    expected, lse = dense_attention(q, k, v, mask, of_token, of_token, 8**-0.5)
    out, our_lse = attend(q, k, v, return_lse=True, **rule)
    assert torch.allclose(out, expected, rtol=0, atol=1e-13)
    assert torch.allclose(our_lse, lse, rtol=0, atol=1e-13)
    cotangent, of_lse = torch.randn_like(out), torch.randn_like(lse)
    found = torch.autograd.grad((out, our_lse), (q, k, v), (cotangent, of_lse))
    exact = torch.autograd.grad((expected, lse), (q, k, v), (cotangent, of_lse))
    for a, b in zip(found, exact, strict=True):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("heads_first", [True, False])
def test_token_orders_and_axis_orders_agree_bitwise(heads_first: bool) -> None:
    q, k, v = tensors()
    plain = attend(q, k, v, topk=3, return_lse=True)
    layout = BlockLayout(GRID, BLOCK)
    moved = [layout.to_block(x, 2) for x in (q, k, v)]
    if not heads_first:
        moved = [x.transpose(1, 2).contiguous() for x in moved]
    out, lse = attend(*moved, topk=3, layout="block", heads_first=heads_first, return_lse=True)
    assert out.shape == moved[0].shape and out.stride() == moved[0].stride()
    out = out if heads_first else out.transpose(1, 2)
    assert torch.equal(layout.from_block(out, 2), plain[0])
    assert torch.equal(layout.from_block(lse, 2), plain[1])
    if not heads_first:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        again, lse = attend(q, k, v, topk=3, heads_first=False, return_lse=True)
        assert torch.equal(again.transpose(1, 2), plain[0]) and torch.equal(lse, plain[1])


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("rule", [{"topk": 10**6}, {"sparsity": 0.0}, {"cdf_p": 1.0}])
def test_all_blocks_is_dense_attention(rule: dict[str, Any], backend: str) -> None:
    q, k, v = (x.requires_grad_() for x in tensors())
    cotangent = torch.randn(q.shape, dtype=torch.float64)
    out = attend(q, k, v, backend=backend, **rule)
    dense = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    assert torch.allclose(out, dense, rtol=0, atol=1e-13)
    for a, b in zip(
        torch.autograd.grad(out, (q, k, v), cotangent),
        torch.autograd.grad(dense, (q, k, v), cotangent),
        strict=True,
    ):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)
    swapped = attend(*(x.transpose(1, 2) for x in (q, k, v)), heads_first=False, **rule)
    assert torch.allclose(swapped.transpose(1, 2), dense, rtol=0, atol=1e-13)


def test_views_of_one_projection() -> None:
    packed = torch.randn(2, N, 3, 4, 8, dtype=torch.float64, requires_grad=True)
    q, k, v = packed.unbind(2)
    out = attend(q, k, v, topk=3, heads_first=False)
    (gradient,) = torch.autograd.grad(out.square().sum(), packed)
    copies = [x.detach().contiguous().requires_grad_() for x in (q, k, v)]
    alone = attend(*copies, topk=3, heads_first=False)
    assert torch.equal(out, alone)
    singles = torch.autograd.grad(alone.square().sum(), copies)
    assert torch.equal(gradient, torch.stack(singles, dim=2))


def test_activation_checkpointing_repeats_the_selection() -> None:
    q, k, v = (x.requires_grad_() for x in tensors(torch.float32))

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = attend(q, k, v, cdf_p=0.5)
        return out.sin().sum()

    plain = torch.autograd.grad(run(q, k, v), (q, k, v))
    again = torch.autograd.grad(checkpoint(run, q, k, v, use_reentrant=False), (q, k, v))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_types_of_the_results(dtype: torch.dtype) -> None:
    q, k, v = tensors(dtype)
    out, lse = attend(q, k, v, topk=4, return_lse=True)
    assert out.dtype == dtype and lse.dtype == torch.float32
    exact = attend(*(x.double() for x in (q, k, v)), topk=4)
    assert (out.double() - exact).norm() <= 4 * torch.finfo(dtype).eps * exact.norm()


def test_autocast_casts_like_dense_attention() -> None:
    layout = BlockLayout(GRID, BLOCK)
    index = BlockIndex.from_dense_mask(torch.eye(layout.num_blocks, dtype=torch.bool))
    q, k, v = tensors(torch.float32)

    def run(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        listed = attention_from_index(q, k, v, index, layout, layout)
        return attend(q, k, v, cdf_p=0.5), listed, *attend(q, k, v, topk=4, return_lse=True)

    rounded = run(q.bfloat16(), k.bfloat16(), v.bfloat16())
    exact = run(*tensors())
    with torch.autocast("cpu", torch.bfloat16):
        cast, mixed, untouched = run(q, k, v), run(q, k.bfloat16(), v), run(*tensors())
    # Only the inputs are rounded: what is computed inside stays in float32, and so does the rest.
    for a, b, c in zip(cast, mixed, rounded, strict=True):
        assert torch.equal(a, c) and torch.equal(b, c) and a.dtype == c.dtype
    assert rounded[0].dtype == torch.bfloat16 and rounded[3].dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(untouched, exact, strict=True))


def both(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """All rules at once, and attention from an index that is made inside."""
    layout = BlockLayout(GRID, BLOCK)
    out, _ = attend(q, k, v, topk=2, cdf_p=0.3, heads_first=False, return_lse=True)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    keep = local_window(layout, layout, (0, 0, 1))
    index = select_blocks(q, k, layout, layout, topk=3, must_keep=keep)
    again = attention_from_index(q, k, v, index, layout, layout, layout="block")
    assert isinstance(again, Tensor)
    return out, again


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_without_a_graph_break(backend: str) -> None:
    inputs = [x.transpose(1, 2).contiguous().requires_grad_() for x in tensors(torch.float32)]
    eager = both(*inputs)
    compiled = torch.compile(both, fullgraph=True, backend=backend)(*inputs)
    for a, b in zip(eager, compiled, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)
    cotangents = [torch.randn_like(x) for x in eager]
    for a, b in zip(
        torch.autograd.grad(eager, inputs, cotangents),
        torch.autograd.grad(compiled, inputs, cotangents),
        strict=True,
    ):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "options", "word"),
    [
        ({}, {"grid_q": (5, 6, 8)}, "tokens of the grids"),
        ({}, {"heads_first": False}, "pass heads_first=True"),
        ({"k": lambda k: k[:, :1].expand(-1, 3, -1, -1)}, {}, "do not fit together"),
        ({"k": lambda k: k.float()}, {}, "do not fit together"),
        ({x: lambda x: x.int() for x in "qkv"}, {}, "float type"),
        ({"v": lambda v: v.to("meta")}, {}, "on meta"),
        ({}, {"backend": "triton"}, "triton on cpu"),
        ({}, {"topk": None}, "no rule"),
        ({}, {"block_q": (4, 4)}, "sizes of a block layout"),
    ],
)
def test_wrong_calls_are_explained(
    change: dict[str, Callable[[Tensor], Tensor]], options: dict[str, Any], word: str
) -> None:
    named = dict(zip("qkv", tensors(heads=(4, 2)), strict=True))
    named |= {name: edit(named[name]) for name, edit in change.items()}
    with pytest.raises(UserError, match=word):
        attend(**named, **{"topk": 3, **options})


def test_an_index_that_does_not_fit_is_refused() -> None:
    layout, other = BlockLayout(GRID, BLOCK), BlockLayout(GRID, (4, 4, 4))
    index = BlockIndex.from_dense_mask(torch.ones(other.num_blocks, other.num_blocks).bool())
    for wrong, of, word in (
        (index, layout, "does not fit the layouts"),
        (index.to("meta"), other, "does not fit the layouts"),
        (index.expand(2, 3), other, "does not fit the layouts, the heads"),
    ):
        with pytest.raises(UserError, match=word):
            attention_from_index(*tensors(), wrong, of, of)
