"""Failures of one reward stay in the samples that cause them."""

import json
import math

import pytest
import torch

from longtake.rewards import REWARDS, load_reward, load_suite
from longtake.rewards.contract import Reward, RewardOutput, VideoBatch
from longtake.rewards.suite import RewardSuite
from longtake.runtime.errors import UserError


class Brightness:
    """Mean pixel plus a constant; fails on demand."""

    name = "brightness"
    needs_prompt = False
    needs_time = False

    def __init__(self, plus=0.0, fail=None):
        self.plus, self.fail, self.seen = plus, fail, []

    def score(self, batch):
        self.seen.append(batch.num_samples)
        score = batch.float_video().mean((1, 2, 3, 4)) + self.plus
        if self.fail is not None:
            score = self.fail(batch, score)
        if isinstance(score, torch.Tensor):
            return RewardOutput.from_scores(score, {"doubled": 2 * score})
        return score

    def to(self, device):
        return self

    def fingerprint(self):
        return {"plus": self.plus}


def batch(num=4):
    video = torch.rand(num, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return VideoBatch(video=video, prompts=[f"clip {i}" for i in range(num)], fps=8.0)


def raise_on(prompt, error):
    def fail(clips, score):
        if prompt is None or prompt in clips.prompts:
            raise error
        return score

    return fail


def test_columns_follow_the_names():
    clips = batch()
    scores = RewardSuite({"a": (Brightness(), 1.0), "b": (Brightness(5.0), 0.5)}).score(clips)
    mean = clips.video.mean((1, 2, 3, 4))
    assert scores.names == ("a", "b")
    assert scores.weights.tolist() == [1.0, 0.5]
    assert scores.scores.shape == (2, 4) and scores.scores.dtype == torch.float32
    torch.testing.assert_close(scores.columns["a"], mean)
    torch.testing.assert_close(scores.columns["b"], mean + 5)
    torch.testing.assert_close(scores.aux["b"]["doubled"], 2 * mean + 10)
    assert scores.unscored() == {"a": 0, "b": 0} and scores.first_reasons() == []


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA out of memory"),
        ValueError("bad"),
        ZeroDivisionError("division by zero"),
        OSError("connection lost"),
        UserError("refused", received=3),
        KeyError("token"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_raising_reward_does_not_touch_the_others(error):
    suite = RewardSuite(
        {"broken": (Brightness(fail=raise_on(None, error)), 1.0), "sound": (Brightness(), 1.0)}
    )
    scores = suite.score(batch())
    assert scores.columns["broken"].isnan().all()
    assert scores.columns["sound"].isfinite().all()
    assert scores.unscored() == {"broken": 4, "sound": 0}
    assert all(type(error).__name__ in reason for reason in scores.reasons[0])
    assert scores.first_reasons()[0].endswith("(4)")


def test_only_the_clip_that_causes_the_error_is_lost():
    reward = Brightness(fail=raise_on("clip 2", RuntimeError("no such caption")))
    clips = batch()
    scores = RewardSuite({"a": (reward, 1.0)}).score(clips)
    assert scores.valid[0].tolist() == [True, True, False, True]
    assert scores.reasons[0] == (None, None, "RuntimeError: no such caption", None)
    torch.testing.assert_close(scores.scores[0, 3], clips.video[3].mean())


def test_retry_can_be_turned_off():
    reward = Brightness(fail=raise_on("clip 2", OSError("timed out")))
    scores = RewardSuite({"a": (reward, 1.0)}, retry_singly=False).score(batch())
    assert reward.seen == [4]
    assert scores.unscored() == {"a": 4}


def test_ctrl_c_is_not_swallowed():
    suite = RewardSuite({"a": (Brightness(fail=raise_on(None, KeyboardInterrupt())), 1.0)})
    with pytest.raises(KeyboardInterrupt):
        suite.score(batch())


def test_nan_scores_become_unscored_with_a_reason():
    def fail(clips, score):
        score[1] = math.nan
        return RewardOutput(score=score, valid=torch.ones(len(score), dtype=torch.bool))

    scores = RewardSuite({"a": (Brightness(fail=fail), 1.0)}).score(batch())
    assert scores.unscored() == {"a": 1}
    assert scores.reasons[0] == (None, "the score is nan", None, None)


def test_wrong_number_of_scores_is_reported():
    suite = RewardSuite({"a": (Brightness(fail=lambda clips, score: score.repeat(2)), 1.0)})
    scores = suite.score(batch())
    assert scores.unscored() == {"a": 4}
    assert "2 scores for 1 clips" in scores.reasons[0][0]


@pytest.mark.parametrize("value", [None, [1.0, 2.0, 3.0, 4.0], 3.0])
def test_wrong_return_type_is_reported(value):
    class Odd(Brightness):
        def score(self, clips):
            return value

    scores = RewardSuite({"a": (Odd(), 1.0)}).score(batch())
    assert scores.unscored() == {"a": 4}
    assert "wrong type" in scores.reasons[0][0]


def test_broken_clips_never_reach_a_reward():
    clips = batch()
    clips.video[1] = math.nan
    clips.video[2] = 7.0
    reward = Brightness()
    scores = RewardSuite({"a": (reward, 1.0)}).score(clips)
    assert reward.seen == [2]
    assert scores.valid[0].tolist() == [True, False, False, True]
    assert "not finite" in scores.reasons[0][1] and "[0, 1]" in scores.reasons[0][2]
    assert scores.aux["a"]["doubled"].isnan().tolist() == [False, True, True, False]
    torch.testing.assert_close(scores.scores[0, 3], clips.video[3].mean())


def test_a_batch_of_broken_clips_is_unscored():
    clips = batch(2)
    clips.video[:] = math.nan
    reward = Brightness()
    scores = RewardSuite({"a": (reward, 1.0)}).score(clips)
    assert reward.seen == [] and scores.unscored() == {"a": 2}


def test_bad_suites_are_refused():
    with pytest.raises(UserError, match="empty"):
        RewardSuite({})
    with pytest.raises(UserError, match="not a reward"):
        RewardSuite({"a": (lambda clips: 0, 1.0)})
    for weight in (-1.0, math.nan, math.inf):
        with pytest.raises(UserError, match="weight"):
            RewardSuite({"a": (Brightness(), weight)})


def test_registry_lists_the_valid_names():
    with pytest.raises(UserError, match="general, motion_quality, percentile, text_alignment"):
        load_reward("hps")
    for name in REWARDS:
        reward = load_reward(name)
        assert isinstance(reward, Reward) and reward.name == name


def test_suite_fingerprint_is_json_and_sees_weights():
    first = load_suite({"general": 1.0, "percentile": 1.0}).fingerprint()
    second = load_suite({"general": 1.0, "percentile": 0.5}).fingerprint()
    assert json.loads(json.dumps(first)) == first
    assert first != second and first["general"] == second["general"]
