"""Still pictures of scenes at any size and aspect, in three drawing styles.

Reference images for image-to-video tests: the same scene grammar as the clips, at picture sizes.
Only additions, products, quotients and square roots are used, so two machines draw the same picture
but for a level here and there, where one of them rounds a product and a sum at once.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from longtake.core.video import to_uint8
from longtake.sandbox.facts import BACKGROUNDS, COLOURS, FRAME_PX
from longtake.sandbox.render import signed_distance
from longtake.sandbox.scene import REACH, Scene, Sprite

# A coarse picture is drawn at 1/4 of its width and height, so that edges show steps.
COARSE = 4

_INK = 0.08  # brightness of the outline of the flat style
_OUTLINE, _STROKE, _HATCH = 0.14, 0.09, 0.30  # outline, line, distance of hatches; in radii
_SHADOW_SHIFT = (0.30, 0.38)  # shadow of the solid style to the lower right, in radii
_SHADOW_BLUR, _SHADOW_DEPTH = 0.45, 0.55
_GLINT = (-0.30, -0.34, 0.22)  # centre and radius of its highlight, in radii

Shading = Callable[[Sprite, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def draw_still(scene: Scene, width: int, height: int, style: str, coarse: bool = False) -> Tensor:
    """The first frame of a scene in one of ``STYLES``, uint8 [3, height, width].

    Sprites keep their size relative to the shorter side and their place relative to both sides, so
    that what a caption says about "left" or "top" holds at every aspect. A coarse picture is drawn
    at a quarter of the size, each pixel repeated 4 x 4 times.
    """
    if coarse:
        assert width % COARSE == height % COARSE == 0, (width, height)
        small = draw_still(scene, width // COARSE, height // COARSE, style)
        return small.repeat_interleave(COARSE, -1).repeat_interleave(COARSE, -2)
    picture = torch.tensor(BACKGROUNDS[scene.background])[:, None, None].repeat(1, height, width)
    for sprite in scene.sprites:
        _paint(picture, sprite, STYLES[style])
    return to_uint8(picture)


def _paint(picture: Tensor, sprite: Sprite, shading: Shading) -> None:
    """Blend one sprite into [3, H, W], in place, within a window that holds its shadow too."""
    height, width = picture.shape[1:]
    scale = min(width, height) / FRAME_PX
    radius = torch.tensor(sprite.radius_px * scale)
    column, row = sprite.centres(1)[0]
    centre_x, centre_y = column / FRAME_PX * width, row / FRAME_PX * height
    reach = (REACH[sprite.shape] + max(_SHADOW_SHIFT) + _SHADOW_BLUR) * float(radius)
    left, right = (_clamp(centre_x + side * reach, width) for side in (-1, 1))
    top, bottom = (_clamp(centre_y + side * reach, height) for side in (-1, 1))
    x = (torch.arange(left, right) + 0.5 - centre_x)[None, :]
    y = (torch.arange(top, bottom) + 0.5 - centre_y)[:, None]
    colour, alpha = shading(sprite, x, y, radius)  # [3, h, w] or [3, 1, 1]; [h, w]
    window = picture[:, top:bottom, left:right]
    window += alpha * (colour - window)


def _clamp(position: float, side: int) -> int:
    return min(max(round(position), 0), side)


def _flat(sprite: Sprite, x: Tensor, y: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Plain colour inside a dark outline."""
    distance = signed_distance(sprite.shape, x, y, radius)
    inner = _coverage(distance + _OUTLINE * radius)
    colour = _INK + inner * (_colour(sprite) - _INK)
    return colour, _coverage(distance)


def _solid(sprite: Sprite, x: Tensor, y: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """A rounded body lit from the upper left, with a soft shadow."""
    distance = signed_distance(sprite.shape, x, y, radius)
    shift_x, shift_y = (shift * radius for shift in _SHADOW_SHIFT)
    beneath = signed_distance(sprite.shape, x - shift_x, y - shift_y, radius)
    shadow = (1 - beneath / (_SHADOW_BLUR * radius)).clamp(0, 1) * _SHADOW_DEPTH
    body = _coverage(distance)
    depth = (-distance / (0.6 * radius)).clamp(0, 1)
    dome = (1 - (1 - depth) * (1 - depth)).sqrt()
    light = (0.40 + 0.60 * dome - 0.12 * (x + y) / radius).clamp(0.15, 1)
    glint_x, glint_y, glint_radius = (part * radius for part in _GLINT)
    dx, dy = x - glint_x, y - glint_y
    glint = (1 - (dx * dx + dy * dy).sqrt() / glint_radius).clamp(0, 1) * 0.7
    lit = _colour(sprite) * light
    lit = lit + glint * (1 - lit)
    alpha = body + (1 - body) * shadow
    # The shadow is black; dividing gives the colour whose one blend equals shadow, then body.
    return lit * body / alpha.clamp(min=1e-6), alpha


def _sketch(sprite: Sprite, x: Tensor, y: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """A coloured line around diagonal hatches."""
    distance = signed_distance(sprite.shape, x, y, radius)
    half = _STROKE * radius / 2
    line = _coverage((distance + half).abs() - half)
    period = _HATCH * radius
    phase = (x + y) / period
    wave = (phase - phase.floor() - 0.5).abs()  # 0.5 on a hatch, 0 between two
    hatch = ((wave - 0.38) * period / math.sqrt(2) + 0.5).clamp(0, 1)
    return _colour(sprite), torch.maximum(line, hatch * _coverage(distance))


# Drawing styles by their name in the image manifest.
STYLES: dict[str, Shading] = {"2d_animation": _flat, "3d_animation": _solid, "sketch": _sketch}


def _coverage(distance: Tensor) -> Tensor:
    """Share of a pixel inside an outline at this signed distance (px)."""
    return (0.5 - distance).clamp(0, 1)


def _colour(sprite: Sprite) -> Tensor:
    return torch.tensor(COLOURS[sprite.colour])[:, None, None]
