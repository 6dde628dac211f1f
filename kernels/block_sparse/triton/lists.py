"""Lists per key block from lists per query block, and orders of work, in Triton.

The lists are inverted through a bit matrix, a bit per pair of blocks, so that every list per key
block comes out ascending without sorting and without atomics: bitwise the same in every run.
"""

import dataclasses

import torch
import triton
import triton.language as tl
from torch import Tensor

from longtake.kernels.block_sparse.index import BlockIndex, BlockPairs

#: List entries, query blocks and key blocks that a program looks at together.
CHUNK = 128


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class KeyLists:
    """Which query blocks attend to every key block, and the order in which to work."""

    row_pointers: Tensor
    """int32 [B, Hq, Nk + 1]."""
    query_blocks: Tensor
    """int32 [B, Hq, Nq R]: the list of key block j lies between its row pointer and the next; the
    rest is undefined."""
    wholes: Tensor | None
    """int32 [B, Hq, Nk]: whole blocks, which come first in every list; None if all are whole."""
    order: Tensor
    """int32 [B Hk Nk]: rows [B, Hk, Nk]; the heads that read one key head are one row."""


def key_lists(pairs: BlockPairs, key_heads: int, *, split: bool) -> KeyLists:
    """Invert the lists; with ``split`` each starts with its whole blocks. Both parts ascend."""
    indices, counts = contiguous(pairs.index), pairs.index.counts
    batch, heads, num_queries, width = indices.shape
    num_keys = pairs.keys.count
    words = triton.cdiv(num_keys, 32)
    bits = counts.new_empty((batch, heads, words, num_queries))
    _bits_kernel[(num_queries, batch * heads)](
        indices,
        counts,
        bits,
        heads,
        num_queries,
        words,
        indices.stride()[:3],
        counts.stride(),
        CHUNK=min(CHUNK, triton.next_power_of_2(max(width, 1))),
        WORDS=triton.next_power_of_2(words),
        num_warps=1,
    )
    # Counted in the bits and not with atomics in the lists: one pass more, in a fixed order.
    lengths = counts.new_empty((batch, heads, num_keys))
    grid = (words, batch * heads)
    _lengths_kernel[grid](bits, lengths, num_queries, num_keys, CHUNK=CHUNK, num_warps=4)
    # Lists of one head lie back to back: room for the longest one each would be Nq x Nk.
    row_pointers = counts.new_zeros((batch, heads, num_keys + 1))
    torch.cumsum(lengths, -1, dtype=torch.int32, out=row_pointers[..., 1:])
    query_blocks = counts.new_empty((batch, heads, num_queries * width))
    wholes = torch.empty_like(lengths)
    _fill_kernel[(num_keys, batch * heads)](
        bits,
        row_pointers,
        query_blocks,
        pairs.queries.offsets,
        wholes,
        num_queries,
        num_keys,
        words,
        query_blocks.shape[-1],
        pairs.queries.largest,
        CHUNK=min(1024, triton.next_power_of_2(num_queries)),
        SPLIT=split,
        num_warps=1,
    )
    return KeyLists(
        row_pointers=row_pointers,
        query_blocks=query_blocks,
        wholes=wholes if split else None,
        # Lists per key block always vary, even where every query block lists equally many.
        order=longest_first(lengths.unflatten(1, (key_heads, -1)).sum(2)),
    )


def wholes_first(pairs: BlockPairs) -> tuple[Tensor, Tensor]:
    """Lists [B, H, Nq, R] that start with their whole key blocks, and the numbers of those.

    Both parts keep their order; what follows the count of a list is undefined.
    """
    indices, counts = contiguous(pairs.index), pairs.index.counts
    batch, heads, num_queries, width = indices.shape
    lists, wholes = counts.new_empty(indices.shape), counts.new_empty(counts.shape)
    _wholes_first_kernel[(num_queries, batch * heads)](
        indices,
        counts,
        pairs.keys.offsets,
        lists,
        wholes,
        heads,
        num_queries,
        width,
        pairs.keys.largest,
        indices.stride()[:3],
        counts.stride(),
        CHUNK=min(CHUNK, triton.next_power_of_2(max(width, 1))),
        num_warps=1,
    )
    return lists, wholes


def contiguous(index: BlockIndex) -> Tensor:
    """The lists [B, H, Nq, R] with entries that lie together; the kernels step by one."""
    return index.indices if index.indices.stride(-1) == 1 else index.indices.contiguous()


def work_order(index: BlockIndex) -> Tensor | None:
    """Order in which to work through the lists; None for the order in memory."""
    # Lists with room for most blocks come from a share of mass or a mask: lengths vary.
    vary = 2 * index.indices.shape[-1] > index.num_key_blocks
    return longest_first(index.counts) if vary else None


