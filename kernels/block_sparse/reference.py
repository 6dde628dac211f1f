"""Block-sparse attention in plain PyTorch: any device, any float type, also float64.

Appendix A.2.1, last step, with natural-log log-sum-exp and an explicit backward. Per step only the
selected blocks of some query blocks are gathered, so memory does not grow with Nq x Nk. Types
below float32 are computed in float32.
"""

import dataclasses
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from longtake.kernels.block_sparse.index import BlockIndex

#: Temporaries of one step, in bytes.
CHUNK_BYTES = 1 << 26


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor,
    counts: Tensor,
    q_offsets: Tensor,
    k_offsets: Tensor,
    scale: float,
    backend: str = "reference",
    *,
    block_q: int | None = None,
    block_k: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of every query to the keys of its block's list.

    Args:
        q: [B, Hq, N, D] in block order.
        k: [B, Hk, M, D]; Hk divides Hq, query head h reads key head h // (Hq / Hk).
        v: as ``k``.
        indices: int32 [B, Hq, Nq, R], see :class:`BlockIndex`.
        counts: int32 [B, Hq, Nq].
        q_offsets: int32 [Nq + 1], first token of every query block.
        k_offsets: int32 [Nk + 1].
        scale: factor of the scores.
        backend: this and the following serve other implementations of the signature.
        block_q: tokens of a whole query block.
        block_k: tokens of a whole key block.

    Returns:
        Output [B, Hq, N, D] in the type and memory order of ``q``, and log-sum-exp [B, Hq, N] in
        float32 (float64 for float64). A query without keys gets 0 and -inf.

    Raises:
        UserError: lists that break their contract.
    """
    BlockIndex(indices, counts, k_offsets.numel() - 1).validate()
    queries, keys = _Blocks.of(q_offsets), _Blocks.of(k_offsets)
    q_blocks, k_blocks, v_blocks = queries.cut(q), keys.cut(k), keys.cut(v)
    o_blocks = torch.empty_like(q_blocks)
    lse_blocks = q_blocks.new_empty(q_blocks.shape[:-1])
    group = q.shape[1] // k.shape[1]
    for b, h, rows, listed in _steps(indices, counts, queries, keys, q.shape[-1], q_blocks.dtype):
        near = k_blocks[b, h // group][listed].flatten(1, 2)  # [rows, R keys, D]
        s = _scores(q_blocks[b, h, rows], near, keys.valid(listed), scale)
        lse = s.logsumexp(-1)
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
    indices: Tensor,
    counts: Tensor,
    q_offsets: Tensor,
    k_offsets: Tensor,
    num_key_blocks: int,
    scale: float,
    deterministic: bool = True,
    backend: str = "reference",
    *,
    block_q: int | None = None,
    block_k: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`forward`.

    With P = exp(scale q k^T - lse) on the selected pairs: dV = P^T dO, dP = dO V^T,
    dS = P (dP - rowsum(dO o) + dlse), dQ = scale dS K, dK = scale dS^T Q.

    Args:
        do: gradient of the output, any strides.
        q: and all further tensors as in :func:`forward`.
        k: keys.
        v: values.
        o: output.
        lse: log-sum-exp.
        dlse: gradient of the log-sum-exp [B, Hq, N]; None for zero.
        indices: lists.
        counts: lengths of the lists.
        q_offsets: query blocks.
        k_offsets: key blocks.
        num_key_blocks: Nk.
        scale: factor of the scores.
        deterministic: on a CPU the gradients always are.
        backend: as in :func:`forward`.
        block_q: as in :func:`forward`.
        block_k: as in :func:`forward`.

    Returns:
        ``dq``, ``dk``, ``dv`` in the types and memory orders of ``q``, ``k``, ``v``.
    """
    BlockIndex(indices, counts, num_key_blocks).validate()
    queries, keys = _Blocks.of(q_offsets), _Blocks.of(k_offsets)
    q_blocks, k_blocks, v_blocks = queries.cut(q), keys.cut(k), keys.cut(v)
    do_blocks = queries.cut(do)
    delta = (do_blocks * queries.cut(o)).sum(-1)
    if dlse is not None:  # that of a query without keys is a constant
        dlse = dlse.masked_fill(lse == -math.inf, 0.0)
        delta -= queries.cut(dlse[..., None])[..., 0]
    lse_blocks = queries.cut(_finite(lse)[..., None])[..., 0]
    dq, dk, dv = map(torch.zeros_like, (q_blocks, k_blocks, v_blocks))
    group = q.shape[1] // k.shape[1]
    for b, h, rows, listed in _steps(indices, counts, queries, keys, q.shape[-1], q_blocks.dtype):
        near_k = k_blocks[b, h // group][listed].flatten(1, 2)
        near_v = v_blocks[b, h // group][listed].flatten(1, 2)
        query, d_out = q_blocks[b, h, rows], do_blocks[b, h, rows]
        s = _scores(query, near_k, keys.valid(listed), scale)
        p = (s - lse_blocks[b, h, rows, :, None]).exp()
        ds = p * (d_out @ near_v.mT - delta[b, h, rows, :, None]) * scale
        dq[b, h, rows] = ds @ near_k
        places = listed.flatten()
        shape = (len(places), *k_blocks.shape[-2:])
        dk[b, h // group].index_add_(0, places, (ds.mT @ query).reshape(shape))
        dv[b, h // group].index_add_(0, places, (p.mT @ d_out).reshape(shape))
    return _restore(queries, dq, q), _restore(keys, dk, k), _restore(keys, dv, v)


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
class _Blocks:
    """Cuts tokens into blocks of equal size: short ones end in zeros, and an empty one follows."""

    sizes: Tensor
    """int64 [Nblk + 1]: tokens per block, 0 for the one behind the last."""
    slots: Tensor
    """int64 [Nblk + 1, size]: token in every slot, N where there is none."""
    places: Tensor
    """int64 [N]: slot of every token."""

    @classmethod
    def of(cls, offsets: Tensor) -> "_Blocks":
        starts = offsets.long()
        num_tokens = int(starts[-1])
        sizes = torch.cat((starts.diff(), starts.new_zeros(1)))
        slot = torch.arange(int(sizes.max()), device=offsets.device)
        used = slot < sizes[:, None]
        slots = torch.where(used, starts[:, None] + slot, num_tokens)
        return cls(sizes=sizes, slots=slots, places=used.flatten().nonzero()[:, 0])

    def cut(self, x: Tensor) -> Tensor:
        """[B, H, N, D] -> [B, H, Nblk + 1, size, D] in at least float32."""
        wide = torch.promote_types(x.dtype, torch.float32)
        padded = torch.nn.functional.pad(x.to(wide), (0, 0, 0, 1))
        return padded[:, :, self.slots]

    def join(self, blocks: Tensor) -> Tensor:
        """Undo :meth:`cut`, with or without the last axis."""
        return blocks.flatten(2, 3)[:, :, self.places]

    def valid(self, listed: Tensor) -> Tensor:
        """Which slots of the listed blocks [rows, R] hold a token: bool [rows, R size]."""
        slot = torch.arange(self.slots.shape[1], device=listed.device)
        return (slot < self.sizes[listed][..., None]).flatten(1)


def _steps(
    indices: Tensor, counts: Tensor, queries: _Blocks, keys: _Blocks, dim: int, dtype: torch.dtype
) -> Iterator[tuple[int, int, slice, Tensor]]:
    """(batch, head, query blocks, listed key blocks int64 [rows, R]) within the memory bound.

    Unused slots name the empty block, and R is the longest list of the step.
    """
    batch, heads, num_rows, width = indices.shape
    num_keys, size_k = keys.slots.shape[0] - 1, keys.slots.shape[1]
    size_q = queries.slots.shape[1]
    per_row = max(width, 1) * size_k * (2 * dim + 4 * size_q) * dtype.itemsize
    step = max(1, CHUNK_BYTES // per_row)
    for b in range(batch):
        for h in range(heads):
            for first in range(0, num_rows, step):
                rows = slice(first, min(first + step, num_rows))
                longest = int(counts[b, h, rows].max())
                listed = indices[b, h, rows, : max(longest, 1)].long()
                if not width:
                    listed = listed.new_full((rows.stop - rows.start, 1), -1)
                yield b, h, rows, torch.where(listed < 0, num_keys, listed)


def _scores(query: Tensor, keys: Tensor, valid: Tensor, scale: float) -> Tensor:
    """Scaled scores [rows, size_q, keys]; -inf where a slot holds no key."""
    return ((query @ keys.mT) * scale).masked_fill(~valid[:, None], -math.inf)


def _finite(lse: Tensor) -> Tensor:
    """Replace -inf of queries without keys, so that exp(-inf - lse) is 0 and not NaN."""
    return lse.masked_fill(lse == -math.inf, 0.0)


def _restore(blocks: _Blocks, gradient: Tensor, like: Tensor) -> Tensor:
    return empty_in_order_of(like).copy_(blocks.join(gradient))
