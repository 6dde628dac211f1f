"""What enters and leaves a reward."""

import math

import pytest
import torch

from longtake.rewards.contract import Reward, Score, VideoBatch, scores_of
from longtake.runtime.errors import UserError


def clips(num=3, dtype=torch.float32):
    video = torch.rand(num, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return video if dtype != torch.uint8 else (video * 255).to(torch.uint8)


GOOD = {"video": clips(), "prompts": ["a", "b", "c"], "fps": 8.0}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("video", torch.zeros(3, 3, 4, 8, 8)),  # VAE layout: channels before time
        ("video", torch.zeros(3, 0, 3, 8, 8)),
        ("video", torch.zeros(3, 4, 3, 8, 8, dtype=torch.int64)),
        ("video", [[0.0]]),
        ("prompts", "abc"),  # its letters would pass as captions
        ("prompts", ["a", "b"]),
        ("prompts", ["a", "b", None]),
        ("fps", 0.0),
        ("fps", math.nan),
        ("fps", None),
        ("fps", True),
        ("fps", torch.tensor([8.0, 8.0])),
    ],
)
def test_a_batch_that_states_nothing_usable_is_refused(field, value):
    with pytest.raises(UserError, match="cannot be scored"):
        VideoBatch(**{**GOOD, field: value})


def test_bad_pixels_are_reported_per_sample():
    video = clips(5)
    video[1, 0, 0, 0, 0] = math.nan
    video[2] = video[2] * 255
    video[3, 0, 0, 0, :2] = math.inf
    video[4] = video[4] * 2 - 1
    problems = VideoBatch(video=video, prompts=["a"] * 5, fps=8.0).pixel_problems()
    assert problems[0] is None
    assert problems[1] == "1 of 768 pixel values are not finite"
    assert "expected [0, 1]" in problems[2] and "expected [0, 1]" in problems[4]
    assert problems[3] == "2 of 768 pixel values are not finite"


def test_rounding_overshoot_is_no_bad_pixel():
    video = torch.full((1, 1, 3, 4, 4), 1.0005)
    batch = VideoBatch(video=video, prompts=["a"], fps=8.0)
    assert batch.pixel_problems() == [None]
    assert batch.float_video().max() == 1.0


def test_float_video_of_uint8():
    batch = VideoBatch(video=clips(2, torch.uint8), prompts=["a", "b"], fps=8)
    torch.testing.assert_close(batch.float_video(), batch.video.double().div(255).float())


def test_select_keeps_clip_caption_and_rate_together():
    fps = torch.tensor([8.0, 15.0, 24.0])
    batch = VideoBatch(video=clips(), prompts=["a", "b", "c"], fps=fps)
    part = batch.select([2, 0])
    assert list(part.prompts) == ["c", "a"]
    assert part.fps_per_sample().tolist() == [24.0, 8.0]
    assert torch.equal(part.video, batch.video[[2, 0]])
    one_rate = VideoBatch(video=clips(), prompts=["a", "b", "c"], fps=8)
    assert one_rate.select([1]).fps_per_sample().tolist() == [8.0]


def test_a_score_is_a_number_or_a_reason():
    third, nan, infinite = scores_of(torch.tensor([1 / 3, math.nan, math.inf]))
    assert torch.tensor(float(third)) == torch.tensor(1 / 3) and third.reason is None
    assert nan == Score.unscored("the score is nan") and infinite.reason == "the score is inf"
    assert math.isnan(float(nan))
    for both_or_neither in ((1.0, "why"), (None, None), (math.nan, None)):
        with pytest.raises(AssertionError):
            Score(*both_or_neither)


def test_a_reward_needs_two_flags_and_a_method():
    class Mine(Reward):
        needs_prompt, needs_time = False, False

        def score(self, batch):
            return scores_of(torch.zeros(batch.num_samples))

    reward = Mine()
    assert isinstance(reward, Reward) and reward.to("cpu") is reward
    assert reward.fingerprint()["class"].endswith("Mine")
    assert not isinstance(object(), Reward)
