"""Which blocks of a layout every rank owns: contiguous stretches of the block order.

A rank owns whole blocks, so that no block mean and no block list crosses ranks; blocks per rank
may differ, and a rank may own none.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from longtake.kernels.block_sparse import reference
from longtake.kernels.block_sparse.layout import BlockLayout
from longtake.kernels.block_sparse.operator import implementation
from longtake.kernels.block_sparse.pooling import pool_blocks
from longtake.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class BlockShards:
    """The blocks of a layout, dealt to ranks.

    Rank 0 owns the first ``blocks[0]`` blocks of the block order, rank 1 the next ``blocks[1]``.

    Raises:
        UserError: negative numbers of blocks, or another sum than the layout's.
    """

    layout: BlockLayout
    """Layout of all tokens."""
    blocks: tuple[int, ...]
    """Blocks of every rank."""

    def __post_init__(self) -> None:
        total = self.layout.num_blocks
        if not self.blocks or min(self.blocks) < 0 or sum(self.blocks) != total:
            raise UserError(
                "the blocks of the ranks do not make up the layout",
                received=f"{list(self.blocks)}, in all {sum(self.blocks)}",
                expected=f"numbers of at least 0 with the sum {total}",
                remedy="leave them out for an even split",
            )

    @classmethod
    def even(cls, layout: BlockLayout, num_ranks: int) -> "BlockShards":
        """Deal the blocks so that ranks differ by at most one."""
        total = layout.num_blocks
        bounds = [total * rank // num_ranks for rank in range(num_ranks + 1)]
        return cls(layout, tuple(b - a for a, b in itertools.pairwise(bounds)))

    @functools.cached_property
    def tokens(self) -> list[int]:
        """Tokens of every rank."""
        starts = self.layout.offsets("cpu")[list(self._bounds())]
        return [int(count) for count in starts.diff()]

    def block_range(self, rank: int) -> tuple[int, int]:
        """First block of a rank, and the first one behind its last."""
        bounds = self._bounds()
        return bounds[rank], bounds[rank + 1]

    def offsets(self, rank: int, device: torch.device | str = "cpu") -> Tensor:
        """First of the rank's own tokens in each of its blocks, then their number: int32."""
        first, stop = self.block_range(rank)
        part = self.layout.offsets(device)[first : stop + 1]
        return part - part[:1]

    def local(self, x: Tensor, rank: int, dim: int) -> Tensor:
        """The rank's tokens of a tensor that holds all tokens in block order; a view.

        Raises:
            UserError: another number of tokens along ``dim``.
        """
        if x.shape[dim] != self.layout.num_tokens:
            raise UserError(
                "the tensor does not have the tokens of the block layout",
                received=f"shape {tuple(x.shape)}, {x.shape[dim]} along axis {dim}",
                expected=f"{self.layout.num_tokens} tokens of the grid {self.layout.grid}",
                remedy="pass the whole tensor in block order, and the axis of its tokens",
            )
        tokens = self.tokens
        return x.narrow(dim, sum(tokens[:rank]), tokens[rank])

    def pool(self, x: Tensor, rank: int, backend: str = "auto") -> Tensor:
        """Mean of every block of a rank; without gradient.

        Args:
            x: the rank's tokens [B, H, n, D].
            rank: the rank.
            backend: as for the attention.

        Returns:
            [B, H, blocks of the rank, D], bitwise as from
            :func:`longtake.kernels.block_sparse.pooling.pool_blocks`.
        """
        if not self.blocks[rank]:
            wide = torch.promote_types(x.dtype, torch.float32)
            return x.new_empty((*x.shape[:2], 0, x.shape[-1]), dtype=wide)
        run = implementation(backend, x.device)
        if run is not reference:
            means: Tensor = run.pool(x.detach(), self.offsets(rank, x.device))
            return means
        parts, token = [], 0
        for box in boxes(self.layout, *self.block_range(rank)):
            parts.append(pool_blocks(x.narrow(2, token, box.num_tokens), box, backend))
            token += box.num_tokens
        return torch.cat(parts, dim=2)

    def _bounds(self) -> list[int]:
        return [0, *itertools.accumulate(self.blocks)]


def boxes(layout: BlockLayout, first: int, stop: int) -> Iterator[BlockLayout]:
    """Cut the blocks ``first`` to ``stop - 1`` into layouts of their own, in order.

    At most five: the rest of a row of blocks, rows, whole time blocks, rows, and a part of a row.
    """
    (_, height, width), (t, h, w) = layout.grid, layout.block
    _, nh, nw = layout.block_grid
    thickness = [
        (stretch, min(t, frames - frame))
        for stretch, (_, frames) in enumerate(layout.stretches())
        for frame in range(0, frames, t)
    ]
    while first < stop:
        i, j, m = first // (nh * nw), first // nw % nh, first % nw
        thick = thickness[i][1]
        if not j and not m and stop - first >= nh * nw:
            count = (stop - first) // (nh * nw)
            groups = itertools.groupby(thickness[i : i + count], key=lambda pair: pair[0])
            segments = tuple(sum(frames for _, frames in group) for _, group in groups)
            yield BlockLayout((sum(segments), height, width), layout.block, segments)
            first += count * nh * nw
        elif not m and stop - first >= nw:
            count = min(nh - j, (stop - first) // nw)
            rows = min(height, (j + count) * h) - j * h
            yield BlockLayout((thick, rows, width), layout.block)
            first += count * nw
        else:
            count = min(nw - m, stop - first)
            rows = min(height, (j + 1) * h) - j * h
            columns = min(width, (m + count) * w) - m * w
            yield BlockLayout((thick, rows, columns), layout.block)
            first += count


def shards_of(
    layout: BlockLayout, blocks: Sequence[int] | None, num_ranks: int, name: str
) -> BlockShards:
    """The shards that a user asked for.

    Args:
        layout: layout of all tokens.
        blocks: blocks of every rank; None for an even split.
        num_ranks: ranks.
        name: name of the option, for the message.

    Raises:
        UserError: numbers for another number of ranks, or not of this layout.
    """
    if blocks is None:
        return BlockShards.even(layout, num_ranks)
    if len(blocks) != num_ranks:
        raise UserError(
            f"{name} is for another number of ranks",
            received=f"{len(blocks)} numbers of blocks",
            expected=f"one for each of the {num_ranks} ranks",
            remedy="leave it out for an even split",
        )
    return BlockShards(layout, tuple(blocks))
