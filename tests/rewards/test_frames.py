"""Frame choice, scores of clips, gray formulas and equal frames against exact arithmetic."""

import hashlib
import math
from fractions import Fraction

import pytest
import torch

from longtake.rewards.frames import (
    GRAY_MODES,
    FrameSampler,
    clip_score,
    even_frames,
    num_best_frames,
    to_grayscale,
    unique_frames,
)
from longtake.runtime.errors import UserError
from longtake.runtime.rng import generator

PUBLISHED = FrameSampler()


def test_even_frames_never_repeat_and_keep_both_ends():
    assert even_frames(17, 5).tolist() == [0, 4, 8, 12, 16]
    assert even_frames(93, 1).tolist() == [46]
    assert even_frames(3, 8).tolist() == [0, 1, 2]
    for num_frames in range(2, 40):
        for count in range(2, num_frames + 1):
            picked = even_frames(num_frames, count).tolist()
            assert picked == sorted(set(picked)) and len(picked) == count
            assert picked[0] == 0 and picked[-1] == num_frames - 1


@pytest.mark.parametrize(
    ("num_frames", "rounding", "expected"),
    [
        (93, "floor", 27), (93, "ceil", 28), (93, "nearest", 28), (17, "floor", 5),
        (10, "floor", 3), (10, "ceil", 3), (3, "floor", 1), (1, "ceil", 1),
    ],
)  # fmt: skip
def test_thirty_percent(num_frames, rounding, expected):
    assert num_best_frames(num_frames, 0.3, rounding) == expected


@pytest.mark.parametrize("num_frames", [1, 3, 10, 93])
def test_clip_scores_equal_sorted_lists(num_frames):
    frames = torch.randn(4, num_frames, dtype=torch.float64, generator=generator(0, num_frames))
    rows = frames.tolist()
    count = max(1, 3 * num_frames // 10)  # exact integer form of floor(0.3 F), at least 1
    best = [math.fsum(sorted(row, reverse=True)[:count]) / count for row in rows]
    torch.testing.assert_close(clip_score(frames, 0.3).tolist(), best)
    mean = [math.fsum(row) / num_frames for row in rows]
    torch.testing.assert_close(clip_score(frames).tolist(), mean)


@pytest.mark.parametrize(
    ("total", "fps", "count"),
    [(93, 15, 12), (93, 30, 6), (81, 16, 10), (49, 8, 12), (53, 24, 4), (50, 20, 4), (70, 20, 8)],
)
def test_the_published_table_of_frame_counts(total, fps, count):
    assert PUBLISHED.count(total, fps) == count  # the last two: 2.5 pairs -> 2, 3.5 pairs -> 4


@pytest.mark.parametrize("fps", [1, 7.5, 23.976])
def test_count_and_indices_follow_the_rule_in_exact_arithmetic(fps):
    for total in (2, 3, 5, 17, 38, 93, 767, 768, 769, 5001):
        # Independent: the largest even number <= min(768, total) bounds it, then the nearest
        # multiple of two, ties going to the multiple of four.
        limit = min(768, total - total % 2)
        exact = min(max(Fraction(total) / Fraction(fps) * 2, Fraction(4)), Fraction(limit))
        below = math.floor(exact / 2) * 2
        up = exact - below > 1 or (exact - below == 1 and below % 4 != 0)
        count = PUBLISHED.count(total, fps)
        assert count == below + 2 * up
        indices = PUBLISHED.indices(total, fps).tolist()
        assert len(indices) == count and indices[0] == 0 and indices[-1] == total - 1
        for i, index in enumerate(indices):
            assert abs(index - Fraction(i * (total - 1), count - 1)) <= Fraction(1, 2)


def test_a_fixed_number_above_an_odd_clip_stays_even():
    sampler = FrameSampler(num_frames=12)
    assert sampler.count(11, 8) == sampler.count(11, 30) == 10
    assert sampler.indices(7, 8).tolist() == [0, 1, 2, 4, 5, 6]
    assert sampler.count(100, 8) == 12


@pytest.mark.parametrize(
    "wrong", [{"target_fps": 0.0}, {"min_frames": 3}, {"max_frames": 2}, {"num_frames": 1}]
)
def test_samplers_that_cannot_work_are_refused(wrong):
    with pytest.raises(UserError, match="sampler"):
        FrameSampler(**wrong)
    with pytest.raises(UserError, match="too short"):
        PUBLISHED.indices(1, 8)  # a single frame is no video


def levels():
    """Colours as [1, 1, 3, 1, N] uint8: corners, ties and random ones."""
    corners = [[r, g, b] for r in (0, 1, 255) for g in (0, 1, 255) for b in (0, 1, 255)]
    ties = [[0, 0, 250], [0, 250, 250], [244, 0, 0], [10, 20, 30]]
    random = torch.randint(0, 256, (400, 3), generator=torch.Generator().manual_seed(0)).tolist()
    colours = torch.tensor(corners + ties + random, dtype=torch.uint8)
    return colours.T.reshape(1, 1, 3, 1, -1)


def exact_gray(mode, red, green, blue):
    luma = (299 * red + 587 * green + 114 * blue) * Fraction(1, 1000)
    if mode == "bt601_trunc":
        return int(luma)
    if mode == "mean":
        luma = Fraction(red + green + blue, 3)
    return int(luma + Fraction(1, 2))


@pytest.mark.parametrize("mode", GRAY_MODES)
def test_gray_is_exact_for_uint8_and_for_its_float_copy(mode):
    video = levels()
    gray = to_grayscale(video, mode)
    expected = [exact_gray(mode, *colour) for colour in video[0, 0, :, 0].T.tolist()]
    for channel in range(3):
        assert gray[0, 0, channel, 0].tolist() == expected
    assert torch.equal(to_grayscale(video.float() / 255, mode), gray.float() / 255)
    ramp = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    assert torch.equal(to_grayscale(ramp, mode), ramp)


def test_gray_of_unrounded_floats_is_within_half_a_level():
    video = torch.rand(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    luma = torch.einsum("c,btchw->bthw", weights, video.double()) * 255
    assert (to_grayscale(video)[:, :, 0] * 255 - luma).abs().max() < 0.501


def random_frames(seed, count):
    draw = generator(seed, "frames")
    return torch.randint(0, 256, (count, 3, 6, 10), generator=draw, dtype=torch.uint8)


def test_equal_frames_share_a_slot_within_and_across_clips():
    a, b, c = random_frames(0, 3)
    video = torch.stack([torch.stack(clip) for clip in ([a, a, b, a], [b, c, c, a])])
    frames = unique_frames(video, torch.arange(4))
    assert frames.slots.tolist() == [[0, 0, 1, 0], [1, 2, 2, 0]]
    assert frames.origins == ((0, 0), (0, 2), (1, 1))
    expected = [hashlib.sha256(x.numpy().tobytes()).digest() for x in (a, b, c)]
    assert list(frames.digests) == expected
    assert unique_frames(video / 255.0, torch.arange(4)).digests == frames.digests
    assert unique_frames(video, torch.tensor([0, 2])).slots.tolist() == [[0, 1], [1, 2]]
