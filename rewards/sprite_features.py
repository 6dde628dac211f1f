"""Cheap pixel statistics of sprite clips: background, soft foreground, colour masses, tracks.

Everything here works on a grid of about 32 x 32 cells, on soft masks and on moments of these
masks. Nothing is segmented: two sprites of one colour are one mass to these statistics, and a
halo counts as a part of its sprite.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from longtake.rewards.caption_words import COLOURS

GRID = 32
COLOUR_WIDTH = 0.15
"""Width of a colour class in RGB distance; red and orange are 0.40 apart."""
UNKNOWN_DISTANCE = 0.32
"""RGB distance to a palette colour beyond which a pixel counts as no known colour."""


@dataclass(frozen=True)
class ClipView:
    """A batch of clips with its coarse cells and background, each computed at most once.

    Args:
        video: [B, T, C, H, W] in [0, 1].
    """

    video: Tensor

    @cached_property
    def grid(self) -> Tensor:
        """Coarse cells [B, T, C, h, w]."""
        return cells(self.video)

    @cached_property
    def background(self) -> Tensor:
        """Background colour of each frame, [B, T, C]."""
        return background_colour(self.grid)

    @cached_property
    def shares(self) -> Tensor:
        """Share of each palette colour in each cell, [B, T, K, h, w]."""
        return colour_shares(self.grid, self.background)

    @cached_property
    def mass(self) -> Tensor:
        """Area of each palette colour as a fraction of the frame, [B, T, K]."""
        return colour_mass(self.shares)


def cells(video: Tensor) -> Tensor:
    """Mean over cells of k x k whole pixels, [B, T, C, H, W] -> [B, T, C, h, w] with h, w ~ 32.

    Clips smaller than the grid keep their size; pixels beyond the last whole cell are dropped.
    """
    size = max(1, min(video.shape[-2:]) // GRID)
    if size == 1:
        return video
    height, width = (length // size * size for length in video.shape[-2:])
    # Strided sums: avg_pool2d takes four times as long on the CPU.
    rows = video[..., 0:height:size, :]
    for offset in range(1, size):
        rows = rows + video[..., offset:height:size, :]
    grid = rows[..., 0:width:size]
    for offset in range(1, size):
        grid = grid + rows[..., offset:width:size]
    return grid / size**2


def background_colour(grid: Tensor) -> Tensor:
    """Median colour of the outermost cells of each frame, [B, T, C, h, w] -> [B, T, C]."""
    top, bottom = grid[..., 0, :], grid[..., -1, :]
    left, right = grid[..., 1:-1, 0], grid[..., 1:-1, -1]
    return torch.cat([top, bottom, left, right], dim=-1).median(dim=-1).values


def distance_to(video: Tensor, colour: Tensor) -> Tensor:
    """Largest channel difference to a colour per frame, [B, T, C, H, W] and [B, T, C] -> BTHW."""
    return (video - colour[..., None, None]).abs().amax(dim=2)


def soft_mask(distance: Tensor, low: float, high: float) -> Tensor:
    """Foreground weight in [0, 1], a linear ramp of the distance to the background."""
    return ((distance - low) / (high - low)).clamp(0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class ColourMoments:
    """Moments of the soft mask of one colour.

    Args:
        mass: [B, T], area as a fraction of the frame.
        box: [B, T, 2], sum of the marginal maxima over (x, y) in frame heights.
        lean: [B, T], centre of mass below the middle of the box, in box heights.
    """

    mass: Tensor
    box: Tensor
    lean: Tensor


def colour_shares(grid: Tensor, background: Tensor) -> Tensor:
    """Split each cell between the K palette colours, the background and no known colour.

    Args:
        grid: [B, T, 3, h, w] in [0, 1].
        background: [B, T, 3].

    Returns:
        [B, T, K, h, w], share of each palette colour, order of ``COLOURS``.
    """
    scale = 1.0 / (2 * COLOUR_WIDTH**2)
    # exp(-|p - c|^2 / 2w^2) up to the factor exp(-|p|^2 / 2w^2), which all classes share, is one
    # product of (r, g, b, |p|^2, 1) with a row per class; "no known colour" keeps the |p|^2.
    palette = torch.tensor(list(COLOURS.values()), device=grid.device)  # [K, 3]
    classes = torch.cat(
        [palette.expand(*background.shape[:2], -1, -1), background[:, :, None]], dim=2
    )  # [B, T, K+1, 3]
    norms = classes.square().sum(-1, keepdim=True)
    rows = torch.cat([2 * classes, torch.zeros_like(norms), -norms], dim=-1)
    unknown = rows.new_tensor([0.0, 0.0, 0.0, 1.0, -(UNKNOWN_DISTANCE**2)])
    rows = torch.cat([rows, unknown.expand(*rows.shape[:2], 1, -1)], dim=2)  # [B, T, K+2, 5]
    pixels = grid.flatten(-2)  # [B, T, 3, h*w]
    squares = pixels.square().sum(2, keepdim=True)
    pixels = torch.cat([pixels, squares, torch.ones_like(squares)], dim=2)
    shares = ((scale * rows) @ pixels).softmax(dim=2)[:, :, : len(palette)]
    return shares.reshape(*shares.shape[:3], *grid.shape[-2:])


def colour_mass(shares: Tensor) -> Tensor:
    """Area of each colour as a fraction of the frame, [B, T, K, h, w] -> [B, T, K].

    Squared shares: a blend of two colours at a rim looks like a third one, but only weakly.
    """
    return shares.square().mean((-2, -1))


def colour_track(share: Tensor) -> Tensor:
    """Centre of mass (x, y) of one colour in frame heights, [B, T, h, w] -> [B, T, 2].

    Without any mass the centre is (0, 0): weight tracks by the mass.
    """
    x, y = _axes(share)
    firm = share.square()
    columns, rows = firm.sum(-2), firm.sum(-1)
    total = columns.sum(-1, keepdim=True) + 1e-3
    return torch.stack([columns @ x, rows @ y], dim=-1) / total


def colour_moments(share: Tensor) -> ColourMoments:
    """Moments of the mask of one colour, [B, T, h, w]."""
    height, width = share.shape[-2:]
    y = _axes(share)[1]
    firm = share.square()
    rows = firm.sum(-1)
    total = rows.sum(-1)
    centre = (rows @ y) / (total + 1e-3)
    column_peak, row_peak = firm.amax(-2), firm.amax(-1)
    box = torch.stack([column_peak.sum(-1), row_peak.sum(-1)], dim=-1) / height
    middle = (row_peak @ y) / (row_peak.sum(-1) + 1e-3)
    lean = (centre - middle) / (box[..., 1] + 1 / height)
    return ColourMoments(mass=total / (height * width), box=box, lean=lean)


def _axes(share: Tensor) -> tuple[Tensor, Tensor]:
    """Cell centres along x [w] and y [h] in frame heights."""
    height, width = share.shape[-2:]
    x = (torch.arange(width, device=share.device) + 0.5) / height
    y = (torch.arange(height, device=share.device) + 0.5) / height
    return x, y
