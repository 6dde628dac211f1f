"""Which key blocks every query block attends to: lists, dense masks and rows of bits."""

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from longtake.kernels.block_sparse.layout import Blocks
from longtake.runtime.errors import UserError

#: Temporaries of one step, in bytes: rows are worked off in chunks that stay below it.
CHUNK_BYTES = 1 << 25


@dataclasses.dataclass(frozen=True, eq=False)
class BlockIndex:
    """Selected key blocks.

    The constructor looks at shapes and types. Contents are checked by :meth:`validate`, which reads
    the tensors and therefore waits for the device.
    """

    indices: Tensor
    """int32 [B, H, Nq, R]: selected key blocks in ascending order, then -1 in unused slots."""
    counts: Tensor
    """int32 [B, H, Nq]: number of selected key blocks, 0..R."""
    num_key_blocks: int
    """Nk."""

    def __post_init__(self) -> None:
        indices, counts = self.indices, self.counts
        fits = indices.ndim == 4 and counts.shape == indices.shape[:-1]
        alike = indices.dtype == counts.dtype == torch.int32 and indices.device == counts.device
        if not fits or not alike or self.num_key_blocks < 1:
            raise UserError(
                "these are no block lists",
                received=f"indices {indices.dtype} {tuple(indices.shape)} on {indices.device}, "
                f"counts {counts.dtype} {tuple(counts.shape)} on {counts.device}, "
                f"{self.num_key_blocks} key blocks",
                expected="int32 indices [B, H, Nq, R] and counts [B, H, Nq] on one device, over at "
                "least one key block",
                remedy="build the index with select_blocks or BlockIndex.from_dense_mask",
            )

    @classmethod
    def from_dense_mask(cls, mask: Tensor) -> "BlockIndex":
        """Lists of the True entries of bool [B, H, Nq, Nk], [H, Nq, Nk] or [Nq, Nk].

        Missing axes become 1. Finding the longest list waits for the device.
        """
        assert mask.dtype == torch.bool and 2 <= mask.ndim <= 4, "one bool per pair of blocks"
        mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
        width = max(1, int(mask.sum(-1, dtype=torch.int32).max()))
        indices = mask.new_empty((*mask.shape[:3], width), dtype=torch.int32)
        counts = mask.new_empty(mask.shape[:3], dtype=torch.int32)
        # cumsum and scatter of int64 take 16 bytes an entry: whole masks would need gigabytes.
        for here in row_chunks(mask.shape[:3], 16 * mask.shape[-1]):
            indices[here], counts[here] = compact(mask[here], width)
        return cls(indices, counts, mask.shape[-1])

    @property
    def device(self) -> torch.device:
        """Device of the lists."""
        return self.indices.device

    def to(self, device: torch.device | str) -> "BlockIndex":
        """The same index on another device."""
        moved = self.indices.to(device), self.counts.to(device)
        return BlockIndex(*moved, self.num_key_blocks)

    def expand(self, batch: int, heads: int) -> "BlockIndex":
        """Repeat an index of one batch entry or one head for all, without copying."""
        return BlockIndex(
            self.indices.expand(batch, heads, -1, -1),
            self.counts.expand(batch, heads, -1),
            self.num_key_blocks,
        )

    def to_dense_mask(self) -> Tensor:
        """Dense mask, bool [B, H, Nq, Nk]; large, for debugging."""
        shape = (*self.counts.shape, self.num_key_blocks + 1)  # the last column takes unused slots
        mask = torch.zeros(shape, dtype=torch.bool, device=self.device)
        # -1 is no index for scatter_.
        column = torch.where(self.indices < 0, self.num_key_blocks, self.indices).long()
        return mask.scatter_(-1, column, True)[..., :-1]

    def density(self) -> Tensor:
        """Share of block pairs that are selected: float64 scalar tensor on the device."""
        return self.counts.double().mean() / self.num_key_blocks

    def validate(self) -> None:
        """Refuse contents that break the contract, naming the first such row.

        That is a count outside 0..R, a list that is not ascending within 0..Nk - 1, or an unused
        slot that is not -1. Waits for the device.
        """
        indices, counts, width = self.indices, self.counts, self.indices.shape[-1]
        for here in row_chunks(counts.shape, 8 * max(width, 1)):
            count, listed = counts[here], indices[here]
            # One look at all rows of a chunk: Python loops over 2,880 x 32 rows would take seconds.
            used = torch.arange(width, device=self.device) < count[..., None]
            previous = torch.nn.functional.pad(listed, (1, 0), value=-1)[..., :-1]
            inside = (listed > previous) & (listed < self.num_key_blocks)
            wrong = ~torch.where(used, inside, listed == -1).all(-1)
            wrong |= (count < 0) | (count > width)
            if wrong.any():
                row = int(wrong.nonzero()[0, 0])
                shown = listed[row].tolist()
                raise UserError(
                    "a block list breaks its contract",
                    received=f"row {row} of chunk {here}: count {int(count[row])}, list {shown}",
                    expected=f"ascending blocks below {self.num_key_blocks}, then -1 up to {width}",
                    remedy="build the index with select_blocks or BlockIndex.from_dense_mask",
                )


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class BlockPairs:
    """What a call of the attention works through: which query block reads which key blocks."""

    index: BlockIndex
    """Lists for [B, Hq, Nq] query blocks over Nk key blocks."""
    queries: Blocks
    keys: Blocks

    def flat(self) -> tuple[Tensor, Tensor, Tensor, Tensor, int, int]:
        """Tensors and numbers, which alone may enter an op of PyTorch."""
        lists, offsets = self.index, (self.queries.offsets, self.keys.offsets)
        return lists.indices, lists.counts, *offsets, self.queries.largest, self.keys.largest


