"""Frames to the vision patches of a Qwen2-VL reward: size, resize, normalisation, patch order.

The public scorers resize 8-bit frames on the CPU, one image at a time. Here the same numbers are
computed on the device of the frames, for all frames at once. Two resamplers exist because the two
public models were trained with different ones:

- ``pil`` (HPSv3): Pillow's bicubic filter. Weights are fixed-point with 22 bits; the width is
  resized first, and both passes round and clamp to 8 bits. Equal on every pixel to Pillow 12 and
  older. Pillow 13 resizes the height first when it shrinks much more than the width, which none of
  the published scores did.
- ``torch`` (VideoAlign): torch's antialiased bicubic filter in float32, which torchvision calls for
  8-bit tensors, clamped and rounded once at the end.

The filters are the same (a = -0.5, support widened by the scale when shrinking), so the results
differ by rounding, at most one level on 3 to 20 % of the pixels, and by the clamp of overshoot
after the first pass, which matters at hard black-white edges only (24 levels on white noise).
"""

import functools
import math
from typing import Literal, Self

import torch
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor
from torch.nn.functional import interpolate

from longtake.rewards.frames import FRAME_PAIR
from longtake.runtime.config import Config
from longtake.runtime.errors import UserError

Resample = Literal["pil", "torch"]
Grid = tuple[int, int, int]
"""Patches along time, height and width."""

PATCH, MERGE = 14, 2
"""Side of a vision patch in pixels; patches per side that the merger turns into one token."""
MAX_ASPECT_RATIO = 200
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_PIL_WEIGHT_STEPS = 1 << 22
_PIXELS_PER_CHUNK = 1 << 24  # values in flight; float64 makes 128 MiB of them


class PixelConfig(Config):
    """How frames become patches; part of a reward's ``reward.json``."""

    min_pixels: int = Field(ge=(PATCH * MERGE) ** 2)
    """Bounds of the area of a resized frame, in pixels."""
    max_pixels: int = Field(ge=(PATCH * MERGE) ** 2)
    resample: Resample
    mean: tuple[float, float, float] = CLIP_MEAN
    """Of channels in [0, 1]."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = CLIP_STD

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_pixels > self.max_pixels:
            raise ValueError("min_pixels <= max_pixels")
        return self


_MOST = 256 * (PATCH * MERGE) ** 2
# As published: one area, about 256 tokens per frame; 128 to 256 tokens per pair of frames.
HPSV3_PIXELS = PixelConfig(min_pixels=_MOST, max_pixels=_MOST, resample="pil")
VIDEOALIGN_PIXELS = PixelConfig(min_pixels=_MOST // 2, max_pixels=_MOST, resample="torch")


def resized_size(height: int, width: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Height and width, both multiples of 28, of a frame after the resize.

    The sides are first rounded to a multiple of 28 (half to even). If that area is out of bounds,
    both sides are scaled by one factor to the bound and rounded towards the inside of it.
    """
    side = PATCH * MERGE
    if min(height, width) < 1 or max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise UserError(
            "frame size cannot be used",
            received=f"{height}x{width}",
            expected=f"sides >= 1 with a ratio of at most {MAX_ASPECT_RATIO}",
        )
    rows, columns = (max(side, round(x / side) * side) for x in (height, width))
    if rows * columns > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows, columns = (max(side, math.floor(x / shrink / side) * side) for x in (height, width))
    elif rows * columns < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows, columns = (math.ceil(x * grow / side) * side for x in (height, width))
    return rows, columns


