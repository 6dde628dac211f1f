"""Failures of one reward stay in the samples that cause them."""

import math

import pytest
import torch

from longtake.rewards.contract import Reward, Score, VideoBatch, scores_of
from longtake.rewards.suite import RewardSuite
from longtake.runtime.errors import UserError


class Brightness(Reward):
    """Mean pixel plus a constant; fails on demand."""

    needs_prompt = False
    needs_time = False

    def __init__(self, plus=0.0, fail=None):
        self.plus, self.fail, self.seen = plus, fail, []

    def score(self, batch):
        self.seen.append(batch.num_samples)
        scores = scores_of(batch.float_video().mean((1, 2, 3, 4)) + self.plus)
        return scores if self.fail is None else self.fail(batch, scores)


def batch(num=4):
    video = torch.rand(num, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return VideoBatch(video=video, prompts=[f"clip {i}" for i in range(num)], fps=8.0)


def raise_on(prompt, error):
    def fail(clips, scores):
        if prompt is None or prompt in clips.prompts:
            raise error
        return scores

    return fail


def test_columns_follow_the_names():
    clips = batch()
    scores = RewardSuite({"a": (Brightness(), 1.0), "b": (Brightness(5.0), 0.5)}).score(clips)
    mean = clips.video.mean((1, 2, 3, 4))
    assert list(scores.rows) == ["a", "b"]
    assert scores.scores.shape == (2, 4) and scores.scores.dtype == torch.float32
    torch.testing.assert_close(scores.columns["a"], mean)
    torch.testing.assert_close(scores.columns["b"], mean + 5)
    assert scores.unscored() == {"a": 0, "b": 0} and scores.first_reasons() == []


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), UserError("refused")])
def test_a_raising_reward_does_not_touch_the_others(error):
    suite = RewardSuite(
        {"broken": (Brightness(fail=raise_on(None, error)), 1.0), "sound": (Brightness(), 1.0)}
    )
    scores = suite.score(batch())
    assert scores.columns["broken"].isnan().all()
    assert scores.columns["sound"].isfinite().all()
    assert scores.unscored() == {"broken": 4, "sound": 0}
    assert scores.first_reasons() == [f"broken: {type(error).__name__}: {error} (4)"]


def test_only_the_clip_that_causes_the_error_is_lost():
    reward = Brightness(fail=raise_on("clip 2", RuntimeError("no such caption")))
    clips = batch()
    scores = RewardSuite({"a": (reward, 1.0)}).score(clips)
    assert scores.scores[0].isfinite().tolist() == [True, True, False, True]
    assert scores.rows["a"][2] == Score.unscored("RuntimeError: no such caption")
    torch.testing.assert_close(scores.scores[0, 3], clips.video[3].mean())


@pytest.mark.parametrize("wrong", [None, [1.0] * 4, 3.0, [Score(1.0)] * 8])
def test_what_is_not_one_score_per_clip_is_reported(wrong):
    suite = RewardSuite({"a": (Brightness(fail=lambda clips, scores: wrong), 1.0)})
    assert suite.score(batch()).unscored() == {"a": 4}


def test_broken_clips_never_reach_a_reward():
    clips = batch()
    clips.video[1] = math.nan
    clips.video[2] = 7.0
    reward = Brightness()
    scores = RewardSuite({"a": (reward, 1.0)}).score(clips)
    assert reward.seen == [2]
    assert "not finite" in scores.rows["a"][1].reason and "[0, 1]" in scores.rows["a"][2].reason
    torch.testing.assert_close(scores.scores[0, 3], clips.video[3].mean())
    clips.video[:] = math.nan
    assert RewardSuite({"a": (reward, 1.0)}).score(clips).unscored() == {"a": 4}
    assert reward.seen == [2]


@pytest.mark.parametrize(
    ("rewards", "words"),
    [
        ({}, "empty"),
        ({"a": (lambda clips: 0, 1.0)}, "cannot be used"),
        ({"a": (Brightness(), -1.0)}, "weight"),
        ({"a": (Brightness(), math.nan)}, "weight"),
    ],
)
def test_bad_suites_are_refused(rewards, words):
    with pytest.raises(UserError, match=words):
        RewardSuite(rewards)
