import hashlib

import pytest
import torch

from longtake.rewards.unique_frames import unique_frames
from longtake.runtime.errors import UserError
from longtake.runtime.rng import generator


def frames(seed: int, count: int) -> torch.Tensor:
    draw = generator(seed, "frames")
    return torch.randint(0, 256, (count, 3, 6, 10), generator=draw, dtype=torch.uint8)


def test_equal_frames_share_a_slot_within_and_across_clips() -> None:
    for seed in range(3):
        a, b, c = frames(seed, 3)
        video = torch.stack([torch.stack(clip) for clip in ([a, a, b, a], [b, c, c, a])])
        found = unique_frames(video, torch.arange(4), [0, 1])
        assert found.slots.tolist() == [[0, 0, 1, 0], [1, 2, 2, 0]]
        assert found.places == ((0, 0), (0, 2), (1, 1))
        assert found.repeated.tolist() == [2, 1]
        expected = [hashlib.sha256(x.numpy().tobytes()).digest() for x in (a, b, c)]
        assert list(found.digests) == expected


def test_one_level_of_one_pixel_makes_another_frame() -> None:
    frame = frames(0, 1)[0]
    other = frame.clone()
    other[2, 5, 9] ^= 1
    found = unique_frames(torch.stack([frame, other])[None], torch.arange(2), [0])
    assert found.slots.tolist() == [[0, 1]] and found.repeated.tolist() == [0]


def test_a_float_copy_has_the_same_frames() -> None:
    video = frames(1, 4)[None]
    coded = unique_frames(video, torch.arange(4), [0])
    for dtype in (torch.float32, torch.float16):
        assert unique_frames((video / 255.0).to(dtype), torch.arange(4), [0]).digests == (
            coded.digests
        )


def test_only_the_frames_and_clips_asked_for_are_read() -> None:
    video = (frames(2, 12) / 255.0).view(3, 4, 3, 6, 10)
    video[1] = torch.nan
    video[:, 1] = torch.nan
    found = unique_frames(video, torch.tensor([0, 2]), [0, 2])
    assert found.slots.tolist() == [[0, 1], [-1, -1], [2, 3]]
    assert found.places == ((0, 0), (0, 2), (2, 0), (2, 2))
    with pytest.raises(UserError, match="not finite"):
        unique_frames(video, torch.tensor([0, 1]), [0])
    assert unique_frames(video, torch.tensor([0]), []).places == ()