def longest_first(lengths: Tensor) -> Tensor:
    """Order of work in which long lists do not come last and keep the GPU waiting.

    Positions in ``lengths``, int32 [number of lists]: those of more than 2, 4, 8, ... times the
    mean length come first.
    """
    # Not a plain sort: lists of one class keep their order, because neighbours read the same keys
    # from the cache.
    lengths = lengths.flatten().float()
    # No synchronisation: the mean stays on the device.
    classes = (lengths / lengths.mean().clamp(min=1.0)).clamp(min=1.0).log2().to(torch.uint8)
    return classes.sort(descending=True, stable=True).indices.int()


@triton.jit
def _bits_kernel(
    indices,
    counts,
    bits,
    heads,
    num_queries,
    words,
    list_strides,
    count_strides,
    CHUNK: tl.constexpr,
    WORDS: tl.constexpr,
):
    """Bits of one list, into column ``query`` of [B, H, words, Nq]."""
    query = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1).to(tl.int64)
    batch = row // heads
    head = row % heads
    count = tl.load(
        counts + batch * count_strides[0] + head * count_strides[1] + query * count_strides[2]
    )
    listed = indices + batch * list_strides[0] + head * list_strides[1] + query * list_strides[2]
    word = tl.arange(0, WORDS)
    union = tl.zeros([WORDS], tl.int32)
    for first in range(0, count, CHUNK):
        at = first + tl.arange(0, CHUNK)
        key = tl.load(listed + at, mask=at < count, other=-1)
        bit = tl.where(key >= 0, 1, 0) << (key & 31)
        # Entries are distinct, so the sum of their bits is their union.
        match = (key >> 5)[:, None] == word[None, :]
        union += tl.sum(tl.where(match, bit[:, None], 0), 0)
    tl.store(bits + (row * words + word) * num_queries + query, union, mask=word < words)


@triton.jit
def _lengths_kernel(bits, lengths, num_queries, num_keys, CHUNK: tl.constexpr):
    """Lengths of the lists of 32 key blocks, one word of the bit matrix."""
    word = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    column = bits + (row * tl.num_programs(0) + word) * num_queries
    bit = tl.arange(0, 32)
    total = tl.zeros([32], tl.int32)
    for first in range(0, num_queries, CHUNK):
        at = first + tl.arange(0, CHUNK)
        value = tl.load(column + at, mask=at < num_queries, other=0)
        total += tl.sum((value[:, None] >> bit[None, :]) & 1, 0)
    key = word * 32 + bit
    tl.store(lengths + row * num_keys + key, total, mask=key < num_keys)


@triton.jit
def _fill_kernel(
    bits,
    row_pointers,
    query_blocks,
    q_offsets,
    wholes,
    num_queries,
    num_keys,
    words,
    list_size,
    whole_size,
    CHUNK: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """The list of one key block; with SPLIT whole query blocks first."""
    key = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    column = bits + (row * words + key // 32) * num_queries
    slot = tl.load(row_pointers + row * (num_keys + 1) + key)
    out = query_blocks + row * list_size
    for part in tl.static_range(2 if SPLIT else 1):
        begin = slot
        for first in range(0, num_queries, CHUNK):
            at = first + tl.arange(0, CHUNK)
            value = tl.load(column + at, mask=at < num_queries, other=0)
            member = (value >> (key % 32)) & 1
            if SPLIT:
                inside = at < num_queries
                start = tl.load(q_offsets + at, mask=inside, other=0)
                size = tl.load(q_offsets + at + 1, mask=inside, other=0) - start
                if part == 0:
                    member = tl.where(size == whole_size, member, 0)
                else:
                    member = tl.where(size == whole_size, 0, member)
            tl.store(out + slot + tl.cumsum(member, 0) - 1, at, mask=member > 0)
            slot += tl.sum(member, 0)
        if SPLIT and part == 0:
            tl.store(wholes + row * num_keys + key, slot - begin)


@triton.jit
def _wholes_first_kernel(
    indices,
    counts,
    offsets,
    lists,
    wholes,
    heads,
    num_queries,
    width,
    whole_size,
    list_strides,
    count_strides,
    CHUNK: tl.constexpr,
):
    """Reorder one list."""
    query = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1).to(tl.int64)
    batch = row // heads
    head = row % heads
    count = tl.load(
        counts + batch * count_strides[0] + head * count_strides[1] + query * count_strides[2]
    )
    listed = indices + batch * list_strides[0] + head * list_strides[1] + query * list_strides[2]
    out = lists + (row * num_queries + query) * width
    slot = count * 0
    for part in tl.static_range(2):
        for first in range(0, count, CHUNK):
            at = first + tl.arange(0, CHUNK)
            inside = at < count
            key = tl.load(listed + at, mask=inside, other=0)
            size = tl.load(offsets + key + 1, mask=inside, other=0)
            size -= tl.load(offsets + key, mask=inside, other=0)
            if part == 0:
                member = tl.where(inside & (size == whole_size), 1, 0)
            else:
                member = tl.where(inside & (size != whole_size), 1, 0)
            tl.store(out + slot + tl.cumsum(member, 0) - 1, key, mask=member > 0)
            slot += tl.sum(member, 0)
        if part == 0:
            tl.store(wholes + row * num_queries + query, slot)
