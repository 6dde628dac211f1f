"""The selected key blocks of every query block, from block means: scores, ranking, lists.

An op of its own, so that a compiler sees one call and a GPU kernel can take its place.
"""

import math

import torch
from torch import Tensor

from longtake.kernels.block_sparse import reference
from longtake.kernels.block_sparse.index import compact, row_chunks, unpack_bits
from longtake.kernels.block_sparse.operator import implementation
from longtake.kernels.block_sparse.registration import torch_op


def _empty_lists(
    q_pool: Tensor,
    k_pool: Tensor,
    kept: Tensor | None,
    least: int,
    cdf_p: float,
    width: int,
    *options: object,
) -> tuple[Tensor, Tensor]:
    shape = q_pool.shape[:3]
    return (
        q_pool.new_empty((*shape, width), dtype=torch.int32),
        q_pool.new_empty(shape, dtype=torch.int32),
    )


@torch_op(fake=_empty_lists)
def select_key_blocks(
    q_pool: Tensor,
    k_pool: Tensor,
    kept: Tensor | None,
    least: int,
    cdf_p: float,
    width: int,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Lists and counts of the selected key blocks.

    Args:
        q_pool: [B, Hq, Nq, D].
        k_pool: [B, Hk, Nk, D].
        kept: bit rows of blocks that are always selected, int32 [B or 1, Hq or 1, Nq, words].
        least: blocks that every row gets at least: r, or the lower bound beside ``cdf_p``.
        cdf_p: share of mass, 0 for none.
        width: R.
        scale: factor of the scores.
        backend: as for the attention.

    Returns:
        int32 indices [B, Hq, Nq, R] and counts [B, Hq, Nq].
    """
    run = implementation(backend, q_pool.device)
    if run is not reference:
        indices, counts = run.select(q_pool, k_pool, kept, least, cdf_p, width, scale)
        return indices, counts
    indices, counts = _empty_lists(q_pool, k_pool, kept, least, cdf_p, width)
    group, num_keys = q_pool.shape[1] // k_pool.shape[1], k_pool.shape[2]
    for b, h, rows in row_chunks(counts.shape, 40 * num_keys):
        scores = q_pool[b, h, rows] @ k_pool[b, h // group].mT
        must = None
        if kept is not None:
            bits = kept[b if kept.shape[0] > 1 else 0, h if kept.shape[1] > 1 else 0, rows]
            must = unpack_bits(bits, num_keys)
        chosen = _choose(scores, must, least, cdf_p, width, scale)
        indices[b, h, rows], counts[b, h, rows] = compact(chosen, width)
    return indices, counts


def _choose(
    scores: Tensor,
    must: Tensor | None,
    least: int,
    cdf_p: float,
    width: int,
    scale: float,
) -> Tensor:
    """Bool [rows, Nk] of the selected blocks, for ``scores`` [rows, Nk]."""
    # A NaN ranks first: it must show in the result, not be hidden by being left out.
    largest = torch.finfo(scores.dtype).max
    ranked = scores.nan_to_num(nan=largest, posinf=largest, neginf=-math.inf)
    if must is not None:
        ranked = ranked.masked_fill(must, math.inf)
    order = ranked.sort(dim=-1, descending=True, stable=True).indices
    count = torch.full_like(order[:, 0], least)
    if must is not None:
        count = torch.maximum(count, must.sum(-1))
    if cdf_p:
        weights = (scores * scale).softmax(-1).gather(-1, order)
        count = torch.maximum(count, (weights.cumsum(-1) < cdf_p).sum(-1) + 1)
    count = count.clamp(max=width)
    rank = torch.arange(order.shape[-1], device=order.device)
    taken = rank < count[:, None]
    return torch.zeros_like(taken).scatter_(-1, order, taken)
