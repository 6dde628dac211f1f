"""Recolouring at constant luma, and how rewards that do or do not see colour move under it."""

import colorsys
import math

import numpy as np
import pytest
import torch

from longtake.rewards.contract import VideoBatch, scores_of
from longtake.runtime.errors import UserError
from longtake.sandbox.colour_sensitivity import colour_sensitivity, recolour
from longtake.sandbox.corruptions import LUMA


def clips(seed: int, count: int = 6, low: float = 0.35, high: float = 0.65) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(count, 5, 3, 8, 8, generator=draw)


def luma(video: torch.Tensor) -> torch.Tensor:
    return torch.einsum("...chw,c->...hw", video, torch.tensor(LUMA))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("hue", "saturation"), [(30, 1), (-120, 1), (0, 0.4), (70, 1.3), (0, 0)])
def test_luma_stays_and_chroma_turns_and_scales(seed, hue, saturation):
    video = clips(seed)
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


def test_a_half_turn_gives_the_opposite_hue():
    pixel = torch.tensor([0.6, 0.45, 0.4]).view(3, 1, 1)
    red, green, blue = recolour(pixel, hue_degrees=180.0).flatten().tolist()
    before = colorsys.rgb_to_hsv(0.6, 0.45, 0.4)[0]
    after = colorsys.rgb_to_hsv(red, green, blue)[0]
    assert abs((after - before) % 1 - 0.5) < 0.05


def test_nothing_changes_nothing_and_bytes_stay_bytes():
    video = (clips(3) * 255).round().to(torch.uint8)
    assert torch.equal(recolour(video), video)
    gray = recolour(video, saturation=0.0)
    assert gray.dtype == torch.uint8
    assert (gray.amax(2).int() - gray.amin(2).int()).max() <= 1
    wild = recolour(clips(4, low=0.0, high=1.0), saturation=5.0)
    assert wild.min() >= 0 and wild.max() <= 1


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
