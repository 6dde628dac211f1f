import math
from fractions import Fraction

import pytest

from longtake.rewards.frame_sampling import FrameSampler
from longtake.runtime.errors import UserError

PUBLISHED = FrameSampler()


@pytest.mark.parametrize(
    ("total", "fps", "count"), [(93, 15, 12), (93, 30, 6), (81, 16, 10), (49, 8, 12), (53, 24, 4)]
)
def test_the_published_table_of_frame_counts(total: int, fps: float, count: int) -> None:
    assert PUBLISHED.count(total, fps) == count


@pytest.mark.parametrize("total", [*range(2, 40), 93, 767, 768, 769, 2001, 5001])
@pytest.mark.parametrize("fps", [1, 7.5, 12, 23.976, 30])
def test_the_count_follows_the_rule_in_exact_arithmetic(total: int, fps: float) -> None:
    # Independent: the largest even number <= min(768, total) bounds it, then the nearest multiple
    # of two, ties going to the multiple of four.
    limit = min(768, total - total % 2)
    wanted = min(max(Fraction(total) / Fraction(fps) * 2, Fraction(4)), Fraction(limit))
    below = math.floor(wanted / 2) * 2
    distance = wanted - below
    expected = below if distance < 1 or (distance == 1 and below % 4 == 0) else below + 2
    count = PUBLISHED.count(total, fps)
    assert count == expected
    assert count % 2 == 0 and 2 <= count <= total


def test_half_pairs_round_to_the_even_number_of_pairs() -> None:
    # 5 frames wanted = 2.5 pairs -> 2 pairs; 7 = 3.5 pairs -> 4 pairs.
    assert PUBLISHED.count(50, 20) == 4
    assert PUBLISHED.count(70, 20) == 8


@pytest.mark.parametrize(("total", "fps"), [(93, 15), (93, 30), (81, 16), (17, 8), (3, 8), (2, 1)])
def test_indices_are_evenly_spread_from_first_to_last(total: int, fps: float) -> None:
    indices = PUBLISHED.indices(total, fps).tolist()
    count = PUBLISHED.count(total, fps)
    assert len(indices) == count and indices[0] == 0 and indices[-1] == total - 1
    for i, index in enumerate(indices):
        exact = Fraction(i * (total - 1), count - 1)
        assert abs(index - exact) <= Fraction(1, 2)


def test_the_playback_rate_changes_the_frames() -> None:
    slow, fast = PUBLISHED.indices(81, 8), PUBLISHED.indices(81, 16)
    assert len(slow) == 20 and len(fast) == 10


def test_a_fixed_number_above_an_odd_clip_stays_even() -> None:
    sampler = FrameSampler(num_frames=12)
    assert sampler.count(11, 8) == 10
    assert sampler.count(11, 8) == sampler.count(11, 30)
    assert sampler.indices(7, 8).tolist() == [0, 1, 2, 4, 5, 6]
    assert sampler.count(100, 8) == 12


@pytest.mark.parametrize(("total", "fps"), [(1, 8), (0, 8), (9, 0), (9, -1), (9, math.nan)])
def test_clips_and_rates_that_cannot_be_sampled_are_refused(total: int, fps: float) -> None:
    with pytest.raises(UserError, match=r"too short|playback rate"):
        PUBLISHED.indices(total, fps)


@pytest.mark.parametrize(
    "wrong",
    [{"target_fps": 0.0}, {"min_frames": 3}, {"max_frames": 2}, {"num_frames": 1}],
)
def test_samplers_that_cannot_work_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match="sampler"):
        FrameSampler(**wrong)  # type: ignore[arg-type]