def resize(frames: Tensor, size: tuple[int, int], resample: Resample) -> Tensor:
    """Frames uint8 [..., 3, H, W] at another size, by one of the two public resamplers."""
    assert frames.dtype == torch.uint8
    if frames.shape[-2:] == size:
        return frames
    flat = frames.reshape(-1, *frames.shape[-3:])
    one = _pil_bicubic if resample == "pil" else _torch_bicubic
    per_frame = flat[0].numel() + flat.shape[1] * size[0] * size[1]
    chunks = flat.split(max(1, _PIXELS_PER_CHUNK // per_frame))
    resized = torch.cat([one(chunk, size) for chunk in chunks])
    return resized.reshape(*frames.shape[:-2], *size)


def _pil_bicubic(frames: Tensor, size: tuple[int, int]) -> Tensor:
    # Weights are multiples of 2^-22 and pixels are whole, so float64 holds every sum exactly, in
    # any order of summation: all devices give Pillow's integers.
    rows, columns = (
        bicubic_weights(source, target).to(frames.device)
        for source, target in zip(frames.shape[-2:], size, strict=True)
    )
    horizontal = _to_levels(frames.to(torch.float64) @ columns.T)
    return _to_levels(rows @ horizontal).to(torch.uint8)


def _to_levels(x: Tensor) -> Tensor:
    return (x + 0.5).floor_().clamp_(0, 255)


def _torch_bicubic(frames: Tensor, size: tuple[int, int]) -> Tensor:
    wide = interpolate(
        frames.to(torch.float32), size=size, mode="bicubic", align_corners=False, antialias=True
    )
    return wide.clamp_(0, 255).round_().to(torch.uint8)


@functools.lru_cache(maxsize=64)
def bicubic_weights(source: int, target: int) -> Tensor:
    """Pillow's bicubic weights of one axis, float64 [target, source] on the CPU.

    Row i holds the Keys filter (a = -0.5) around the centre (i + 1/2) * source / target, stretched
    by the scale when shrinking and normalised to sum 1, each weight rounded to a multiple of 2^-22.
    """
    scale = source / target
    stretch = max(scale, 1.0)
    centres = (torch.arange(target, dtype=torch.float64) + 0.5) * scale
    pixels = torch.arange(source, dtype=torch.float64) + 0.5
    weights = _keys_filter((pixels - centres[:, None]) / stretch)
    weights = weights / weights.sum(1, keepdim=True)
    return (weights * _PIL_WEIGHT_STEPS).round() / _PIL_WEIGHT_STEPS


def _keys_filter(x: Tensor) -> Tensor:
    """Cubic convolution kernel with a = -0.5 (Keys 1981, Eq. 4); zero from distance 2 on."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def normalize(frames: Tensor, config: PixelConfig) -> Tensor:
    """Channels of uint8 frames [..., 3, H, W] as (x / 255 - mean) / std in float32."""
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=frames.device).view(3, 1, 1)
        for values in (config.mean, config.std)
    )
    # In place: three more tensors of this size cost more than the arithmetic.
    return frames.to(torch.float32, copy=True).div_(255.0).sub_(mean).div_(std)


def normalize_patches(patches: Tensor, config: PixelConfig) -> Tensor:
    """Rows of :func:`patchify` of uint8 frames, uint8 [..., 1176], as :func:`normalize` would."""
    channels = patches.unflatten(-1, (3, FRAME_PAIR * PATCH, PATCH))
    return normalize(channels, config).flatten(-3)


def patchify(frames: Tensor) -> Tensor:
    """Cut clips into the patch rows of Qwen2-VL.

    Rows go by frame pair, then over 2x2 groups of patches (the ones that the merger joins), and
    within a group row by row. A row holds channel, frame of the pair, y, x.
    Clips [..., T, 3, H, W] (H, W multiples of 28; T even, or 1: a still image fills both frames of
    its pair) become [..., T/2 * H/14 * W/14, 1176].
    """
    *batch, num_frames, channels, height, width = frames.shape
    side = PATCH * MERGE
    if num_frames == 1:
        frames = frames.expand(*batch, FRAME_PAIR, channels, height, width)
        num_frames = FRAME_PAIR
    pairs, rows, columns = num_frames // FRAME_PAIR, height // side, width // side
    x = frames.reshape(-1, pairs, FRAME_PAIR, channels, rows, MERGE, PATCH, columns, MERGE, PATCH)
    x = x.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9)  # b, pair, group y, x, patch y, x, c, t, y, x
    per_clip = pairs * rows * columns * MERGE * MERGE
    return x.reshape(*batch, per_clip, channels * FRAME_PAIR * PATCH * PATCH)


def patch_grid(num_frames: int, height: int, width: int, config: PixelConfig) -> Grid:
    """Patches along time, height and width of a clip of this size, before it is resized."""
    rows, columns = resized_size(height, width, config.min_pixels, config.max_pixels)
    return max(1, num_frames // FRAME_PAIR), rows // PATCH, columns // PATCH


def num_tokens(grid: Grid) -> int:
    """Tokens that a clip with this grid takes in the prompt: the merger makes one of four."""
    return math.prod(grid) // MERGE**2


def clip_patches(frames: Tensor, config: PixelConfig) -> tuple[Tensor, Grid]:
    """Patches [..., t h w, 1176] float32 of uint8 clips [..., T, 3, H, W], and their grid."""
    num_frames, _, height, width = frames.shape[-4:]
    grid = patch_grid(num_frames, height, width, config)
    resized = resize(frames, (grid[1] * PATCH, grid[2] * PATCH), config.resample)
    return patchify(normalize(resized, config)), grid
