"""Checks of the attention on a device, against dense attention in float64.

The tests run them on every backend, and the benchmark before it names a speed-up. They take seconds
and a few hundred megabytes. Errors of 16-bit types are compared with those that PyTorch's dense
attention makes on the same numbers with the same mask.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from longtake.kernels.block_sparse import (
    BlockIndex,
    BlockLayout,
    Size3,
    attention_from_index,
    block_sparse_attention,
    select_blocks,
)

#: Largest error, in units of dense attention's own in the same type.
DENSE_ERRORS = 1.5


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One measured number and its bound."""

    name: str
    value: float
    bound: float
    """Largest acceptable value."""

    @property
    def passed(self) -> bool:
        """Whether the value is within the bound; NaN is not."""
        return self.value <= self.bound


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """Tensors of one comparison, block order, [B, H, N, D]."""

    q: Tensor
    k: Tensor
    v: Tensor
    do: Tensor
    index: BlockIndex
    of_q: BlockLayout
    of_k: BlockLayout

    def run(self, backend: str) -> tuple[Tensor, ...]:
        """Output, log-sum-exp and gradients of q, k and v from our kernels."""
        q, k, v = (x.detach().requires_grad_() for x in (self.q, self.k, self.v))
        o, lse = attention_from_index(
            q, k, v, self.index, self.of_q, self.of_k, layout="block", return_lse=True,
            backend=backend,
        )  # fmt: skip
        return o.detach(), lse.detach(), *torch.autograd.grad(o, (q, k, v), self.do)

    def mask(self) -> Tensor:
        """Which token attends to which: bool [B, H, N, M]."""
        blocks = self.index.to_dense_mask()
        rows = self.of_q.block_sizes(blocks.device)
        columns = self.of_k.block_sizes(blocks.device)
        return blocks.repeat_interleave(rows, 2).repeat_interleave(columns, 3)

    def exact(self) -> tuple[Tensor, ...]:
        """The same from dense attention in float64."""
        q, k, v = (x.detach().double().requires_grad_() for x in (self.q, self.k, self.v))
        group = q.shape[1] // k.shape[1]
        keys, values = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        mask = self.mask()
        scores = (q @ keys.mT * q.shape[-1] ** -0.5).masked_fill(~mask, -math.inf)
        empty = ~mask.any(-1, keepdim=True)
        weights = scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)
        o = weights @ values
        gradients = torch.autograd.grad(o, (q, k, v), self.do.double())
        return o.detach(), scores.detach().logsumexp(-1), *gradients

    def dense(self) -> tuple[Tensor, ...]:
        """Output and gradients of PyTorch's dense attention in the type of the inputs."""
        q, k, v = (x.detach().contiguous().requires_grad_() for x in (self.q, self.k, self.v))
        grouped = q.shape[1] != k.shape[1]
        mask = self.mask()
        empty = ~mask.any(-1, keepdim=True)  # not defined there: attend to all, then drop it
        o = F.scaled_dot_product_attention(q, k, v, mask | empty, enable_gqa=grouped)
        o = o.masked_fill(empty, 0.0)
        return o.detach(), *torch.autograd.grad(o, (q, k, v), self.do)


def check_accuracy(device: torch.device, backend: str) -> Iterator[Finding]:
    """Output, log-sum-exp and gradients for flat and sharp attention, and three kinds of lists."""
    grid = (8, 8, 16)
    for seed, (kind, deviation) in enumerate(
        (kind, deviation) for kind in ("random", "local", "hub") for deviation in (1.0, 4.0, 16.0)
    ):
        case = make_case(
            device, torch.bfloat16, grid, grid, heads=(2, 2), kind=kind, deviation=deviation,
            seed=seed,
        )  # fmt: skip
        yield from compare(f"{kind}, scores of deviation {deviation:g}", case, backend)


def check_shapes(device: torch.device, backend: str) -> Iterator[Finding]:
    """Ragged grids, other blocks and head sizes, grouped heads, token order, other types."""
    bf16, half, single = torch.bfloat16, torch.float16, torch.float32
    block = (4, 4, 4)
    for name, dtype, grids, blocks, heads, dim in (
        ("ragged grids", bf16, ((5, 6, 9), (7, 6, 5)), block, (2, 2), 128),
        ("grouped heads", bf16, ((4, 8, 8), (8, 8, 8)), block, (6, 2), 128),
        ("ragged, grouped, 64", half, ((4, 9, 8), (6, 9, 8)), block, (4, 1), 64),
        ("short blocks before whole ones", bf16, ((8, 5, 9), (8, 6, 9)), block, (2, 1), 64),
        ("heads of 64", bf16, ((4, 8, 8), (4, 8, 8)), block, (2, 2), 64),
        ("blocks of 128", bf16, ((4, 8, 20), (4, 8, 16)), (4, 4, 8), (2, 2), 128),
        ("blocks of 16", bf16, ((2, 6, 8), (4, 5, 8)), (2, 2, 4), (2, 2), 64),
        ("float32", single, ((4, 7, 8), (4, 8, 8)), block, (2, 1), 128),
    ):
        if backend == "gluon" and (dtype == single or blocks == (2, 2, 4)):
            continue
        case = make_case(
            device, dtype, *grids, block=blocks, heads=heads, dim=dim, tokens_first=heads[0] != 2
        )
        yield from compare(name, case, backend)


