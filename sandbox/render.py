"""Renderer: scenes to pixels by signed distance fields with one pixel of anti-aliasing.

The distance is evaluated only in a square window around each sprite, with one formula per shape;
everything else is a background fill. Centres are computed per scene in float64, and the remaining
operations are exactly rounded per element, so a clip does not depend on its batch.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from longtake.sandbox.facts import BACKGROUNDS, COLOURS, FRAME_PX, NUM_FRAMES
from longtake.sandbox.scene import REACH, Scene, Sprite

RIM_PX = 2.0  # half a pixel of anti-aliasing, and the rounding of the window to whole pixels

# Proportions in units of the radius; areas then agree within 20 % between shapes.
SQUARE_HALF = 0.87
TRIANGLE_INRADIUS = 0.65
CROSS_HALF, CROSS_ARM = 1.05, 0.40


def render(
    scenes: Sequence[Scene],
    num_frames: int = NUM_FRAMES,
    size: int = FRAME_PX,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.uint8,
) -> Tensor:
    """The first T frames of B scenes, [B, T, 3, size, size].

    64 px are native, other sizes rescale the scene. Floats are exactly the uint8 values / 255.
    """
    assert 1 <= num_frames <= NUM_FRAMES, num_frames  # after frame 17 a path may leave the frame
    fills = torch.tensor([BACKGROUNDS[scene.background] for scene in scenes]).mul(255).round()
    # Rounded to 8 bit before sprites are blended in, so a background is one exact colour.
    video = fills.to(torch.uint8).to(device)[:, None, :, None, None]
    video = video.expand(-1, num_frames, -1, size, size).contiguous()  # [B, T, 3, H, W]
    for slot in (0, 1):
        groups: dict[tuple[str, str], list[int]] = {}
        for row, scene in enumerate(scenes):
            if slot < len(scene.sprites):
                sprite = scene.sprites[slot]
                groups.setdefault((sprite.shape, sprite.size), []).append(row)
        for (shape, _), owners in groups.items():
            _paint(video, owners, [scenes[row].sprites[slot] for row in owners], shape)
    return video if dtype == torch.uint8 else video.to(dtype) / 255


def _paint(video: Tensor, owners: list[int], sprites: list[Sprite], shape: str) -> None:
    """Blend N sprites of one shape and size into their clips, in place."""
    num_frames, size = video.shape[1], video.shape[-1]
    device, scale = video.device, size / FRAME_PX
    radius_px = sprites[0].radius_px * scale
    window = min(size, 2 * math.ceil(REACH[shape] * radius_px + RIM_PX))
    centres = torch.tensor([s.centres(num_frames) for s in sprites], dtype=torch.float64) * scale
    corner = (centres - window / 2).round().clamp(0, size - window)  # [N, T, 2]
    offset = (centres - corner).to(torch.float32).to(device)
    corner = corner.to(torch.int64).to(device)
    ramp = torch.arange(window, device=device)

    x = (ramp + 0.5) - offset[..., 0, None]  # [N, T, W]
    y = (ramp + 0.5) - offset[..., 1, None]
    radius = torch.tensor(radius_px, device=device)
    distance = signed_distance(shape, x[:, :, None, :], y[:, :, :, None], radius)
    alpha = (0.5 - distance).clamp(0, 1).flatten(1)  # [N, T*W*W]

    # Addresses of the windows in the flat video; every one occurs once, so writes cannot race.
    clip = torch.tensor(owners, device=device)[:, None]
    plane = (clip * num_frames + torch.arange(num_frames, device=device)) * 3  # [N, T]
    rows = corner[..., 1, None] + ramp + plane[..., None] * size  # [N, T, W]
    columns = corner[..., 0, None] + ramp
    address = (rows[:, :, :, None] * size + columns[:, :, None, :]).flatten()
    pixels = video.view(-1)
    colours = torch.tensor([COLOURS[s.colour] for s in sprites]).mul(255).to(device)
    for channel in range(3):
        target = address + channel * size * size
        below = pixels.index_select(0, target).to(torch.float32).view_as(alpha)
        blended = below + alpha * (colours[:, channel, None] - below)
        pixels.index_copy_(0, target, blended.round().to(torch.uint8).flatten())


def signed_distance(shape: str, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Distance in px from (x, y), relative to the centre, to the outline; negative inside.

    The origin is the centroid of every shape. Outside a corner the polygons use the largest of
    their edge distances, which is smaller than the true distance there by less than the rim.
    """
    if shape == "circle":
        return (x * x + y * y).sqrt() - radius
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - SQUARE_HALF * radius
    if shape == "triangle":  # equilateral, apex up
        slant = x.abs() * 0.8660254 - y * 0.5
        return torch.maximum(slant, y) - TRIANGLE_INRADIUS * radius
    x, y = x.abs(), y.abs()
    across = torch.maximum(x - CROSS_HALF * radius, y - CROSS_ARM * radius)
    along = torch.maximum(y - CROSS_HALF * radius, x - CROSS_ARM * radius)
    return torch.minimum(across, along)
