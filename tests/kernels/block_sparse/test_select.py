"""Means, selection against rankings done one row at a time, and masks block by block."""

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from longtake.kernels.block_sparse import index as index_module
from longtake.kernels.block_sparse import reference
from longtake.kernels.block_sparse.index import BlockIndex, pack_bits
from longtake.kernels.block_sparse.layout import BlockLayout
from longtake.kernels.block_sparse.select import (
    block_means,
    count_from_rule,
    first_frames,
    local_window,
    pool_blocks,
    select_blocks,
    select_from_pooled,
    select_key_blocks,
    space_and_time,
)
from longtake.runtime.errors import UserError

RULES: list[dict[str, Any]] = [
    {"topk": 5},
    {"cdf_p": 0.95},
    {"topk": 6, "cdf_p": 0.6},
    {"cdf_p": 0.2, "min_blocks": 4},
]


def pooled(
    seed: int, std: float = 1.0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Means [2, 4, 9, 8] and [2, 2, 13, 8] whose scaled scores have about the deviation ``std``."""
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(2, 4, 9, 8, generator=g, dtype=dtype) * std
    return q, torch.randn(2, 2, 13, 8, generator=g, dtype=dtype)


def rows(q: Tensor, k: Tensor) -> list[tuple[tuple[int, int, int], list[float]]]:
    """(batch, head, query block) and its scores, for every row."""
    group = q.shape[1] // k.shape[1]
    return [
        ((b, h, i), [float(q[b, h, i] @ key) for key in k[b, h // group]])
        for b in range(q.shape[0])
        for h in range(q.shape[1])
        for i in range(q.shape[2])
    ]


def ranking(scores: list[float], first: set[int] = frozenset()) -> list[int]:  # type: ignore[assignment]
    """Blocks to keep, then the others from the best score down, ties by number."""
    return sorted(range(len(scores)), key=lambda j: (j not in first, -scores[j], j))


def softmax(scores: list[float], scale: float) -> list[float]:
    top = max(scores)
    weights = [math.exp(scale * (s - top)) for s in scores]
    return [w / sum(weights) for w in weights]


def chosen(index: BlockIndex, row: tuple[int, int, int]) -> list[int]:
    return index.indices[row][: int(index.counts[row])].tolist()


@pytest.mark.parametrize("rule", RULES)
def test_rules_row_by_row(rule: dict[str, Any]) -> None:
    q, k = pooled(0)
    index = select_from_pooled(q, k, **rule)
    index.validate()
    assert index.num_key_blocks == 13 and not index.indices.requires_grad
    for row, scores in rows(q, k):
        order, weights = ranking(scores), softmax(scores, 8**-0.5)
        count = max(rule.get("topk", 0), rule.get("min_blocks", 1))
        if "cdf_p" in rule:
            enough = next(
                n for n in range(1, 14) if sum(weights[j] for j in order[:n]) >= rule["cdf_p"]
            )
            count = max(count, enough)
        assert chosen(index, row) == sorted(order[:count]), row


def test_lists_are_as_long_as_the_rule_needs() -> None:
    q, k = pooled(0)
    assert select_from_pooled(q, k, topk=5).indices.shape[-1] == 5
    assert select_from_pooled(q, k, topk=2, min_blocks=3).indices.shape[-1] == 3
    assert select_from_pooled(q, k, topk=99).indices.shape[-1] == 13
    assert select_from_pooled(q, k, cdf_p=0.5).indices.shape[-1] == 13
    assert select_from_pooled(q, k, cdf_p=0.5, max_blocks=7).indices.shape[-1] == 7


@pytest.mark.parametrize(("p", "std"), [(0.3, 1.0), (0.999, 16.0)])
def test_mass_is_reached_and_no_block_too_many(p: float, std: float) -> None:
    q, k = pooled(5, std, torch.float32)
    index = select_from_pooled(q, k, cdf_p=p)
    mask = index.to_dense_mask()
    weights = (q.double() @ k.double().repeat_interleave(2, 1).mT * 8**-0.5).softmax(-1)
    mass = (weights * mask).sum(-1)
    weakest = torch.where(mask, weights, torch.inf).amin(-1)
    assert (mass >= p - 1e-6).all() and (mass - weakest < p + 1e-6).all()
    assert (index.counts >= 1).all()


def test_ties_go_to_the_lower_block() -> None:
    q = torch.ones(1, 1, 1, 1)
    k = torch.tensor([1.0, 3.0, 2.0, 3.0, 2.0, 2.0, 3.0, 1.0]).view(1, 1, 8, 1)
    for count, expected in [(1, [1]), (2, [1, 3]), (4, [1, 2, 3, 6]), (7, [0, 1, 2, 3, 4, 5, 6])]:
        assert chosen(select_from_pooled(q, k, topk=count), (0, 0, 0)) == expected
    equal = select_from_pooled(q.expand(1, 2, 3, 1), k[:, :, :1].expand(1, 1, 5, 1), topk=3)
    assert equal.indices.flatten(0, 2).tolist() == [[0, 1, 2]] * 6
    half = select_from_pooled(q, k[:, :, :1].expand(1, 1, 4, 1), cdf_p=0.5)
    assert chosen(half, (0, 0, 0)) == [0, 1]


@pytest.mark.parametrize(
    ("rule", "shape", "as_index"),
    [({"topk": 4}, (9, 13), True), ({"cdf_p": 0.6}, (2, 1, 9, 13), False)],
)
def test_blocks_to_keep_come_first_and_count(
    rule: dict[str, Any], shape: tuple[int, ...], as_index: bool
) -> None:
    q, k = pooled(7)
    keep = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.2
    keep[..., 0, :6] = True  # more than topk
    keep[..., 1, :] = False
    wide = keep.reshape((1,) * (4 - keep.ndim) + shape).expand(2, 4, 9, 13)
    must_keep = BlockIndex.from_dense_mask(keep) if as_index else keep
    index = select_from_pooled(q, k, must_keep=must_keep, **rule)
    index.validate()
    for row, scores in rows(q, k):
        first = set(wide[row].nonzero().flatten().tolist())
        order, weights = ranking(scores, first), softmax(scores, 8**-0.5)
        count = max(len(first), rule.get("topk", 1))
        if "cdf_p" in rule:
            mass = [sum(weights[j] for j in order[:n]) for n in range(14)]
            count = max(count, next(n for n in range(1, 14) if mass[n] >= rule["cdf_p"]))
        assert chosen(index, row) == sorted(order[:count]), row


def test_lists_to_keep_bound_the_width_and_masks_do_not() -> None:
    q, k = pooled(0)
    keep = torch.eye(9, 13, dtype=torch.bool)
    lists = BlockIndex.from_dense_mask(keep)
    assert select_from_pooled(q, k, topk=3, must_keep=lists).indices.shape[-1] == 3
    assert select_from_pooled(q, k, topk=3, must_keep=keep).indices.shape[-1] == 13
    assert select_from_pooled(q, k, cdf_p=0.9, must_keep=lists, max_blocks=4).counts.max() <= 4
    with pytest.raises(UserError, match="could cut blocks"):
        select_from_pooled(q, k, topk=3, must_keep=keep, max_blocks=4)


def test_a_nan_is_selected_not_hidden() -> None:
    q, k = pooled(0)
    k[0, 1, 6] = torch.nan
    index = select_from_pooled(q, k, topk=2)
    assert all(6 in chosen(index, row) for row, _ in rows(q, k) if row[0] == 0 and row[1] >= 2)
    assert torch.equal(index.counts, torch.full_like(index.counts, 2))


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k = pooled(4)
    whole = select_from_pooled(q, k, topk=3, cdf_p=0.5)
    monkeypatch.setattr(index_module, "CHUNK_BYTES", 1)
    rowwise = select_from_pooled(q, k, topk=3, cdf_p=0.5)
    assert torch.equal(whole.indices, rowwise.indices)
    assert torch.equal(whole.counts, rowwise.counts)


def test_choice_never_waits_for_the_device() -> None:
    scores = torch.zeros(5, 9, device="meta")
    must = torch.zeros(5, 9, dtype=torch.bool, device="meta")
    assert reference.highest(scores, must, 2, 0.5, 4, 1.0).shape == (5, 9)


def test_tokens_are_pooled_first_in_float32_and_without_gradient() -> None:
    g = torch.Generator().manual_seed(0)
    layout_q, layout_k = BlockLayout((3, 6, 5), (2, 4, 4)), BlockLayout((5, 9, 4), (2, 4, 4))
    q = torch.randn(1, 4, 90, 16, generator=g).bfloat16().requires_grad_()
    k = torch.randn(1, 2, 180, 16, generator=g).bfloat16().requires_grad_()
    index = select_blocks(q, k, layout_q, layout_k, topk=4)
    means = []
    for x, layout in ((q, layout_q), (k, layout_k)):
        blocks = x.detach().double().split(layout.block_sizes().tolist(), dim=2)
        means.append(torch.stack([block.mean(2) for block in blocks], dim=2))
    best = select_from_pooled(*means, topk=4)
    assert torch.equal(index.indices, best.indices)
    assert index.indices.shape == (1, 4, layout_q.num_blocks, 4)


@pytest.mark.parametrize(
    ("num_keys", "sparsity", "count"),
    [
        (1440, 0.9375, 90),
        (1320, 0.9375, 82),
        (1000, 0.9, 100),  # 99.99999999999997 in binary
        (8, 0.9375, 1),  # half a block
        (5, 0.0, 5),
    ],
)
def test_count_from_sparsity(num_keys: int, sparsity: float, count: int) -> None:
    assert count_from_rule(num_keys, sparsity=sparsity) == count
    assert count_from_rule(num_keys, topk=3) == 3 and count_from_rule(num_keys) is None


LAYOUTS = [
    BlockLayout((4, 8, 8), (4, 4, 4)),
    BlockLayout((6, 9, 11), (4, 4, 4)),
    BlockLayout((3, 2, 5), (4, 4, 4)),
    BlockLayout((5, 4, 7), (2, 4, 3)),
    BlockLayout((7, 5, 3), (4, 2, 2), segments=(3, 4)),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("heads_first", [True, False])
def test_means_of_every_block(layout: BlockLayout, heads_first: bool) -> None:
    n = layout.num_tokens
    shape = (2, 3, n, 4) if heads_first else (2, n, 3, 4)
    x = torch.randn(shape, dtype=torch.float64)
    x = x if heads_first else x.transpose(1, 2)
    ends = layout.offsets().tolist()
    for i, mean in enumerate(pool_blocks(x, layout).unbind(2)):
        expected = x[:, :, ends[i] : ends[i + 1]].sum(2) / (ends[i + 1] - ends[i])
        assert torch.allclose(mean, expected, rtol=0, atol=1e-14)


MASK_QUERIES = BlockLayout((4, 9, 10), (2, 4, 4))  # 2 x 3 x 3 blocks
MASK_KEYS = BlockLayout((7, 11, 12), (2, 4, 4))  # 4 x 3 x 3 blocks


@pytest.mark.parametrize("start", [0, 2])
def test_patterns_block_by_block(start: int) -> None:
    window = local_window(MASK_QUERIES, MASK_KEYS, (1, 0, 2), start)
    cross = space_and_time(MASK_QUERIES, MASK_KEYS, start)
    sink = first_frames(MASK_QUERIES, MASK_KEYS, 3)
    assert window.dtype == cross.dtype == sink.dtype == torch.bool
    places_q = list(product(range(2), range(3), range(3)))
    places_k = list(product(range(4), range(3), range(3)))
    for i, (t, y, x) in enumerate(places_q):
        for j, (u, b, a) in enumerate(places_k):
            near = abs(u - t - start) <= 1 and b == y and abs(a - x) <= 2
            assert window[i, j] == near
            assert cross[i, j] == (u == t + start or (b, a) == (y, x))
            assert sink[i, j] == (u < 3)


def test_the_ops_are_registered_properly() -> None:
    for layout in LAYOUTS[1], LAYOUTS[4]:
        x = torch.randn(2, layout.num_tokens, 3, 4).bfloat16().transpose(1, 2)
        torch.library.opcheck(block_means, (x, layout.offsets(), layout.max_block_size, "auto"))
    q, k = pooled(0, dtype=torch.float32)
    kept = pack_bits(torch.eye(9, 13, dtype=torch.bool)[None, None])
    torch.library.opcheck(select_key_blocks, (q, k, kept, 3, 0.5, 8, 0.3, "auto"))
    torch.library.opcheck(select_key_blocks, (q, k, None, 3, 0.0, 3, 0.3, "reference"))


@pytest.mark.parametrize(
    ("rule", "word"),
    [
        ({}, "no rule"),
        ({"topk": 3, "sparsity": 0.5}, "not a number of key blocks"),
        ({"topk": 2.0}, "not a number of key blocks"),
        ({"sparsity": 1.0}, "not a number of key blocks"),
        ({"cdf_p": 0.0}, "out of range"),
        ({"topk": 3, "max_blocks": 2}, "out of range"),
        ({"topk": 3, "min_blocks": -1}, "out of range"),
        ({"topk": 3, "must_keep": torch.ones(9, 12, dtype=torch.bool)}, "must_keep"),
        ({"topk": 3, "must_keep": torch.ones(9, 13, dtype=torch.bool, device="meta")}, "on meta"),
        ({"topk": 3, "backend": "cuda"}, "cuda on cpu"),
    ],
)
def test_wrong_rules_are_explained(rule: dict[str, Any], word: str) -> None:
    q, k = pooled(0)
    with pytest.raises(UserError, match=word):
        select_from_pooled(q, k, **rule)


def test_unknown_options_are_refused() -> None:
    q, k = pooled(0)
    with pytest.raises(TypeError, match="top_k"):
        select_from_pooled(q, k, top_k=2)  # type: ignore[call-arg]
