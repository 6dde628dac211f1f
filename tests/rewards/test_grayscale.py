"""Grayscale formulas against exact rational arithmetic and PIL-like integer references."""

from fractions import Fraction

import pytest
import torch

from longtake.rewards.grayscale import GRAY_MODES, to_grayscale
from longtake.runtime.errors import UserError


def levels():
    """Colours as [1, 1, 3, H, W] uint8: corners, ties and random ones."""
    corners = [[r, g, b] for r in (0, 1, 255) for g in (0, 1, 255) for b in (0, 1, 255)]
    ties = [[0, 0, 250], [0, 250, 250], [500 % 256, 0, 0], [10, 20, 30]]
    random = torch.randint(0, 256, (400, 3), generator=torch.Generator().manual_seed(0)).tolist()
    colours = torch.tensor(corners + ties + random, dtype=torch.uint8)
    return colours.T.reshape(1, 1, 3, 1, -1)


def exact(mode, red, green, blue):
    luma = (299 * red + 587 * green + 114 * blue) * Fraction(1, 1000)
    if mode == "bt601_trunc":
        return int(luma)
    if mode == "mean":
        luma = Fraction(red + green + blue, 3)
    return int(luma + Fraction(1, 2))


@pytest.mark.parametrize("mode", GRAY_MODES)
def test_uint8_is_exact(mode):
    video = levels()
    gray = to_grayscale(video, mode)
    assert gray.dtype == torch.uint8 and gray.shape == video.shape
    wanted = [exact(mode, *colour) for colour in video[0, 0, :, 0].T.tolist()]
    for channel in range(3):
        assert gray[0, 0, channel, 0].tolist() == wanted


@pytest.mark.parametrize("mode", GRAY_MODES)
def test_float_copy_gives_the_same_gray(mode):
    video = levels()
    gray = to_grayscale(video.float() / 255, mode)
    assert gray.dtype == torch.float32
    assert torch.equal(gray, to_grayscale(video, mode).float() / 255)


@pytest.mark.parametrize("mode", GRAY_MODES)
def test_gray_and_white_are_fixed_points(mode):
    ramp = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    assert torch.equal(to_grayscale(ramp, mode), ramp)


def test_unrounded_floats_match_the_formula():
    video = torch.rand(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    luma = torch.einsum("c,btchw->bthw", weights, video.double()) * 255
    gray = to_grayscale(video)
    assert (gray[:, :, 0] * 255 - luma).abs().max() < 0.501
    assert torch.equal(gray[:, :, 0], gray[:, :, 2])


def test_out_of_range_floats_are_clamped():
    video = torch.tensor([-0.5, 1.5]).expand(3, 1, 2)
    assert to_grayscale(video)[0, 0].tolist() == [0.0, 1.0]


def test_wrong_input_is_refused():
    with pytest.raises(UserError, match="bt601_trunc"):
        to_grayscale(levels(), "luma")
    with pytest.raises(UserError, match="shape"):
        to_grayscale(torch.zeros(2, 3, 4, 8, 8).transpose(1, 2)[:, :, :1])
