"""Temporal flickering against its definition, written in numpy, and its extremes."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from longtake.core.video import read_video, write_mp4
from longtake.evaluation.vbench.flickering import temporal_flickering
from longtake.runtime.errors import UserError


def write(video: torch.Tensor, folder: Path, *, lossless: bool = True) -> Path:
    return write_mp4(video, folder / "clip.mp4", 8.0, lossless=lossless)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("lossless", [True, False])
def test_equals_the_definition(tmp_path: Path, seed: int, lossless: bool) -> None:
    source = torch.Generator().manual_seed(seed)
    video = torch.randint(0, 256, (7, 3, 24, 40), generator=source).to(torch.uint8)
    path = write(video, tmp_path, lossless=lossless)
    frames = read_video(path)[0].numpy().astype(np.float64)
    per_pair = [np.abs(b - a).mean() for a, b in pairwise(frames)]
    assert temporal_flickering(path) == pytest.approx((255 - np.mean(per_pair)) / 255, abs=1e-12)


def test_a_static_clip_scores_exactly_one(tmp_path: Path) -> None:
    picture = torch.arange(3 * 32 * 32).reshape(1, 3, 32, 32).remainder(256).to(torch.uint8)
    assert temporal_flickering(write(picture.expand(6, -1, -1, -1), tmp_path)) == 1.0
    grey = torch.full((6, 3, 32, 32), 128, dtype=torch.uint8)
    assert temporal_flickering(write(grey, tmp_path, lossless=False)) == 1.0


def test_black_and_white_in_turn_scores_zero(tmp_path: Path) -> None:
    video = torch.zeros(6, 3, 16, 16, dtype=torch.uint8)
    video[1::2] = 255
    assert temporal_flickering(write(video, tmp_path)) == 0.0


def test_one_frame_and_no_video_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one frame"):
        temporal_flickering(write(torch.zeros(1, 3, 16, 16, dtype=torch.uint8), tmp_path))
    with pytest.raises(UserError, match="not found"):
        temporal_flickering(tmp_path / "absent.mp4")
