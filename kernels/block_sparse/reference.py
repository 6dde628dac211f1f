"""Block-sparse attention in plain PyTorch: any device, any float type, also float64.

All steps of Appendix A.2.1: block means, selection, and attention with natural-log log-sum-exp and
an explicit backward. Per step only the selected blocks of some query blocks are gathered, so memory
does not grow with Nq x Nk. Types below float32 are computed in float32.
"""

import dataclasses
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from longtake.kernels.block_sparse.index import BlockPairs, compact, row_chunks, unpack_bits
from longtake.kernels.block_sparse.layout import Blocks

#: Temporaries of one step, in bytes.
CHUNK_BYTES = 1 << 26


def pool(x: Tensor, blocks: Blocks) -> Tensor:
    """Mean of every block of ``x`` [B, H, N, D]: [B, H, Nblk, D] in at least float32.

    Tokens are added in a fixed order that does not depend on the other blocks.
    """
    cut = _Cut.of(blocks)
    return cut(x)[:, :, :-1].sum(3) / cut.sizes[:-1, None]


def select(
    q_pool: Tensor,
    k_pool: Tensor,
    kept: Tensor | None,
    least: int,
    cdf_p: float,
    width: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Lists [B, Hq, Nq, R] and counts [B, Hq, Nq] of the key blocks of highest score.

    Args:
        q_pool: block means [B, Hq, Nq, D].
        k_pool: [B, Hk, Nk, D].
        kept: bit rows of blocks that are always selected, int32 [B or 1, Hq or 1, Nq, words].
        least: blocks that every row gets at least: r, or the lower bound beside ``cdf_p``.
        cdf_p: share of mass of softmax(scale * score) that the selected blocks have at least, 0
            for no such rule.
        width: R, which bounds the number of blocks of a row.
        scale: factor of the scores.
    """
    shape, num_keys = q_pool.shape[:3], k_pool.shape[2]
    indices = q_pool.new_empty((*shape, width), dtype=torch.int32)
    counts = q_pool.new_empty(shape, dtype=torch.int32)
    group = q_pool.shape[1] // k_pool.shape[1]
    for b, h, rows in row_chunks(shape, 40 * num_keys):
        scores = q_pool[b, h, rows] @ k_pool[b, h // group].mT
        must = None
        if kept is not None:
            bits = kept[b if kept.shape[0] > 1 else 0, h if kept.shape[1] > 1 else 0, rows]
            must = unpack_bits(bits, num_keys)
        best = highest(scores, must, least, cdf_p, width, scale)
        indices[b, h, rows], counts[b, h, rows] = compact(best, width)
    return indices, counts


def highest(
    scores: Tensor, must: Tensor | None, least: int, cdf_p: float, width: int, scale: float
) -> Tensor:
    """Bool [rows, Nk] of the selected blocks for scores [rows, Nk]; waits for nothing."""
    # A NaN ranks first: it must show in the result, not be hidden by being left out.
    largest = torch.finfo(scores.dtype).max
    ranked = scores.nan_to_num(nan=largest, posinf=largest, neginf=-math.inf)
    if must is not None:
        ranked = ranked.masked_fill(must, math.inf)
    # Stable, so that ties go to the lower block: topk promises no order among equals.
    order = ranked.sort(dim=-1, descending=True, stable=True).indices
    count = torch.full_like(order[:, 0], least)
    if must is not None:
        count = torch.maximum(count, must.sum(-1))
    if cdf_p:
        # Mass follows the order of the ranking, in which kept blocks come first and count.
        weights = (scores * scale).softmax(-1).gather(-1, order)
        count = torch.maximum(count, (weights.cumsum(-1) < cdf_p).sum(-1) + 1)
    rank = torch.arange(order.shape[-1], device=order.device)
    best = rank < count.clamp(max=width)[:, None]
    return torch.zeros_like(best).scatter_(-1, order, best)


def forward(
    q: Tensor, k: Tensor, v: Tensor, pairs: BlockPairs, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention of every query to the keys of its block's list.

    Args:
        q: [B, Hq, N, D] in block order.
        k: [B, Hk, M, D]; Hk divides Hq, query head h reads key head h // (Hq / Hk).
        v: as ``k``.
        pairs: lists, and the blocks that they name.
        scale: factor of the scores.

    Returns:
        Output [B, Hq, N, D] in the type and memory order of ``q``, and log-sum-exp [B, Hq, N] in
        float32 (float64 for float64). A query without keys gets 0 and -inf.
    """
    # Here and not in the kernels: on a CPU there is no device to wait for.
    pairs.index.validate()
    queries, keys = _Cut.of(pairs.queries), _Cut.of(pairs.keys)
    q_blocks, k_blocks, v_blocks = queries(q), keys(k), keys(v)
    o_blocks = torch.empty_like(q_blocks)
    lse_blocks = q_blocks.new_empty(q_blocks.shape[:-1])
    group = q.shape[1] // k.shape[1]
    for b, h, rows, listed in _steps(pairs, q_blocks):
        near = k_blocks[b, h // group][listed].flatten(1, 2)  # [rows, R keys, D]
        s = _scores(q_blocks[b, h, rows], near, keys.valid(listed), scale)
        lse = s.logsumexp(-1)
        # From the log-sum-exp, as in the backward pass: both then have the same weights.
        p = (s - _finite(lse)[..., None]).exp()
        o_blocks[b, h, rows] = p @ v_blocks[b, h // group][listed].flatten(1, 2)
        lse_blocks[b, h, rows] = lse
    o, lse = empty_outputs(q)
    o.copy_(queries.join(o_blocks))
    lse.copy_(queries.join(lse_blocks))
    return o, lse


def backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    dlse: Tensor | None,
    pairs: BlockPairs,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`forward` in the types and memory orders of q, k and v.

    With P = exp(scale q k^T - lse) on the selected pairs: dV = P^T dO, dP = dO V^T,
    dS = P (dP - rowsum(dO o) + dlse), dQ = scale dS K, dK = scale dS^T Q. ``o`` and ``lse`` may be
    over more keys than ``pairs`` has: then these are the parts of their gradients.
    """
    pairs.index.validate()
    queries, keys = _Cut.of(pairs.queries), _Cut.of(pairs.keys)
    q_blocks, k_blocks, v_blocks = queries(q), keys(k), keys(v)
    do_blocks = queries(do)
    # rowsum(dO o) equals rowsum(P dP), and needs no second pass over the keys.
    delta = (do_blocks * queries(o)).sum(-1)
    if dlse is not None:  # that of a query without keys is a constant
        delta -= queries(dlse.masked_fill(lse == -math.inf, 0.0)[..., None])[..., 0]
    lse_blocks = queries(_finite(lse)[..., None])[..., 0]
    dq, dk, dv = map(torch.zeros_like, (q_blocks, k_blocks, v_blocks))
    group = q.shape[1] // k.shape[1]
    for b, h, rows, listed in _steps(pairs, q_blocks):
        near_k = k_blocks[b, h // group][listed].flatten(1, 2)
        near_v = v_blocks[b, h // group][listed].flatten(1, 2)
        query, d_out = q_blocks[b, h, rows], do_blocks[b, h, rows]
        s = _scores(query, near_k, keys.valid(listed), scale)
        p = (s - lse_blocks[b, h, rows, :, None]).exp()
        ds = p * (d_out @ near_v.mT - delta[b, h, rows, :, None]) * scale
        dq[b, h, rows] = ds @ near_k
        targets = listed.flatten()
        shape = (len(targets), *k_blocks.shape[-2:])
        dk[b, h // group].index_add_(0, targets, (ds.mT @ query).reshape(shape))
        dv[b, h // group].index_add_(0, targets, (p.mT @ d_out).reshape(shape))
    return (
        empty_in_order_of(q).copy_(queries.join(dq)),
        empty_in_order_of(k).copy_(keys.join(dk)),
        empty_in_order_of(v).copy_(keys.join(dv)),
    )


def empty_outputs(q: Tensor) -> tuple[Tensor, Tensor]:
    """Uninitialised output in the memory order of ``q`` [B, H, N, D], and log-sum-exp [B, H, N]."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return empty_in_order_of(q), q.new_empty(q.shape[:-1], dtype=wide)


def empty_in_order_of(x: Tensor) -> Tensor:
    """Uninitialised [B, H, N, D] in the type and memory order of ``x``: heads or tokens first."""
    batch, heads, tokens, dim = x.shape
    if heads > 1 and x.stride(1) < x.stride(2):
        return x.new_empty((batch, tokens, heads, dim)).transpose(1, 2)
    return x.new_empty((batch, heads, tokens, dim))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Cut:
    """Cuts tokens into blocks of equal size: short ones end in zeros, and an empty one follows."""

    sizes: Tensor
    """int64 [Nblk + 1]: tokens per block, 0 for the one behind the last."""
    slots: Tensor
    """int64 [Nblk + 1, size]: token in every slot, N where there is none."""
    tokens: Tensor
    """int64 [N]: slot of every token."""

    @classmethod
    def of(cls, blocks: Blocks) -> "_Cut":
        starts = blocks.offsets.long()
        sizes = torch.cat((starts.diff(), starts.new_zeros(1)))
        slot = torch.arange(blocks.largest, device=starts.device)
        used = slot < sizes[:, None]
        slots = torch.where(used, starts[:, None] + slot, blocks.num_tokens)
        return cls(sizes=sizes, slots=slots, tokens=used.flatten().nonzero()[:, 0])

    def __call__(self, x: Tensor) -> Tensor:
        """[B, H, N, D] -> [B, H, Nblk + 1, size, D] in at least float32."""
        wide = torch.promote_types(x.dtype, torch.float32)
        # A row of zeros behind the last token, which empty slots read.
        padded = torch.nn.functional.pad(x.to(wide), (0, 0, 0, 1))
        return padded[:, :, self.slots]

    def join(self, blocks: Tensor) -> Tensor:
        """Undo the cut, with or without the last axis."""
        return blocks.flatten(2, 3)[:, :, self.tokens]

    def valid(self, listed: Tensor) -> Tensor:
        """Which slots of the listed blocks [rows, R] hold a token: bool [rows, R size]."""
        slot = torch.arange(self.slots.shape[1], device=listed.device)
        return (slot < self.sizes[listed][..., None]).flatten(1)


def _steps(pairs: BlockPairs, q_blocks: Tensor) -> Iterator[tuple[int, int, slice, Tensor]]:
    """(batch, head, query blocks, listed key blocks int64 [rows, R]) within the memory bound.

    Unused slots name the empty block, and R is the longest list of the step.
    """
    indices, num_keys = pairs.index.indices, pairs.keys.count
    batch, heads, num_rows, width = indices.shape
    size_q, dim = q_blocks.shape[-2:]
    per_key = (2 * dim + 4 * size_q) * q_blocks.dtype.itemsize
    # Gathered keys and values (2 D a key) and some four score-sized tensors bound the step.
    step = max(1, CHUNK_BYTES // (max(width, 1) * pairs.keys.largest * per_key))
    for b in range(batch):
        for h in range(heads):
            for first in range(0, num_rows, step):
                rows = slice(first, min(first + step, num_rows))
                longest = int(pairs.index.counts[b, h, rows].max())
                listed = indices[b, h, rows, :longest].long()
                yield b, h, rows, torch.where(listed < 0, num_keys, listed)


def _scores(query: Tensor, keys: Tensor, valid: Tensor, scale: float) -> Tensor:
    """Scaled scores [rows, size_q, keys]; -inf where a slot holds no key."""
    return ((query @ keys.mT) * scale).masked_fill(~valid[:, None], -math.inf)


def _finite(lse: Tensor) -> Tensor:
    """Replace -inf of queries without keys, so that exp(-inf - lse) is 0 and not NaN."""
    return lse.masked_fill(lse == -math.inf, 0.0)
