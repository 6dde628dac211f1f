"""Patterns of attended blocks that need no scores, as bool masks [Nq, Nk].

Masks combine with ``|`` and ``&``; :meth:`BlockIndex.from_dense_mask` turns one into the lists of
:func:`attention_from_index`, or pass it as ``must_keep`` to add it to a selection. Section 3.4.2
names such patterns as the way to other sparse attentions.
"""

import torch
from torch import Tensor

from longtake.kernels.block_sparse.layout import BlockLayout, Size3
from longtake.runtime.errors import UserError


def space_and_time(layout_q: BlockLayout, layout_k: BlockLayout, start: int = 0) -> Tensor:
    """Block-wise 2D + 1D attention: all blocks of the same frames, and of the same place.

    Args:
        layout_q: layout of the queries.
        layout_k: layout of the keys, with the same numbers of blocks in height and width.
        start: time block of the keys with which the first query block coincides, for instance
            the number of time blocks of a key-value cache before them.

    Returns:
        Bool [Nq, Nk].

    Raises:
        UserError: layouts with different numbers of blocks in height or width.
    """
    apart = _distances(layout_q, layout_k, start)
    same = [distance == 0 for distance in apart]
    return same[0] | (same[1] & same[2])


def local_window(
    layout_q: BlockLayout, layout_k: BlockLayout, radius: Size3, start: int = 0
) -> Tensor:
    """Blocks at most ``radius`` blocks away along time, height and width.

    Args:
        layout_q: layout of the queries.
        layout_k: layout of the keys, with the same numbers of blocks in height and width.
        radius: (time, height, width) in blocks; 0 is the same block only.
        start: as in :func:`space_and_time`.

    Returns:
        Bool [Nq, Nk].

    Raises:
        UserError: a negative radius, or layouts as in :func:`space_and_time`.
    """
    if len(radius) != 3 or min(radius) < 0:
        raise UserError(
            "the radius of a local window is not three numbers of blocks",
            received=repr(radius),
            expected="(time, height, width), each at least 0",
            remedy="(1, 1, 1) is the block and its 26 neighbours",
        )
    near = [
        d.abs() <= r for d, r in zip(_distances(layout_q, layout_k, start), radius, strict=True)
    ]
    return near[0] & near[1] & near[2]


def first_frames(layout_q: BlockLayout, layout_k: BlockLayout, time_blocks: int = 1) -> Tensor:
    """The first time blocks for every query: condition frames, or an attention sink.

    Args:
        layout_q: layout of the queries.
        layout_k: layout of the keys.
        time_blocks: how many.

    Returns:
        Bool [Nq, Nk].

    Raises:
        UserError: a number outside 1..Nt.
    """
    nt, nh, nw = layout_k.block_grid
    if not 1 <= time_blocks <= nt:
        raise UserError(
            "the keys do not have that many time blocks",
            received=time_blocks,
            expected=f"1 to {nt}",
            remedy="time_blocks counts blocks, not frames",
        )
    first = torch.arange(layout_k.num_blocks) < time_blocks * nh * nw
    return first.expand(layout_q.num_blocks, -1).clone()


def _distances(layout_q: BlockLayout, layout_k: BlockLayout, start: int) -> tuple[Tensor, ...]:
    """Key block minus query block along time, height and width, each [Nq, Nk]."""
    if layout_q.block_grid[1:] != layout_k.block_grid[1:]:
        raise UserError(
            "query and key blocks do not lie on one grid",
            received=f"{layout_q.block_grid} and {layout_k.block_grid} blocks",
            expected="equal numbers in height and width",
            remedy="use blocks of equal height and width, or build the mask yourself",
        )
    places = []
    for layout in (layout_q, layout_k):
        nt, nh, nw = layout.block_grid
        places.append(torch.cartesian_prod(*(torch.arange(n) for n in (nt, nh, nw))))
    away = places[1][None] - places[0][:, None]
    return away[..., 0] - start, away[..., 1], away[..., 2]