def check_repeats(device: torch.device, backend: str) -> Iterator[Finding]:
    """Two runs give the same bits, with lists that make programs differ in length."""
    case = make_case(device, torch.bfloat16, (8, 12, 12), (8, 12, 12), heads=(2, 2), kind="hub")
    for name, a, b in zip(RESULTS, case.run(backend), case.run(backend), strict=True):
        yield Finding(f"second run: {name}", float((a != b).sum()), 0)


def check_foreign_values(device: torch.device, backend: str) -> Iterator[Finding]:
    """NaN in a block shows only where its list is, though tiles of short blocks overlap it."""
    grid = (4, 4, 18)  # the last block along the width has 32 tokens: the tile holds the next row's
    case = make_case(device, torch.bfloat16, (4, 8, 18), (4, 8, 18), heads=(1, 1), density=0.5)
    mask = case.index.to_dense_mask()
    poisoned = 5  # the block behind the first short one, number 4
    mask[..., poisoned] = False
    mask[:, :, poisoned] = False
    assert BlockLayout(grid).num_blocks == poisoned
    index = BlockIndex.from_dense_mask(mask)
    sizes = case.of_q.block_sizes(device).tolist()
    start = sum(sizes[:poisoned])
    inside = slice(start, start + sizes[poisoned])
    for x in (case.q, case.k, case.v, case.do):
        x[:, :, inside] = math.nan
    results = dataclasses.replace(case, index=index).run(backend)
    for name, result in zip(RESULTS, results, strict=True):
        kept = torch.cat((result[:, :, : inside.start], result[:, :, inside.stop :]), 2)
        yield Finding(f"NaN of another block in {name}", float(kept.isnan().sum()), 0)


def check_memory_orders(device: torch.device, backend: str) -> Iterator[Finding]:
    """Addresses that TMA cannot take, an expanded gradient, and shared lists give the same."""
    case = make_case(device, torch.bfloat16, (4, 8, 8), (4, 8, 8), heads=(2, 2))
    backend = "auto" if backend == "gluon" else backend
    case.do.fill_(0.5)
    expected = case.run(backend)
    shifted = [_shifted(x) for x in (case.q, case.k, case.v)]
    q, k, v = (x.requires_grad_() for x in shifted)
    o = attention_from_index(
        q, k, v, case.index, case.of_q, case.of_k, layout="block", backend=backend
    )
    assert isinstance(o, Tensor)
    results = o, *torch.autograd.grad((o * 0.5).sum(), (q, k, v))
    names, exact = ("output", *GRADIENTS), (expected[0], *expected[2:])
    for name, a, b in zip(names, results, exact, strict=True):
        yield Finding(f"unaligned tensors: {name}", _relative(a, b.double()), 1e-2)


def check_selection(device: torch.device, backend: str) -> Iterator[Finding]:
    """Selected blocks against sorted float64 scores; the mass rule; the lower block in ties."""
    layout = BlockLayout((12, 30, 44))
    draw = torch.Generator(device).manual_seed(1)
    shape = (1, 2, layout.num_tokens, 128)
    q, k = (torch.randn(shape, generator=draw, device=device).bfloat16() for _ in range(2))
    run = functools.partial(select_blocks, q, k, layout, layout, backend=backend)
    sizes = layout.block_sizes(device).tolist()
    means = [torch.stack([b.double().mean(2) for b in x.split(sizes, 2)], 2) for x in (q, k)]
    scores = means[0] @ means[1].mT
    ours = run(topk=15).to_dense_mask()
    best = torch.zeros_like(ours).scatter_(-1, scores.topk(15).indices, True)
    missed = 1 - float((ours & best).sum() / best.sum())
    yield Finding("blocks missed by top-r", missed, 1e-3)
    weights = (scores * 128**-0.5).softmax(-1)
    ours = run(cdf_p=0.9).to_dense_mask()
    held = (weights * ours).sum(-1)
    weakest = weights.masked_fill(~ours, math.inf).amin(-1)
    yield Finding("mass missing from sets", float((0.9 - held).max()), 1e-5)
    yield Finding("mass too much in sets", float((held - weakest - 0.9).max()), 1e-5)
    equal = torch.ones((1, 1, layout.num_tokens, 64), device=device, dtype=torch.bfloat16)
    index = select_blocks(equal, equal, layout, layout, topk=7, backend=backend)
    first = torch.arange(7, device=device)
    yield Finding("ties not taken from the lowest", float((index.indices != first).sum()), 0)
    again = run(topk=15).indices
    yield Finding("second selection", float((run(topk=15).indices != again).sum()), 0)


