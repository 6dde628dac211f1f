"""Checks of what enters and leaves a reward."""

import math

import pytest
import torch

from longtake.rewards.contract import Reward, RewardOutput, VideoBatch
from longtake.runtime.errors import UserError


def clips(num=3, dtype=torch.float32):
    video = torch.rand(num, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return video if dtype != torch.uint8 else (video * 255).to(torch.uint8)


@pytest.mark.parametrize(
    "video",
    [
        torch.zeros(2, 3, 4, 8, 8),  # VAE layout: channels before time
        torch.zeros(4, 3, 8, 8),
        torch.zeros(2, 0, 3, 8, 8),
        torch.zeros(2, 4, 3, 8, 8, dtype=torch.int64),
        [[0.0]],
    ],
    ids=["b3thw", "rank4", "no_frames", "int64", "list"],
)
def test_wrong_clips_are_refused(video):
    with pytest.raises(UserError, match="clips"):
        VideoBatch(video=video, prompts=["a", "b"], fps=8.0)


@pytest.mark.parametrize(
    "fps", [0.0, -8.0, math.nan, math.inf, None, True, "8", torch.tensor([8.0, 8.0])]
)
def test_wrong_playback_rate_is_refused(fps):
    with pytest.raises(UserError, match="playback rate"):
        VideoBatch(video=clips(), prompts=["a"] * 3, fps=fps)


def test_fps_has_no_default():
    with pytest.raises(TypeError, match="fps"):
        VideoBatch(video=clips(), prompts=["a"] * 3)


@pytest.mark.parametrize("prompts", ["abc", ["a", "b"], ["a", "b", None]])
def test_wrong_captions_are_refused(prompts):
    with pytest.raises(UserError, match="caption"):
        VideoBatch(video=clips(), prompts=prompts, fps=8.0)


def test_bad_pixels_are_reported_per_sample():
    video = clips(5)
    video[1, 0, 0, 0, 0] = math.nan
    video[2] = video[2] * 255
    video[3, 0, 0, 0, :2] = math.inf
    video[4] = video[4] * 2 - 1
    reasons = VideoBatch(video=video, prompts=["a"] * 5, fps=8.0).bad_samples()
    assert reasons[0] is None
    assert reasons[1] == "1 of 768 pixel values are not finite"
    assert "expected [0, 1]" in reasons[2] and "expected [0, 1]" in reasons[4]
    assert reasons[3] == "2 of 768 pixel values are not finite"


def test_rounding_overshoot_is_no_bad_pixel():
    video = torch.full((1, 1, 3, 4, 4), 1.0005)
    batch = VideoBatch(video=video, prompts=["a"], fps=8.0)
    assert batch.bad_samples() == [None]
    assert batch.float_video().max() == 1.0


def test_float_video_of_uint8():
    video = clips(2, torch.uint8)
    batch = VideoBatch(video=video, prompts=["a", "b"], fps=8)
    assert batch.bad_samples() == [None, None]
    torch.testing.assert_close(batch.float_video(), video.double().div(255).float())


def test_select_keeps_clip_caption_and_rate_together():
    fps = torch.tensor([8.0, 15.0, 24.0])
    batch = VideoBatch(video=clips(), prompts=["a", "b", "c"], fps=fps)
    part = batch.select([2, 0])
    assert list(part.prompts) == ["c", "a"]
    assert part.fps_per_sample().tolist() == [24.0, 8.0]
    assert torch.equal(part.video, batch.video[[2, 0]])
    one_rate = VideoBatch(video=clips(), prompts=["a", "b", "c"], fps=8)
    assert one_rate.select([1]).fps_per_sample().tolist() == [8.0]


def test_unscored_is_nan_never_a_number():
    output = RewardOutput(
        score=torch.tensor([1.0, 0.0]), valid=torch.tensor([True, False]), reasons=[None, "broken"]
    )
    assert output.score[0] == 1.0
    assert output.score[1].isnan()
    output = RewardOutput.from_scores(torch.tensor([2.0, math.nan, math.inf]))
    assert output.valid.tolist() == [True, False, False]
    assert output.reasons == [None, "the score is nan", "the score is inf"]


@pytest.mark.parametrize(
    "fields",
    [
        {"score": torch.zeros(2, 1), "valid": torch.ones(2, 1, dtype=torch.bool)},
        {"score": torch.zeros(2), "valid": torch.ones(3, dtype=torch.bool)},
        {"score": torch.zeros(2), "valid": torch.ones(2)},
        {"score": torch.zeros(2), "valid": torch.ones(2, dtype=torch.bool), "reasons": ["a"]},
    ],
)
def test_output_shapes_are_checked(fields):
    with pytest.raises(UserError):
        RewardOutput(**fields)


def test_protocol_is_checked_at_run_time():
    assert not isinstance(object(), Reward)
