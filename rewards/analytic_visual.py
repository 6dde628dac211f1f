"""Per-frame terms of the ``general`` and ``percentile`` rewards.

``quality_terms`` never sees the caption; ``caption_terms`` compares each frame with the words. Both
return [B, T] per term, in about [0, 1], higher is better.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from longtake.rewards.caption_words import BACKGROUNDS, COLOURS, CaptionWords, SpriteWords
from longtake.rewards.sprite_features import (
    ClipView,
    ColourMoments,
    colour_mass,
    colour_moments,
    colour_shares,
    distance_to,
    soft_mask,
)

NEUTRAL = 0.5
"""Value of a term about which the caption says nothing."""

SPRITE_MASS = {"small": 0.023, "large": 0.060}
"""Colour mass of a sprite as a fraction of the frame, mean over shapes and colours of clean clips
(``colour_mass`` counts rims less than half, so this is below the true area)."""
MASS_TOLERANCE = 0.25
"""Natural log of the mass ratio that is free: shapes of one size differ by that much."""

SHAPE_BOX_FILL = {"circle": 0.97, "square": 1.21, "triangle": 0.70, "cross": 0.72}
"""Colour mass over soft box on clean clips. Soft boxes are smaller than true ones."""

SHAPE_LEAN = {"circle": 0.0, "square": 0.0, "triangle": 0.155, "cross": 0.0}
"""Centre of mass below the middle of the box, in box heights, on clean clips."""


def quality_terms(view: ClipView, fps: Tensor, words: Sequence[CaptionWords]) -> dict[str, Tensor]:
    """Caption-free frame quality.

    Terms: ``sharp``, ``firm``, ``palette``, ``chroma``, ``quiet``, ``full``.

    Args:
        view: colour clips.
        fps: not used; the terms are per frame.
        words: not used.
    """
    grid, background = view.grid, view.background
    distance = distance_to(view.video, background)  # [B, T, H, W]
    mask = soft_mask(distance, 0.08, 0.25)
    num_pixels = mask.shape[-2] * mask.shape[-1]
    covered = mask.sum((-2, -1))
    seen = (mask * distance).sum((-2, -1))
    area = covered / num_pixels

    # A step of contrast c spread over w pixels has slopes c / w: sum of squares over sum times
    # contrast is 1 / w, whatever the outline is.
    slope_x = distance[..., 1:] - distance[..., :-1]
    slope_y = distance[..., 1:, :] - distance[..., :-1, :]
    slopes = slope_x.abs().sum((-2, -1)) + slope_y.abs().sum((-2, -1))
    squares = _energy(slope_x) + _energy(slope_y)
    contrast = seen / (covered + 1.0)
    sharp = squares / (slopes * contrast + 1.0)

    halo = (covered - _energy(mask)) / num_pixels  # mean of m (1 - m)
    firm = 1 - (4 * halo / (area + 0.01)).clamp(max=1.0)
    unrest = (distance.sum((-2, -1)) - seen) / (num_pixels - covered + 1.0)
    quiet = (-unrest / 0.03).exp()

    # Colours vary slowly inside a sprite: one cell of four gives the same shares.
    sparse = grid[..., ::2, ::2]
    sparse_mask = soft_mask(distance_to(sparse, background), 0.08, 0.25)
    sparse_area = sparse_mask.mean((-2, -1)) + 0.005
    mass = colour_mass(colour_shares(sparse, background)).sum(-1)
    palette = (mass / sparse_area).clamp(max=1.0)
    saturation = sparse.amax(2) - sparse.amin(2)
    chroma = (sparse_mask * saturation).mean((-2, -1)) / sparse_area
    full = (area / 0.03).tanh()
    return {
        "sharp": sharp, "firm": firm, "palette": palette, "chroma": chroma, "quiet": quiet,
        "full": full,
    }  # fmt: skip


def caption_terms(view: ClipView, fps: Tensor, words: Sequence[CaptionWords]) -> dict[str, Tensor]:
    """Match of each frame with the caption.

    Terms: ``colours``, ``area``, ``count``, ``outline``, ``background``, and the caption-free
    ``palette``.

    Args:
        view: colour clips.
        fps: not used; the terms are per frame.
        words: B read captions. Terms without words are neutral.
    """
    coarse_mask = soft_mask(distance_to(view.grid, view.background), 0.08, 0.25)
    palette = (view.mass.sum(-1) / (coarse_mask.mean((-2, -1)) + 0.005)).clamp(max=1.0)
    rows = [
        _caption_row(view.shares[index], view.mass[index], view.background[index], caption)
        for index, caption in enumerate(words)
    ]
    terms = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
    return {**terms, "palette": palette}


def background_match(background: Tensor, name: str | None) -> Tensor:
    """Closeness in (0, 1] of frame backgrounds [T, 3] to a background word; neutral without one."""
    if name is None:
        return torch.full_like(background[:, 0], NEUTRAL)
    wanted = torch.tensor(BACKGROUNDS[name], device=background.device)
    return (-(background - wanted).square().sum(-1) / (2 * 0.15**2)).exp()


def area_match(mass: Tensor, size: str | None) -> Tensor:
    """Closeness in (0, 1] of a colour mass to the area of a sprite size; best size without one."""
    wanted = [SPRITE_MASS[size]] if size else list(SPRITE_MASS.values())
    ratios = [((mass + 0.003) / (area + 0.003)).log().abs() for area in wanted]
    off = (torch.stack(ratios).amin(0) - MASS_TOLERANCE).clamp(min=0.0)
    return (-off / 0.5).exp()


def _energy(values: Tensor) -> Tensor:
    """Sum of squares over rows and columns, [..., H, W] -> [...]."""
    return values.square().sum((-2, -1))


def _caption_row(
    shares: Tensor, mass: Tensor, background: Tensor, caption: CaptionWords
) -> dict[str, Tensor]:
    """Terms [T] of one clip: shares [T, K, h, w], mass [T, K], background [T, 3]."""
    names = list(COLOURS)
    coloured = [sprite for sprite in caption.sprites if sprite.colour is not None]
    neutral = torch.full_like(mass[:, 0], NEUTRAL)
    row = dict.fromkeys(("colours", "area", "count", "outline"), neutral)
    row["background"] = background_match(background, caption.background)
    if not coloured:
        return row
    # Bare histograms: a frame with little colour keeps most of its weight on "nothing there".
    found = mass / (mass.sum(-1, keepdim=True) + 0.006)
    wanted = torch.zeros_like(mass[0])
    for sprite in coloured:
        assert sprite.colour is not None
        area = SPRITE_MASS[sprite.size] if sprite.size else sum(SPRITE_MASS.values()) / 2
        wanted[names.index(sprite.colour)] += area
    row["colours"] = torch.minimum(found, wanted / wanted.sum()).sum(-1)
    entropy = -(found * (found + 1e-6).log()).sum(-1)
    row["count"] = (-(entropy - _log_count(coloured)).abs() / 0.5).exp()
    columns = [(sprite, names.index(sprite.colour or "")) for sprite in coloured]
    areas = [area_match(mass[:, k], sprite.size) for sprite, k in columns]
    row["area"] = torch.stack(areas).mean(0)
    outlines = [
        _outline_match(colour_moments(shares[None, :, k]), sprite.shape)
        for sprite, k in columns
        if sprite.shape
    ]
    if outlines:
        row["outline"] = torch.stack(outlines).mean(0)
    return row


def _log_count(sprites: Sequence[SpriteWords]) -> float:
    return float(torch.tensor(float(len({sprite.colour for sprite in sprites}))).log())


def _outline_match(moments: ColourMoments, shape: str) -> Tensor:
    """Rough shape agreement [T]: how full the box is and how low the centre of mass lies."""
    mass, lean = moments.mass[0], moments.lean[0]
    fill = mass / (moments.box[0].prod(-1) + 1e-3)
    off = ((fill - SHAPE_BOX_FILL[shape]) / 0.12).square()
    off = off + ((lean - SHAPE_LEAN[shape]) / 0.06).square()
    # A heavy-tailed score keeps a slope for shapes that are far off; without mass there is none.
    return (mass / (mass + 0.005)) / (1 + off)
