"""Recolouring at constant luma, and how rewards that do or do not see colour move under it."""

import math

import numpy as np
import pytest
import torch

from longtake.rewards.contract import VideoBatch, scores_of
from longtake.runtime.errors import UserError
from longtake.sandbox.colour_sensitivity import colour_sensitivity, recolour
from longtake.sandbox.corruptions import LUMA


def clips(seed, count=6, low=0.35, high=0.65):
    draw = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(count, 5, 3, 8, 8, generator=draw)


def luma(video):
    return torch.einsum("...chw,c->...hw", video, torch.tensor(LUMA))


@pytest.mark.parametrize(("hue", "saturation"), [(30, 1), (-120, 1), (0, 0.4), (70, 1.3), (0, 0)])
def test_luma_stays_and_chroma_turns_and_scales(hue, saturation):
    video = clips(0)
    changed = recolour(video, hue_degrees=hue, saturation=saturation)
    torch.testing.assert_close(luma(changed), luma(video), atol=1e-6, rtol=0)

    # The same in complex numbers: chroma times saturation * exp(i * hue).
    def chroma(v):
        y = luma(v)
        blue, red = v[..., 2, :, :] - y, v[..., 0, :, :] - y
        return torch.complex(blue / (2 * (1 - LUMA[2])), red / (2 * (1 - LUMA[0])))

    turn = complex(
        saturation * math.cos(math.radians(hue)), saturation * math.sin(math.radians(hue))
    )
    torch.testing.assert_close(chroma(changed), chroma(video) * turn, atol=1e-6, rtol=0)


class Mean:
    """Scores a clip by the mean of one linear function of its pixels."""

    needs_prompt, needs_time = False, False

    def __init__(self, weights, broken=()):
        self.name, self.weights, self.broken = "mean", torch.tensor(weights), broken

    def score(self, batch):
        values = torch.einsum("btchw,c->b", batch.float_video(), self.weights) / 320
        for row in self.broken:
            values[row] = math.nan
        return scores_of(values)


def batches(*seeds):
    return [VideoBatch(video=clips(seed), prompts=["x"] * 6, fps=8.0) for seed in seeds]


def test_a_reward_of_luma_does_not_move_and_one_of_red_does():
    rewards = {"luma": Mean(LUMA), "red": Mean((1.0, 0.0, 0.0))}
    found = {(row.reward, row.change): row for row in colour_sensitivity(rewards, batches(0, 1))}
    assert set(found) == {(r, c) for r in rewards for c in ("hue", "saturation")}
    for change in ("hue", "saturation"):
        assert found["luma", change].mean < 1e-4
        row = found["red", change]
        assert row.mean > 0.1 and row.ci_low <= row.mean <= row.ci_high and row.clips == 12


def test_the_mean_is_the_change_in_standard_deviations():
    data = batches(5)
    reward = Mean((1.0, 0.0, 0.0))
    plain = np.array([float(score) for score in reward.score(data[0])])
    half = VideoBatch(video=recolour(data[0].video, saturation=0.5), prompts=["x"] * 6, fps=8.0)
    moved = np.array([float(score) for score in reward.score(half)]) - plain
    wanted = np.abs(moved).mean() / plain.std()
    (row,) = [
        row
        for row in colour_sensitivity({"red": reward}, data, hues=(10.0,), saturations=(0.5,))
        if row.change == "saturation"
    ]
    assert row.mean == pytest.approx(float(wanted), rel=1e-5)


def test_unscored_clips_are_left_out_and_counted():
    rows = colour_sensitivity({"red": Mean((1.0, 0.0, 0.0), broken=(2,))}, batches(6))
    assert all((row.clips, row.unscored) == (5, 1) for row in rows)
    with pytest.raises(UserError, match="no scale"):
        colour_sensitivity({"none": Mean((0.0, 0.0, 0.0))}, batches(6))
