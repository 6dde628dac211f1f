"""Frame sampling and aggregation against sorted lists."""

import math

import pytest
import torch

from longtake.rewards.frames import (
    aggregate,
    all_frames,
    even_frames,
    num_top_frames,
    stride_frames,
)
from longtake.runtime.errors import UserError


def test_samplers():
    assert all_frames(4).tolist() == [0, 1, 2, 3]
    assert stride_frames(7, 3).tolist() == [0, 3, 6]
    assert stride_frames(2, 9).tolist() == [0]
    assert even_frames(17, 5).tolist() == [0, 4, 8, 12, 16]
    assert even_frames(93, 1).tolist() == [46]
    assert even_frames(3, 8).tolist() == [0, 1, 2]


@pytest.mark.parametrize("num_frames", range(1, 40))
def test_even_frames_never_repeat_and_keep_both_ends(num_frames):
    for count in range(2, num_frames + 1):
        picked = even_frames(num_frames, count).tolist()
        assert picked == sorted(set(picked)) and len(picked) == count
        assert picked[0] == 0 and picked[-1] == num_frames - 1


@pytest.mark.parametrize(
    ("num_frames", "rounding", "expected"),
    [
        (93, "floor", 27), (93, "ceil", 28), (93, "nearest", 28), (17, "floor", 5),
        (10, "floor", 3), (10, "ceil", 3), (3, "floor", 1), (1, "ceil", 1), (3, "nearest", 1),
    ],
)  # fmt: skip
def test_thirty_percent(num_frames, rounding, expected):
    assert num_top_frames(num_frames, 0.3, rounding) == expected


def test_minimum_is_capped_at_the_clip():
    assert num_top_frames(93, 0.3, minimum=40) == 40
    assert num_top_frames(5, 0.3, minimum=40) == 5


@pytest.mark.parametrize("num_frames", [1, 2, 3, 10, 17, 93])
def test_aggregate_equals_sorted_lists(num_frames):
    generator = torch.Generator().manual_seed(num_frames)
    frames = torch.randn(4, num_frames, dtype=torch.float64, generator=generator)
    rows = frames.tolist()
    mean = [math.fsum(row) / num_frames for row in rows]
    count = max(1, 3 * num_frames // 10)  # exact integer form of floor(0.3 F), at least 1
    top = [math.fsum(sorted(row, reverse=True)[:count]) / count for row in rows]
    torch.testing.assert_close(aggregate(frames, "mean").tolist(), mean)
    torch.testing.assert_close(aggregate(frames, "top_fraction").tolist(), top)


def test_whole_fraction_is_the_mean():
    frames = torch.randn(3, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        aggregate(frames, "top_fraction", fraction=1.0), aggregate(frames, "mean")
    )


@pytest.mark.parametrize("how", ["mean", "top_fraction"])
def test_a_nan_frame_poisons_only_its_row(how):
    frames = torch.zeros(2, 10)
    frames[0, 7] = math.nan
    assert aggregate(frames, how).isnan().tolist() == [True, False]


def test_bad_arguments_are_refused():
    frames = torch.zeros(2, 5)
    for call in (
        lambda: aggregate(torch.zeros(5)),
        lambda: aggregate(torch.zeros(2, 0)),
        lambda: aggregate(frames, "median"),
        lambda: aggregate(frames, "top_fraction", fraction=0.0),
        lambda: aggregate(frames, "top_fraction", fraction=1.5),
        lambda: aggregate(frames, "top_fraction", rounding="up"),
        lambda: aggregate(frames, "top_fraction", minimum=0),
        lambda: even_frames(0, 3),
        lambda: stride_frames(5, 0),
    ):
        with pytest.raises(UserError):
            call()