def compact(mask: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Ascending int32 lists [..., R] of the True entries of [..., Nk], at most R a row; counts."""
    slot = mask.cumsum(-1)
    counts = slot[..., -1].int()
    # A scatter instead of nonzero: its result has a fixed shape, so nothing waits.
    slot = torch.where(mask, slot - 1, width)  # slot R takes what is not selected
    lists = mask.new_full((*mask.shape[:-1], width + 1), -1, dtype=torch.int32)
    block = torch.arange(mask.shape[-1], dtype=torch.int32, device=mask.device)
    lists.scatter_(-1, slot, block.expand_as(mask))
    return lists[..., :width], counts


def pack_bits(mask: Tensor) -> Tensor:
    """Bit rows int32 [B, H, Nq, ceil(Nk / 32)] of bool [B, H, Nq, Nk].

    Key block j is bit j % 32 of word j // 32; bit 31 is the sign, which int32 wraps to.
    """
    words = -(-mask.shape[-1] // 32)
    out = mask.new_empty((*mask.shape[:-1], words), dtype=torch.int32)
    ones = torch.ones(32, dtype=torch.int32, device=mask.device)
    bit = ones << torch.arange(32, dtype=torch.int32, device=mask.device)
    for here in row_chunks(mask.shape[:-1], 256 * words):
        row = torch.nn.functional.pad(mask[here], (0, 32 * words - mask.shape[-1]))
        # A sum of distinct powers of two is their union, and PyTorch has no reduction by "or".
        out[here] = torch.where(row.unflatten(-1, (words, 32)), bit, 0).sum(-1, dtype=torch.int32)
    return out


def unpack_bits(bits: Tensor, num_key_blocks: int) -> Tensor:
    """Bool [..., Nk] of bit rows [..., words]."""
    bit = torch.arange(32, dtype=torch.int32, device=bits.device)
    return ((bits[..., None] >> bit) & 1).bool().flatten(-2)[..., :num_key_blocks]


def row_chunks(
    shape: torch.Size | tuple[int, ...], bytes_per_row: int
) -> Iterator[tuple[int, int, slice]]:
    """Index rows of [B, H, Nq] in chunks whose temporaries stay below :data:`CHUNK_BYTES`."""
    batch, heads, rows = shape
    step = max(1, CHUNK_BYTES // bytes_per_row)
    for b in range(batch):
        for h in range(heads):
            for first in range(0, rows, step):
                yield b, h, slice(first, first + step)
