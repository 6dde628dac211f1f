from itertools import product

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from longtake.kernels.block_sparse.layout import BlockLayout, Size3
from longtake.runtime.errors import UserError

CASES = [
    ((4, 8, 8), (4, 4, 4), ()),
    ((6, 9, 11), (4, 4, 4), ()),
    ((5, 6, 7), (2, 4, 3), ()),
    ((3, 1, 2), (4, 4, 4), ()),
    ((7, 5, 3), (4, 2, 2), (3, 4)),
    ((9, 4, 6), (4, 4, 4), (1, 3, 5)),
]


def blocks(grid: Size3, block: Size3, segments: tuple[int, ...]) -> list[list[int]]:
    """Plain token numbers of every block, by sorting tokens one at a time."""
    found: dict[tuple[int, ...], list[int]] = {}
    start = {}
    first = 0
    for number, frames in enumerate(segments or (grid[0],)):
        start.update({first + i: (number, i) for i in range(frames)})
        first += frames
    for token, (z, y, x) in enumerate(product(*map(range, grid))):
        segment, frame = start[z]
        key = (segment, frame // block[0], y // block[1], x // block[2])
        found.setdefault(key, []).append(token)  # plain order within a block is [t, h, w]
    return [found[key] for key in sorted(found)]


@pytest.mark.parametrize(("grid", "block", "segments"), CASES)
def test_order_offsets_and_frames(grid: Size3, block: Size3, segments: tuple[int, ...]) -> None:
    layout = BlockLayout(grid, block, segments)
    expected = blocks(grid, block, segments)
    tokens = [token for members in expected for token in members]
    assert layout.num_blocks == len(expected) and layout.num_tokens == len(tokens)
    assert layout.permutation().tolist() == tokens
    assert layout.permutation()[layout.inverse()].tolist() == list(range(len(tokens)))
    assert layout.block_sizes().tolist() == [len(members) for members in expected]
    assert layout.offsets().tolist() == [
        sum(map(len, expected[:i])) for i in range(len(expected))
    ] + [len(tokens)]
    assert layout.offsets().dtype == layout.block_sizes().dtype == torch.int32
    assert int(layout.block_sizes().max()) <= layout.max_block_size
    assert layout.frame_index().tolist() == [token // (grid[1] * grid[2]) for token in tokens]


def test_a_segment_is_a_contiguous_prefix_in_its_own_layout() -> None:
    # Condition frames and their cached keys stay a prefix whatever their number.
    whole = BlockLayout((7, 6, 5), (4, 4, 4), segments=(3, 4))
    condition, noisy = BlockLayout((3, 6, 5), (4, 4, 4)), BlockLayout((4, 6, 5), (4, 4, 4))
    x = torch.randn(7 * 30, 2)
    parts = condition.to_block(x[:90], 0), noisy.to_block(x[90:], 0)
    assert torch.equal(whole.to_block(x, 0), torch.cat(parts))
    assert whole.num_blocks == condition.num_blocks + noisy.num_blocks


@pytest.mark.parametrize("dim", [1, 2, -2])
def test_reordering_round_trip_and_gradient(dim: int) -> None:
    layout = BlockLayout((3, 4, 5), (2, 3, 2))
    shape = [2, 3, 4, 6]
    shape[dim] = layout.num_tokens
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    blocked = layout.to_block(x, dim)
    assert not torch.equal(blocked, x) and torch.equal(layout.from_block(blocked, dim), x)
    weight = torch.randn_like(x)
    (gradient,) = torch.autograd.grad((blocked * weight).sum(), x)
    assert torch.equal(gradient, layout.from_block(weight, dim))


def test_index_tensors_are_kept_and_do_not_change_equality() -> None:
    layout, other = BlockLayout((3, 4, 5)), BlockLayout([3, 4, 5], torch.Size([4, 4, 4]))  # type: ignore[arg-type]
    assert layout.permutation() is layout.permutation() and layout.offsets() is layout.offsets()
    assert layout == other and hash(layout) == hash(other) and "_kept" not in repr(layout)
    assert layout != BlockLayout((3, 4, 5), (4, 4, 2))


def test_tensors_kept_while_sampling_serve_training() -> None:
    layout = BlockLayout((3, 4, 5), (2, 3, 2))
    with torch.inference_mode():
        layout.to_block(torch.randn(60, 2), 0)
    x = torch.randn(60, 2, requires_grad=True)
    layout.to_block(x, 0).sum().backward()
    assert x.grad is not None and torch.equal(x.grad, torch.ones(60, 2))


def test_tensors_of_a_tracer_are_not_kept() -> None:
    layout = BlockLayout((3, 4, 5))
    with FakeTensorMode():
        assert layout.offsets().shape == (layout.num_blocks + 1,)
    assert layout.offsets()[-1] == 60


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (((4, 4), (4, 4, 4)), "three positive integers"),
        (((4, 0, 4), (4, 4, 4)), "three positive integers"),
        (((2048, 1024, 1024), (4, 4, 4)), "32 bits"),
        (((4, 4, 4), (4, 4, 4), (1, 2)), "sum T"),
    ],
)
def test_wrong_sizes_are_explained(arguments: tuple, word: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(UserError, match=word):
        BlockLayout(*arguments)


def test_wrong_number_of_tokens_is_explained() -> None:
    with pytest.raises(UserError, match="60 tokens of the grid"):
        BlockLayout((3, 4, 5)).to_block(torch.zeros(2, 61, 4), 1)
