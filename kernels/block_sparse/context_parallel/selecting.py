"""Selection of key blocks among those of all ranks, for the query blocks of one."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from longtake.kernels.block_sparse.context_parallel.exchange import (
    from_rows,
    start_all_gather,
    to_rows,
)
from longtake.kernels.block_sparse.context_parallel.placement import Placement
from longtake.kernels.block_sparse.index import BlockIndex
from longtake.kernels.block_sparse.selection import select_from_pooled
from longtake.runtime.errors import UserError


@torch.no_grad()
def select_global(q: Tensor, k: Tensor, place: Placement, rule: Mapping[str, Any]) -> BlockIndex:
    """Select key blocks of all ranks for the query blocks of this one (Appendix A.2.2).

    Only block means travel: 1/64 of the keys for blocks of 64 tokens.

    Args:
        q: this rank's queries [B, Hq, n, D].
        k: this rank's keys [B, Hk, m, D].
        place: ranks and shards.
        rule: arguments of :func:`longtake.kernels.block_sparse.selection.select_from_pooled`;
            ``must_keep`` is over the query blocks of all ranks.

    Returns:
        The index [B, Hq, query blocks of this rank, R] over the key blocks of all ranks.

    Raises:
        UserError: a wrong rule.
    """
    rank, backend = place.rank, rule["backend"]
    first, stop = place.queries.block_range(rank)
    total = place.queries.layout.num_blocks
    must_keep = narrow_kept(rule["must_keep"], 2, first, stop - first, total)
    k_pool = place.keys.pool(k, rank, backend)
    coming = start_all_gather(to_rows(k_pool), place.keys.blocks, place.group)
    q_pool = place.queries.pool(q, rank, backend)
    (k_pool,) = from_rows(coming.wait())
    if first < stop:
        return select_from_pooled(q_pool, k_pool, **{**rule, "must_keep": must_keep})
    # No query block: kernels are not launched on nothing, but a wrong rule is refused here too.
    row = q_pool.new_zeros((*q_pool.shape[:2], 1, q_pool.shape[-1]))
    index = select_from_pooled(row, k_pool, **{**rule, "must_keep": None})
    return BlockIndex(index.indices[:, :, :0], index.counts[:, :, :0], index.num_key_blocks)


def narrow_kept(
    must_keep: Tensor | BlockIndex | None, dim: int, first: int, count: int, total: int
) -> Tensor | BlockIndex | None:
    """The part of ``must_keep`` [B, H, Nq, Nk] for some of the heads or query blocks.

    Args:
        must_keep: blocks that are always selected; leading axes of a mask may be missing.
        dim: 1 for heads, 2 for query blocks.
        first: where the part begins.
        count: its length.
        total: length of the axis.

    Raises:
        UserError: another length of the axis than ``total`` or, for heads, 1.
    """
    if must_keep is None or (isinstance(must_keep, Tensor) and must_keep.ndim < 4 - dim):
        return must_keep
    if isinstance(must_keep, BlockIndex):
        length = must_keep.counts.shape[dim]
    else:
        length = must_keep.shape[dim - 4]
    if dim == 1 and length == 1:
        return must_keep
    if length != total:
        raise UserError(
            "must_keep does not fit all ranks' blocks or heads",
            received=f"{length} along axis {dim} of [B, H, Nq, Nk]",
            expected=f"{total}",
            remedy="build it for the whole layouts; every rank takes its part",
        )
    if isinstance(must_keep, BlockIndex):
        indices = must_keep.indices.narrow(dim, first, count)
        counts = must_keep.counts.narrow(dim, first, count)
        return BlockIndex(indices, counts, must_keep.num_key_blocks)
    return must_keep.narrow(dim - 4, first, count)
