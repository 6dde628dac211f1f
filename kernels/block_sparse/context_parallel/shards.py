"""Which blocks of a layout every rank owns: contiguous stretches of the block order.

A rank owns whole blocks, so that no block mean and no block list crosses ranks; blocks per rank
may differ, and a rank may own none.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from longtake.kernels.block_sparse.index import BlockIndex
from longtake.kernels.block_sparse.layout import BlockLayout, Blocks
from longtake.kernels.block_sparse.select import block_means
from longtake.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class BlockShards:
    """The blocks of a layout, dealt to ranks.

    Rank 0 owns the first ``blocks[0]`` blocks of the block order, rank 1 the next ``blocks[1]``.
    """

    layout: BlockLayout
    """Layout of all tokens."""
    blocks: tuple[int, ...]
    """Blocks of every rank."""

    @classmethod
    def of(
        cls, layout: BlockLayout, num_ranks: int, blocks: Sequence[int] | None = None
    ) -> "BlockShards":
        """Deal the blocks as told, or so that ranks differ by at most one."""
        if blocks is None:
            bounds = [layout.num_blocks * rank // num_ranks for rank in range(num_ranks + 1)]
            blocks = [b - a for a, b in itertools.pairwise(bounds)]
        if len(blocks) != num_ranks or min(blocks) < 0 or sum(blocks) != layout.num_blocks:
            raise UserError(
                "the blocks of the ranks do not make up the layout",
                received=f"{list(blocks)}, in all {sum(blocks)}",
                expected=f"{num_ranks} numbers of at least 0 with the sum {layout.num_blocks}",
                remedy="leave them out for an even split",
            )
        return cls(layout, tuple(blocks))

    @functools.cached_property
    def tokens(self) -> list[int]:
        """Tokens of every rank."""
        starts = self.layout.offsets("cpu")[[0, *itertools.accumulate(self.blocks)]]
        return [int(count) for count in starts.diff()]

    def block_range(self, rank: int) -> tuple[int, int]:
        """First block of a rank, and the first one behind its last."""
        first = sum(self.blocks[:rank])
        return first, first + self.blocks[rank]

    def blocks_of(self, rank: int, device: torch.device | str = "cpu") -> Blocks:
        """The rank's own blocks, with offsets from its first token on."""
        first, stop = self.block_range(rank)
        part = self.layout.offsets(device)[first : stop + 1]
        return Blocks(part - part[:1], self.tokens[rank], self.layout.max_block_size)

    def local(self, x: Tensor, rank: int, dim: int) -> Tensor:
        """The rank's tokens of a tensor that holds all tokens in block order; a view."""
        self.layout.check_tokens(x, dim)
        return x.narrow(dim, sum(self.tokens[:rank]), self.tokens[rank])

    def pool(self, x: Tensor, rank: int, backend: str = "auto") -> Tensor:
        """Means [B, H, blocks of the rank, D] of a rank's tokens [B, H, n, D]; without gradient.

        They are bitwise those of :func:`longtake.kernels.block_sparse.pool_blocks`.
        """
        if not self.blocks[rank]:  # kernels are not launched on nothing
            wide = torch.promote_types(x.dtype, torch.float32)
            return x.new_empty((*x.shape[:2], 0, x.shape[-1]), dtype=wide)
        blocks = self.blocks_of(rank, x.device)
        return block_means(x.detach(), blocks.offsets, blocks.largest, backend)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Mesh:
    """Who owns which blocks, seen from this rank, and how to attend."""

    group: dist.ProcessGroup | None
    """The ranks; None for all."""
    rank: int
    """This rank within the group."""
    queries: BlockShards
    """Shards of the queries."""
    keys: BlockShards
    """Shards of the keys and values."""
    scale: float
    """Factor of the scores."""
    backend: str
    """As for the attention."""

    @property
    def num_ranks(self) -> int:
        """Ranks of the group."""
        return len(self.queries.blocks)


def narrow_kept(
    must_keep: Tensor | BlockIndex | None, dim: int, first: int, count: int, total: int
) -> Tensor | BlockIndex | None:
    """The part of ``must_keep`` [B, H, Nq, Nk] from ``first`` on, ``count`` of ``total``.

    ``dim`` is 1 for heads, 2 for query blocks; leading axes of a mask may be missing.
    """
    # A mask without that axis, or with one head for all, serves every rank as it is.
    if must_keep is None or (isinstance(must_keep, Tensor) and must_keep.ndim < 4 - dim):
        return must_keep
    if isinstance(must_keep, BlockIndex):
        length = must_keep.counts.shape[dim]
    else:
        length = must_keep.shape[dim - 4]
    if dim == 1 and length == 1:
        return must_keep
    # narrow would take the wrong part of a shorter axis, and its shape would look right.
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
