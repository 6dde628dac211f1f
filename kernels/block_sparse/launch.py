"""What a call of the GPU kernels works on: tensors, blocks, lists, and TMA boxes over them."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from longtake.kernels.block_sparse.triton_lists import lists_per_key, longest_first

LOG2_E = 1.4426950408889634

#: Rows of a TMA box and of a Gluon tile: those of a warpgroup's product.
BOX_ROWS = 64


@dataclasses.dataclass(frozen=True, slots=True)
class Blocks:
    """The blocks of one axis of the attention."""

    offsets: Tensor
    """int32 [Nblk + 1] on the device: first token of every block, then N."""
    num_tokens: int
    """N."""
    largest: int
    """Tokens of the largest block; known without waiting for the device."""

    @property
    def count(self) -> int:
        """Nblk."""
        return self.offsets.numel() - 1

    @property
    def fill(self) -> float:
        """Share of tokens in the room of blocks that are all as large as the largest."""
        return self.num_tokens / (self.count * self.largest)

    def tiles(self, tile: int) -> int:
        """Tiles that the largest block needs."""
        return -(-self.largest // tile)

    def ragged(self, tile: int) -> bool:
        """Whether some tile is not full."""
        return self.largest % tile > 0 or self.num_tokens != self.count * self.largest


@dataclasses.dataclass(frozen=True, slots=True)
class Lists:
    """Block lists of a call, and the order in which to work through them."""

    indices: Tensor
    counts: Tensor
    order: Tensor | None
    """None for the order in memory."""

    @classmethod
    def of(cls, indices: Tensor, counts: Tensor, num_key_blocks: int) -> "Lists":
        """Lists over ``num_key_blocks`` blocks; waits for nothing."""
        if indices.stride(-1) != 1:
            indices = indices.contiguous()
        # Lists with room for most blocks come from a share of mass or a mask: lengths vary.
        vary = 2 * indices.shape[-1] > num_key_blocks
        return cls(indices, counts, longest_first(counts) if vary else None)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class KeyLists:
    """Lists of query blocks per key block, and the order in which to work through them."""

    row_pointers: Tensor
    """int32 [B, Hq, Nk + 1]."""
    query_blocks: Tensor
    """int32 [B, Hq, Nq R]."""
    wholes: Tensor | None
    """int32 [B, Hq, Nk]: whole blocks, which come first in every list; None if all are whole."""
    order: Tensor
    """int32 [B Hk Nk]: rows [B, Hk, Nk]; the heads that read one key head are one row."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One call of the attention."""

    q: Tensor
    """[B, Hq, N, D]."""
    k: Tensor
    """[B, Hk, M, D]."""
    v: Tensor
    """As ``k``."""
    lists: Lists
    queries: Blocks
    keys: Blocks
    scale: float
    """Factor of the scores."""

    @property
    def heads(self) -> tuple[int, int]:
        """Hq and Hk."""
        return self.q.shape[1], self.k.shape[1]

    @property
    def scale_log2(self) -> float:
        """Factor of the scores in powers of two."""
        return self.scale * LOG2_E


def key_lists(call: Call, *, split: bool) -> KeyLists:
    """Invert the lists of a call.

    Args:
        call: the call.
        split: whether every list is to start with its whole blocks.
    """
    pointers, query_blocks, wholes = lists_per_key(
        call.lists.indices,
        call.lists.counts,
        call.keys.count,
        call.queries.offsets if split else None,
        call.queries.largest,
    )
    lengths = pointers.diff().unflatten(1, (call.k.shape[1], -1)).sum(2)
    return KeyLists(
        row_pointers=pointers,
        query_blocks=query_blocks,
        wholes=wholes,
        order=longest_first(lengths),
    )


def strides(*tensors: Tensor) -> list[int]:
    """Strides of the first three axes of every tensor."""
    return [n for x in tensors for n in x.stride()[:3]]


def has_tma(device: torch.device) -> bool:
    """Whether the device has a tensor memory accelerator: compute capability 9 and up."""
    return torch.cuda.get_device_capability(device)[0] >= 9


def in_reach_of_tma(x: Tensor) -> bool:
    """Whether address and strides are multiples of 16 bytes; axes of size 1 have no stride."""
    sizes = [
        stride * x.element_size()
        for size, stride in zip(x.shape[:3], x.stride()[:3], strict=True)
        if size > 1
    ]
    return x.data_ptr() % 16 == 0 and all(0 < n < 2**40 and n % 16 == 0 for n in sizes)


def box(kind: Any, x: Tensor, columns: int, *layout: Any) -> Any:
    """TMA descriptor of tiles [1, 1, 64, columns] of ``x`` [B, H, N, D]."""
    steps = [
        stride if size > 1 else x.shape[-1]
        for size, stride in zip(x.shape[:3], x.stride()[:3], strict=True)
    ]
    return kind(x, list(x.shape), [*steps, 1], [1, 1, BOX_ROWS, columns], *layout)
