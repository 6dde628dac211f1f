from itertools import pairwise

import pytest
import torch
from torch import Tensor

from longtake.kernels.block_sparse import index as index_module
from longtake.kernels.block_sparse.index import BlockIndex, compact, pack_bits, unpack_bits
from longtake.runtime.errors import UserError

SHAPES = [(2, 3, 7, 5), (1, 2, 4, 32), (1, 1, 6, 33), (2, 1, 3, 70)]


def random_mask(shape: tuple[int, ...], seed: int) -> Tensor:
    """About 30 % True, with an empty row, a full row and the highest bit of a word."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.3
    mask[0, 0, 0] = False
    mask[-1, -1, 1] = True
    mask[..., 2, min(31, shape[-1] - 1)] = True
    return mask


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_lists_name_the_true_entries_in_order(shape: tuple[int, ...], seed: int) -> None:
    mask = random_mask(shape, seed)
    index = BlockIndex.from_dense_mask(mask)
    index.validate()
    for b in range(shape[0]):
        for h in range(shape[1]):
            for i in range(shape[2]):
                blocks = [j for j in range(shape[3]) if mask[b, h, i, j]]
                unused = [-1] * (index.indices.shape[-1] - len(blocks))
                assert index.indices[b, h, i].tolist() == blocks + unused
                assert index.counts[b, h, i] == len(blocks)
    assert torch.equal(index.to_dense_mask(), mask)
    assert float(index.density()) == pytest.approx(float(mask.double().mean()), abs=1e-15)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_bits_and_lists_per_key_against_the_mask(shape: tuple[int, ...], seed: int) -> None:
    mask = random_mask(shape, seed)
    index = BlockIndex.from_dense_mask(mask)
    bits = index.bits()
    pointers, query_blocks = index.csr()
    assert bits.dtype == pointers.dtype == query_blocks.dtype == torch.int32
    assert query_blocks.shape == (*shape[:2], shape[2] * index.indices.shape[-1])
    assert torch.equal(bits, pack_bits(mask))
    assert torch.equal(unpack_bits(bits, shape[3]), mask)
    for b in range(shape[0]):
        for h in range(shape[1]):
            for i in range(shape[2]):
                for word in range(bits.shape[-1]):
                    here = sum(
                        1 << j % 32 for j in range(shape[3]) if mask[b, h, i, j] and j // 32 == word
                    )
                    assert int(bits[b, h, i, word]) % 2**32 == here
            expected = [[i for i in range(shape[2]) if mask[b, h, i, j]] for j in range(shape[3])]
            ends = pointers[b, h].tolist()
            found = query_blocks[b, h].tolist()
            assert [found[a:z] for a, z in pairwise(ends)] == expected
            assert ends[0] == 0 and set(found[ends[-1] :]) <= {-1}


def test_small_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = random_mask((2, 2, 9, 40), 3)
    whole = BlockIndex.from_dense_mask(mask)
    bits, lists = whole.bits(), whole.csr()
    monkeypatch.setattr(index_module, "CHUNK_BYTES", 1)
    rows = BlockIndex.from_dense_mask(mask)
    rows.validate()
    assert torch.equal(rows.indices, whole.indices) and torch.equal(rows.counts, whole.counts)
    assert torch.equal(rows.bits(), bits) and torch.equal(pack_bits(mask), bits)
    assert all(torch.equal(a, b) for a, b in zip(rows.csr(), lists, strict=True))


def test_nothing_waits_for_the_device() -> None:
    # Tensors without data: whatever reads a value raises.
    index = BlockIndex.from_dense_mask(random_mask((2, 3, 5, 40), 0)).to("meta")
    assert index.bits().shape == (2, 3, 5, 2)
    assert index.csr()[0].shape == (2, 3, 41)
    assert index.to_dense_mask().shape == (2, 3, 5, 40)
    assert index.density().shape == ()
    mask = torch.zeros(1, 1, 4, 9, dtype=torch.bool, device="meta")
    lists, counts = compact(mask, 3)
    assert lists.shape == (1, 1, 4, 3) and counts.shape == (1, 1, 4)
    assert pack_bits(mask).shape == (1, 1, 4, 1)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        index.validate()


def test_missing_axes_of_a_mask_become_one_and_expand_without_copies() -> None:
    mask = random_mask((1, 1, 6, 5), 0)[0, 0]
    index = BlockIndex.from_dense_mask(mask, width=5)
    assert index.indices.shape == (1, 1, 6, 5)
    wide = index.expand(3, 4)
    assert wide.counts.shape == (3, 4, 6) and torch.equal(wide.to_dense_mask()[2, 1], mask)
    assert wide.indices.data_ptr() == index.indices.data_ptr()
    assert torch.equal(wide.bits()[1, 3], index.bits()[0, 0])
    with pytest.raises(UserError, match="other batch entries"):
        wide.expand(3, 5)


def test_wrong_masks_and_tensors_are_explained() -> None:
    mask = torch.ones(4, 5, dtype=torch.bool)
    with pytest.raises(UserError, match="does not fit the lists"):
        BlockIndex.from_dense_mask(mask, width=4)
    for wrong in (mask.float(), mask[0], mask[None, None, None], mask[:0]):
        with pytest.raises(UserError, match="not a block mask"):
            BlockIndex.from_dense_mask(wrong)
    lists, counts = torch.zeros(1, 1, 2, 3, dtype=torch.int32), torch.ones(1, 1, 2).int()
    for indices, number in [(lists.long(), counts), (lists, counts.long()), (lists[0], counts)]:
        with pytest.raises(UserError, match="wrong shape or type"):
            BlockIndex(indices, number, 4)
    with pytest.raises(UserError, match="two devices"):
        BlockIndex(lists.to("meta"), counts, 4)
    with pytest.raises(UserError, match="no key blocks"):
        BlockIndex(lists, counts, 0)
    assert BlockIndex(lists, counts, 4).to("meta").device.type == "meta"


@pytest.mark.parametrize(
    ("row", "count"),
    [
        ([2, 1, -1], 2),  # descending
        ([1, 1, -1], 2),  # twice
        ([1, 4, -1], 2),  # beyond the last block
        ([-1, 2, -1], 2),  # negative
        ([0, 1, 2], 2),  # rubbish behind the list
        ([0, 1, 2], 4),  # longer than the lists
        ([-1, -1, -1], -1),
    ],
)
def test_broken_lists_are_found(row: list[int], count: int) -> None:
    good = [0, 3, -1]
    indices = torch.tensor([[[good, good, row]]], dtype=torch.int32)
    with pytest.raises(UserError, match="breaks its contract") as error:
        BlockIndex(indices, torch.tensor([[[2, 2, count]]]).int(), 4).validate()
    assert "row 2" in str(error.value) and str(row) in str(error.value)
