from itertools import product

import pytest
import torch

from longtake.kernels.block_sparse.layout import BlockLayout
from longtake.kernels.block_sparse.select import first_frames, local_window, space_and_time
from longtake.runtime.errors import UserError

QUERIES = BlockLayout((4, 9, 10), (2, 4, 4))  # 2 x 3 x 3 blocks
KEYS = BlockLayout((7, 11, 12), (2, 4, 4))  # 4 x 3 x 3 blocks


@pytest.mark.parametrize("start", [0, 2])
def test_patterns_block_by_block(start: int) -> None:
    window = local_window(QUERIES, KEYS, (1, 0, 2), start)
    cross = space_and_time(QUERIES, KEYS, start)
    sink = first_frames(QUERIES, KEYS, 3)
    assert window.dtype == cross.dtype == sink.dtype == torch.bool
    places_q = list(product(range(2), range(3), range(3)))
    places_k = list(product(range(4), range(3), range(3)))
    for i, (t, y, x) in enumerate(places_q):
        for j, (u, b, a) in enumerate(places_k):
            near = abs(u - t - start) <= 1 and b == y and abs(a - x) <= 2
            assert window[i, j] == near
            assert cross[i, j] == (u == t + start or (b, a) == (y, x))
            assert sink[i, j] == (u < 3)


def test_segments_count_as_time_blocks() -> None:
    keys = BlockLayout((7, 4, 4), (4, 4, 4), segments=(1, 6))
    assert first_frames(QUERIES, keys).tolist() == [[True, False, False]] * QUERIES.num_blocks


def test_a_window_of_everything_is_dense() -> None:
    assert local_window(QUERIES, KEYS, (9, 9, 9)).all()
    assert torch.equal(local_window(KEYS, KEYS, (0, 0, 0)), torch.eye(36, dtype=torch.bool))


def test_wrong_patterns_are_explained() -> None:
    other = BlockLayout((4, 9, 13), (2, 4, 4))
    for pattern in (space_and_time, lambda q, k: local_window(q, k, (1, 1, 1))):
        with pytest.raises(UserError, match="one grid"):
            pattern(QUERIES, other)
