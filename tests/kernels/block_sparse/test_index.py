import pytest
import torch
from torch import Tensor

from longtake.kernels.block_sparse import index as index_module
from longtake.kernels.block_sparse.index import BlockIndex, compact, pack_bits, unpack_bits
from longtake.runtime.errors import UserError

SHAPES = [(2, 3, 7, 5), (1, 1, 6, 33), (2, 1, 3, 70)]


def random_mask(shape: tuple[int, ...], seed: int) -> Tensor:
    """About 30 % True, with an empty row, a full row and the highest bit of a word."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.3
    mask[0, 0, 0] = False
    mask[-1, -1, 1] = True
    mask[..., 2, min(31, shape[-1] - 1)] = True
    return mask


@pytest.mark.parametrize("shape", SHAPES)
def test_lists_name_the_true_entries_in_order(shape: tuple[int, ...]) -> None:
    mask = random_mask(shape, 0)
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


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_of_bits_against_the_mask(shape: tuple[int, ...]) -> None:
    mask = random_mask(shape, 0)
    bits = pack_bits(mask)
    assert bits.dtype == torch.int32 and torch.equal(unpack_bits(bits, shape[3]), mask)
    for row, words in zip(mask.flatten(0, 2), bits.flatten(0, 2), strict=True):
        for word, value in enumerate(words.tolist()):
            set_bits = row[32 * word : 32 * word + 32].nonzero()[:, 0].tolist()
            assert value % 2**32 == sum(1 << bit for bit in set_bits)


def test_small_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = random_mask((2, 2, 9, 40), 3)
    whole = BlockIndex.from_dense_mask(mask)
    bits = pack_bits(mask)
    monkeypatch.setattr(index_module, "CHUNK_BYTES", 1)
    rows = BlockIndex.from_dense_mask(mask)
    rows.validate()
    assert torch.equal(rows.indices, whole.indices) and torch.equal(rows.counts, whole.counts)
    assert torch.equal(pack_bits(mask), bits)


def test_nothing_waits_for_the_device() -> None:
    # Tensors without data: whatever reads a value raises.
    index = BlockIndex.from_dense_mask(random_mask((2, 3, 5, 40), 0)).to("meta")
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
    index = BlockIndex.from_dense_mask(mask)
    assert index.indices.shape == (1, 1, 6, 5)
    wide = index.expand(3, 4)
    assert wide.counts.shape == (3, 4, 6) and torch.equal(wide.to_dense_mask()[2, 1], mask)
    assert wide.indices.data_ptr() == index.indices.data_ptr()


def test_wrong_lists_are_explained() -> None:
    lists, counts = torch.zeros(1, 1, 2, 3, dtype=torch.int32), torch.ones(1, 1, 2).int()
    for indices, numbers, blocks in [
        (lists.long(), counts, 4),
        (lists[0], counts, 4),
        (lists, counts, 0),
    ]:
        with pytest.raises(UserError, match="no block lists"):
            BlockIndex(indices, numbers, blocks)
    assert BlockIndex(lists, counts, 4).to("meta").device.type == "meta"


@pytest.mark.parametrize(
    ("row", "count"),
    [
        ([2, 1, -1], 2),  # descending
        ([1, 4, -1], 2),  # beyond the last block
        ([-1, 2, -1], 2),  # negative
        ([0, 1, 2], 2),  # rubbish behind the list
        ([0, 1, 2], 4),  # longer than the lists
    ],
)
def test_broken_lists_are_found(row: list[int], count: int) -> None:
    good = [0, 3, -1]
    indices = torch.tensor([[[good, good, row]]], dtype=torch.int32)
    with pytest.raises(UserError, match="breaks its contract") as error:
        BlockIndex(indices, torch.tensor([[[2, 2, count]]]).int(), 4).validate()
    assert "row 2" in str(error.value) and str(row) in str(error.value)