def check_from_plain_order(device: torch.device, backend: str) -> Iterator[Finding]:
    """The whole operator on tokens in plain order, all blocks selected: dense attention."""
    draw = torch.Generator(device).manual_seed(2)
    grid = (5, 9, 10)
    shape = (2, math.prod(grid), 2, 64)
    q, k, v = (torch.randn(shape, generator=draw, device=device).bfloat16() for _ in range(3))
    blocks = BlockLayout(grid).num_blocks
    o = block_sparse_attention(
        q, k, v, grid_q=grid, topk=blocks, heads_first=False, return_lse=True, backend=backend
    )[0]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double()).transpose(1, 2)
    dense = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    bound = DENSE_ERRORS * max(_relative(dense, exact), 1e-3)
    yield Finding("all blocks against dense attention", _relative(o, exact), bound)


CHECKS: dict[str, Callable[[torch.device, str], Iterator[Finding]]] = {
    "accuracy": check_accuracy,
    "shapes": check_shapes,
    "repeats": check_repeats,
    "foreign values": check_foreign_values,
    "memory orders": check_memory_orders,
    "selection": check_selection,
    "plain order": check_from_plain_order,
}
"""Name -> check: findings for a device and a backend."""

GRADIENTS = ("dq", "dk", "dv")
RESULTS = ("output", "log-sum-exp", *GRADIENTS)


def make_case(
    device: torch.device,
    dtype: torch.dtype,
    grid_q: Size3,
    grid_k: Size3,
    *,
    heads: tuple[int, int],
    block: Size3 = (4, 4, 4),
    dim: int = 128,
    kind: str = "random",
    density: float = 0.3,
    deviation: float = 1.0,
    tokens_first: bool = False,
    seed: int = 0,
) -> Case:
    """Random tensors whose scores have a standard deviation, and lists of a kind.

    The lists leave one row and one key block empty, where there are several.
    """
    draw = torch.Generator(device).manual_seed(seed)
    of_q, of_k = BlockLayout(grid_q, block), BlockLayout(grid_k, block)

    def tensor(num_heads: int, tokens: int, factor: float = 1.0) -> Tensor:
        shape = (1, tokens, num_heads, dim) if tokens_first else (1, num_heads, tokens, dim)
        x = (torch.randn(shape, generator=draw, device=device) * factor).to(dtype)
        return x.transpose(1, 2) if tokens_first else x

    chance = torch.full((of_q.num_blocks, of_k.num_blocks), density, device=device)
    if kind == "local":
        rows = torch.linspace(0, 1, of_q.num_blocks, device=device)[:, None]
        columns = torch.linspace(0, 1, of_k.num_blocks, device=device)
        chance = ((rows - columns).abs() < density / 2).float()
    if kind == "hub":
        chance[:, 1::7] = 1.0
    shape = (1, heads[0], of_q.num_blocks, of_k.num_blocks)
    mask = torch.rand(shape, generator=draw, device=device) < chance
    if kind != "local":
        mask[:, 0, 2:3], mask[..., 3:4] = False, False
    mask[:, :, 0, 0] = True
    return Case(
        q=tensor(heads[0], of_q.num_tokens, deviation),
        k=tensor(heads[1], of_k.num_tokens),
        v=tensor(heads[1], of_k.num_tokens),
        do=tensor(heads[0], of_q.num_tokens),
        index=BlockIndex.from_dense_mask(mask),
        of_q=of_q,
        of_k=of_k,
    )


def compare(name: str, case: Case, backend: str) -> Iterator[Finding]:
    """Errors of one case, bounded by those of dense attention in the same type."""
    ours, exact, dense = case.run(backend), case.exact(), case.dense()
    wide = case.q.dtype == torch.float32
    for result, truth, other, part in zip(
        (ours[0], *ours[2:]), (exact[0], *exact[2:]), dense, ("output", *GRADIENTS), strict=True
    ):
        bound = DENSE_ERRORS * max(_relative(other, truth), 2e-6 if wide else 1e-3)
        yield Finding(f"{name}: {part}", _relative(result, truth), bound)
    difference = torch.where(exact[1].isneginf(), 0.0, ours[1].double() - exact[1]).abs().max()
    misplaced = ours[1].isneginf() != exact[1].isneginf()
    # Scores are exact to float32: 2^-24 of their size, added up over the head.
    yield Finding(f"{name}: log-sum-exp", float(difference), 1e-4 if wide else 1e-3)
    yield Finding(f"{name}: rows taken for empty", float(misplaced.sum()), 0)


def _relative(x: Tensor, exact: Tensor) -> float:
    """Relative error in the Euclidean norm."""
    return float((x.detach().double() - exact).norm() / exact.norm())


def _shifted(x: Tensor) -> Tensor:
    """The same values at an address and with strides that are no multiples of 16 bytes."""
    *others, dim = x.shape
    room = torch.zeros((*others, dim + 1), dtype=x.dtype, device=x.device)
    room[..., 1:] = x
    return room[..., 1:].detach()
