"""Which key blocks every query block attends to: lists, bit rows and lists per key block."""

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from longtake.runtime.errors import UserError

#: Temporaries of one step, in bytes: rows are worked off in chunks that stay below it.
CHUNK_BYTES = 1 << 25


@dataclasses.dataclass(frozen=True, eq=False)
class BlockIndex:
    """Selected key blocks.

    The constructor checks shapes and types. Contents are checked by :meth:`validate`, which reads
    the tensors and therefore waits for the device.

    Raises:
        UserError: wrong shape, type or device.
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
        if not fits or indices.dtype != torch.int32 or counts.dtype != torch.int32:
            raise UserError(
                "block lists of the wrong shape or type",
                received=f"indices {indices.dtype} {tuple(indices.shape)}, "
                f"counts {counts.dtype} {tuple(counts.shape)}",
                expected="int32 indices [B, H, Nq, R] and int32 counts [B, H, Nq]",
                remedy="build the index with select_blocks or BlockIndex.from_dense_mask",
            )
        if indices.device != counts.device:
            raise UserError(
                "block lists on two devices",
                received=f"indices on {indices.device}, counts on {counts.device}",
                expected="one device",
                remedy="move the index with .to(device)",
            )
        if self.num_key_blocks < 1:
            raise UserError(
                "an index over no key blocks",
                received=self.num_key_blocks,
                expected="at least one key block",
                remedy="pass the number of blocks of the key layout",
            )

    @classmethod
    def from_dense_mask(cls, mask: Tensor, width: int | None = None) -> "BlockIndex":
        """Lists of the True entries of a mask.

        Args:
            mask: bool [B, H, Nq, Nk], [H, Nq, Nk] or [Nq, Nk]; missing axes become 1.
            width: R. None takes the longest list, which waits for the device.

        Raises:
            UserError: not such a mask, or a row with more than ``width`` entries.
        """
        if mask.dtype != torch.bool or not 2 <= mask.ndim <= 4 or not mask.numel():
            raise UserError(
                "not a block mask",
                received=f"{mask.dtype} {tuple(mask.shape)}",
                expected="bool [B, H, Nq, Nk], [H, Nq, Nk] or [Nq, Nk]",
                remedy="one entry per pair of blocks, True to attend",
            )
        mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
        longest = int(mask.sum(-1, dtype=torch.int32).max())
        if width is not None and longest > width:
            raise UserError(
                "a row of the block mask does not fit the lists",
                received=f"{longest} key blocks in one row",
                expected=f"at most width = {width}",
                remedy="leave width out, or raise it",
            )
        batch, heads, rows, num_keys = mask.shape
        indices = mask.new_empty((batch, heads, rows, width or max(longest, 1)), dtype=torch.int32)
        counts = mask.new_empty((batch, heads, rows), dtype=torch.int32)
        for here in row_chunks(mask.shape[:3], 16 * num_keys):
            indices[here], counts[here] = compact(mask[here], indices.shape[-1])
        return cls(indices, counts, num_keys)

    @property
    def device(self) -> torch.device:
        """Device of the lists."""
        return self.indices.device

    def to(self, device: torch.device | str) -> "BlockIndex":
        """The same index on another device."""
        moved = self.indices.to(device), self.counts.to(device)
        return BlockIndex(*moved, self.num_key_blocks)

    def expand(self, batch: int, heads: int) -> "BlockIndex":
        """Repeat an index of one batch entry or one head for all, without copying.

        Raises:
            UserError: the index has another number of batch entries or heads than 1.
        """
        have, want = tuple(self.counts.shape[:2]), (batch, heads)
        if any(a not in (1, b) for a, b in zip(have, want, strict=True)):
            raise UserError(
                "the index is for other batch entries or heads",
                received=f"index for {have[0]} x {have[1]} (batch x heads)",
                expected=f"{batch} x {heads}, or 1 where all share the lists",
                remedy="select with these queries, or build the mask per head",
            )
        return BlockIndex(
            self.indices.expand(batch, heads, -1, -1),
            self.counts.expand(batch, heads, -1),
            self.num_key_blocks,
        )

    def bits(self) -> Tensor:
        """Bit rows: int32 [B, H, Nq, ceil(Nk / 32)]; key block j is bit j % 32 of word j // 32."""
        words = -(-self.num_key_blocks // 32)
        out = self.counts.new_empty((*self.counts.shape, words))
        for here in row_chunks(self.counts.shape, 16 * self.indices.shape[-1]):
            # Unused slots add nothing to word 0. Bit 31 is the sign, which int32 wraps to.
            listed = self.indices[here]
            bit = torch.where(listed >= 0, torch.ones_like(listed) << (listed & 31), 0)
            row = listed.new_zeros((*listed.shape[:-1], words))
            out[here] = row.scatter_add_(-1, (listed.clamp(min=0) >> 5).long(), bit)
        return out

    def csr(self) -> tuple[Tensor, Tensor]:
        """Lists per key block, for gradients of keys and values.

        Returns:
            ``row_pointers`` int32 [B, H, Nk + 1] and ``query_blocks`` int32 [B, H, Nq R]: key
            block j is attended by ``query_blocks[row_pointers[j]:row_pointers[j + 1]]``, in
            ascending order; the unused tail is -1.
        """
        batch, heads, rows, width = self.indices.shape
        pointers = self.counts.new_empty((batch, heads, self.num_key_blocks + 1))
        query_blocks = self.counts.new_empty((batch, heads, rows * width))
        ends = torch.arange(self.num_key_blocks + 1, dtype=torch.int32, device=self.device)
        for b in range(batch):
            for h in range(heads):  # one head at a time: the sort returns 64-bit positions
                listed = self.indices[b, h].flatten()
                keys = torch.where(listed < 0, self.num_key_blocks, listed)
                keys, position = keys.sort(stable=True)
                pointers[b, h] = torch.searchsorted(keys, ends, out_int32=True)
                unused = keys == self.num_key_blocks
                query_blocks[b, h] = torch.where(unused, -1, (position // width).int())
        return pointers, query_blocks

    def to_dense_mask(self) -> Tensor:
        """Dense mask, bool [B, H, Nq, Nk]; large, for debugging."""
        shape = (*self.counts.shape, self.num_key_blocks + 1)  # the last column takes unused slots
        mask = torch.zeros(shape, dtype=torch.bool, device=self.device)
        column = torch.where(self.indices < 0, self.num_key_blocks, self.indices).long()
        return mask.scatter_(-1, column, True)[..., :-1]

    def density(self) -> Tensor:
        """Share of block pairs that are selected: float64 scalar tensor on the device."""
        return self.counts.double().mean() / self.num_key_blocks

    def validate(self) -> None:
        """Check the contents; waits for the device.

        Raises:
            UserError: naming the first row with a count outside 0..R, a list that is not
                ascending within 0..Nk - 1, or an unused slot that is not -1.
        """
        indices, counts, width = self.indices, self.counts, self.indices.shape[-1]
        for here in row_chunks(counts.shape, 8 * max(width, 1)):
            count, listed = counts[here], indices[here]
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


def compact(mask: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Ascending lists of the True entries.

    Args:
        mask: bool [..., Nk] with at most ``width`` True entries per row.
        width: R.

    Returns:
        int32 lists [..., R] with -1 in unused slots, and int32 counts [...].
    """
    place = mask.cumsum(-1)
    counts = place[..., -1].int()
    place = torch.where(mask, place - 1, width)  # slot R takes what is not selected
    lists = mask.new_full((*mask.shape[:-1], width + 1), -1, dtype=torch.int32)
    block = torch.arange(mask.shape[-1], dtype=torch.int32, device=mask.device)
    lists.scatter_(-1, place, block.expand_as(mask))
    return lists[..., :width], counts


def pack_bits(mask: Tensor) -> Tensor:
    """Bit rows of bool [B, H, Nq, Nk], in the format of :meth:`BlockIndex.bits`."""
    words = -(-mask.shape[-1] // 32)
    out = mask.new_empty((*mask.shape[:-1], words), dtype=torch.int32)
    ones = torch.ones(32, dtype=torch.int32, device=mask.device)
    place = ones << torch.arange(32, dtype=torch.int32, device=mask.device)
    for here in row_chunks(mask.shape[:-1], 256 * words):
        row = torch.nn.functional.pad(mask[here], (0, 32 * words - mask.shape[-1]))
        out[here] = torch.where(row.unflatten(-1, (words, 32)), place, 0).sum(-1, dtype=torch.int32)
    return out


def unpack_bits(bits: Tensor, num_key_blocks: int) -> Tensor:
    """Bool [..., Nk] of bit rows [..., words]."""
    place = torch.arange(32, dtype=torch.int32, device=bits.device)
    return ((bits[..., None] >> place) & 1).bool().flatten(-2)[..., :num_key_blocks]


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
