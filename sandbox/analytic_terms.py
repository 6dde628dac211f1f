"""Cheap pixel terms of one sandbox clip: what the analytic rewards add up.

Everything works on a grid of about 32 x 32 cells, on soft masks and on moments of these masks.
Nothing is segmented: two sprites of one colour are one mass here, and a halo counts as a part of
its sprite. Terms lie in about [0, 1], higher is better. Lengths are in frame heights and speeds in
frame heights per second, so the playback rate matters. T frames, K palette colours, h x w cells.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from longtake.sandbox.facts import (
    BACKGROUNDS,
    COLOURS,
    FPS,
    FRAME_PX,
    SPEEDS,
    Facts,
    SpriteFacts,
)

Terms = dict[str, Tensor]
"""Name -> [T] per frame, or [1] for the clip."""

GRID = 32
COLOUR_WIDTH = 0.15
"""Width of a colour class in RGB distance; red and orange are 0.40 apart."""
UNKNOWN_DISTANCE = 0.32
"""RGB distance to a palette colour beyond which a pixel counts as no known colour."""
NEUTRAL = 0.5
"""Value of a term about which the caption says nothing."""

SPRITE_MASS = {"small": 0.023, "large": 0.060}
"""Colour mass of a sprite as a fraction of the frame, mean over shapes and colours of clean clips
(``ClipView.mass`` counts rims less than half, so this is below the true area)."""
MASS_TOLERANCE = 0.25
"""Natural log of the mass ratio that is free: shapes of one size differ by that much."""
SHAPE_BOX_FILL = {"circle": 0.97, "square": 1.21, "triangle": 0.70, "cross": 0.72}
"""Colour mass over soft box on clean clips. Soft boxes are smaller than true ones."""
SHAPE_LEAN = {"circle": 0.0, "square": 0.0, "triangle": 0.155, "cross": 0.0}
"""Centre of mass below the middle of the box, in box heights, on clean clips."""
STRAIGHT_SPEED = {word: step * FPS / FRAME_PX for word, step in SPEEDS.items()}
CIRCLING_SPEED = {"slow": 0.27, "fast": 0.54}  # ORBIT_SPEEDS on ORBIT_PX
DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
"""Unit vectors (x to the right, y down)."""
TURN_STRIDE = 3
"""Frames between the two headings whose cross product measures turning."""


@dataclass(frozen=True)
class ClipView:
    """A clip [T, C, H, W] in [0, 1] with its coarse cells and masses, each computed once."""

    video: Tensor

    @cached_property
    def grid(self) -> Tensor:
        """Means over cells of k x k whole pixels, [T, C, h, w]; pixels beyond the last are left."""
        video = self.video
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

    @cached_property
    def background(self) -> Tensor:
        """Median colour of the outermost cells of each frame, [T, C]."""
        grid = self.grid
        sides = [grid[..., 0, :], grid[..., -1, :], grid[..., 1:-1, 0], grid[..., 1:-1, -1]]
        return torch.cat(sides, dim=-1).median(dim=-1).values

    @cached_property
    def shares(self) -> Tensor:
        """Share of each palette colour in each cell, [T, K, h, w]."""
        return colour_shares(self.grid, self.background)

    @cached_property
    def mass(self) -> Tensor:
        """Area of each palette colour as a fraction of the frame, [T, K].

        Squared shares: a blend of two colours at a rim looks like a third one, but only weakly.
        """
        return self.shares.square().mean((-2, -1))


def colour_shares(grid: Tensor, background: Tensor) -> Tensor:
    """Split cells [T, 3, h, w] between the palette, the background [T, 3] and no known colour.

    Returns:
        [T, K, h, w], share of each palette colour in the order of ``COLOURS``.
    """
    # exp(-|p - c|^2 / 2w^2) up to the factor exp(-|p|^2 / 2w^2), which all classes share, is one
    # product of (r, g, b, |p|^2, 1) with a row per class; "no known colour" keeps the |p|^2.
    palette = torch.tensor(list(COLOURS.values()), device=grid.device)  # [K, 3]
    classes = torch.cat([palette.expand(len(grid), -1, -1), background[:, None]], dim=1)
    norms = classes.square().sum(-1, keepdim=True)
    rows = torch.cat([2 * classes, torch.zeros_like(norms), -norms], dim=-1)
    unknown = rows.new_tensor([0.0, 0.0, 0.0, 1.0, -(UNKNOWN_DISTANCE**2)])
    rows = torch.cat([rows, unknown.expand(len(grid), 1, -1)], dim=1)  # [T, K+2, 5]
    pixels = grid.flatten(-2)  # [T, 3, h*w]
    squares = pixels.square().sum(1, keepdim=True)
    pixels = torch.cat([pixels, squares, torch.ones_like(squares)], dim=1)
    scale = 1.0 / (2 * COLOUR_WIDTH**2)
    shares = ((scale * rows) @ pixels).softmax(dim=1)[:, : len(palette)]
    return shares.reshape(*shares.shape[:2], *grid.shape[-2:])


def distance_to(video: Tensor, colour: Tensor) -> Tensor:
    """Largest channel difference to a colour per frame, [T, C, H, W] and [T, C] -> [T, H, W]."""
    return (video - colour[..., None, None]).abs().amax(dim=1)


def soft_mask(distance: Tensor, low: float, high: float) -> Tensor:
    """Foreground weight in [0, 1], a linear ramp of the distance to the background."""
    return ((distance - low) / (high - low)).clamp(0.0, 1.0)


def colour_track(share: Tensor) -> Tensor:
    """Centre of mass (x, y) of one colour in frame heights, [T, h, w] -> [T, 2].

    Without any mass the centre is (0, 0): weight tracks by the mass.
    """
    x, y = _axes(share)
    firm = share.square()
    columns, rows = firm.sum(-2), firm.sum(-1)
    total = columns.sum(-1, keepdim=True) + 1e-3
    return torch.stack([columns @ x, rows @ y], dim=-1) / total


def box_fill_and_lean(share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Three numbers per frame [T] of the mask of one colour [T, h, w].

    Its area as a fraction of the frame; how full its box is (the box is the sum of the marginal
    maxima); and how far the centre of mass lies below the middle of the box, in box heights.
    """
    height, width = share.shape[-2:]
    y = _axes(share)[1]
    firm = share.square()
    rows = firm.sum(-1)
    total = rows.sum(-1)
    centre = (rows @ y) / (total + 1e-3)
    column_peak, row_peak = firm.amax(-2), firm.amax(-1)
    box = torch.stack([column_peak.sum(-1), row_peak.sum(-1)], dim=-1) / height
    middle = (row_peak @ y) / (row_peak.sum(-1) + 1e-3)
    mass = total / (height * width)
    return mass, mass / (box.prod(-1) + 1e-3), (centre - middle) / (box[..., 1] + 1 / height)


def quality_terms(view: ClipView, facts: Facts, fps: float) -> Terms:
    """Frame quality without a caption, per frame."""
    grid, background = view.grid, view.background
    distance = distance_to(view.video, background)  # [T, H, W]
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

    # Colours vary slowly inside a sprite: one cell of four gives the same shares.
    sparse = grid[..., ::2, ::2]
    sparse_mask = soft_mask(distance_to(sparse, background), 0.08, 0.25)
    sparse_area = sparse_mask.mean((-2, -1)) + 0.005
    mass = colour_shares(sparse, background).square().mean((-2, -1)).sum(-1)
    saturation = sparse.amax(1) - sparse.amin(1)
    return {
        "sharp": sharp,
        "firm": firm,
        "palette": (mass / sparse_area).clamp(max=1.0),
        "chroma": (sparse_mask * saturation).mean((-2, -1)) / sparse_area,
        "quiet": (-unrest / 0.03).exp(),
        "full": (area / 0.03).tanh(),
    }


def caption_terms(view: ClipView, facts: Facts, fps: float) -> Terms:
    """Each frame against the facts, per frame; ``palette`` needs none. Motion does not count."""
    mass = view.mass
    found_area = soft_mask(distance_to(view.grid, view.background), 0.08, 0.25).mean((-2, -1))
    neutral = torch.full_like(mass[:, 0], NEUTRAL)
    terms = dict.fromkeys(("colours", "area", "count", "outline"), neutral)
    terms["background"] = background_match(view.background, facts.background)
    terms["palette"] = (mass.sum(-1) / (found_area + 0.005)).clamp(max=1.0)
    coloured = _coloured(facts)
    if not coloured:
        return terms
    # Bare histograms: a frame with little colour keeps most of its weight on "nothing there".
    shares = mass / (mass.sum(-1, keepdim=True) + 0.006)
    stated = torch.zeros_like(mass[0])
    for sprite, k in coloured:
        stated[k] += SPRITE_MASS[sprite.size] if sprite.size else sum(SPRITE_MASS.values()) / 2
    terms["colours"] = torch.minimum(shares, stated / stated.sum()).sum(-1)
    entropy = -(shares * (shares + 1e-6).log()).sum(-1)
    num_colours = torch.tensor(float(len({k for _, k in coloured})))
    terms["count"] = (-(entropy - float(num_colours.log())).abs() / 0.5).exp()
    terms["area"] = torch.stack([area_match(mass[:, k], s.size) for s, k in coloured]).mean(0)
    outlines = [_outline_match(view.shares[:, k], s.shape) for s, k in coloured if s.shape]
    if outlines:
        terms["outline"] = torch.stack(outlines).mean(0)
    return terms


def motion_terms(view: ClipView, facts: Facts, fps: float) -> Terms:
    """Motion quality of a gray clip without a caption."""
    # The three channels are equal, so one is enough.
    grid, background = view.grid[:, :1], view.background[:, :1]
    mask = soft_mask(distance_to(grid, background), 0.02, 0.10)  # [T, h, w]
    mass = mask.mean((-2, -1))  # [T]
    x, y = _axes(mask)
    norm = mass * mask.shape[-1] * mask.shape[-2] + 1.0
    centre = torch.stack([mask.sum(-2) @ x, mask.sum(-1) @ y], dim=-1) / norm[:, None]

    frames = grid.flatten(1)  # [T, h*w]
    step = (frames[1:] - frames[:-1]).abs().mean(-1)  # [T-1]
    if len(step) < 2:
        still = torch.full((1,), NEUTRAL, device=grid.device)
        return dict.fromkeys(("smooth", "steady", "kept", "even", "moving"), still)
    bend = (frames[2:] - 2 * frames[1:-1] + frames[:-2]).abs().mean(-1)

    jerk = _length(_second_difference(centre)).mean() * fps / 8  # frame heights
    flicker = _second_difference(frames.mean(-1)).abs().mean()
    log_mass = (mass + 0.005).log()
    change = (log_mass[1:] - log_mass[:-1]).abs().mean()
    spread = step.std() / (step.mean() + 5e-4)
    drift = step.mean() * fps / 8  # pixel units per frame at 8 fps
    # A sharp sprite in uniform motion has a ratio near 1 and independent frames have sqrt(3);
    # below 1 there is no bonus, or a still picture would be the smoothest motion.
    ratio = (bend.mean() / (step.mean() + 1e-3)).clamp(min=1.0)
    terms = {
        "smooth": (-jerk / 0.02).exp() + 1 - ratio,
        "steady": (-flicker / 0.01).exp(),
        "kept": (-change / 0.15).exp(),
        "even": 1 / (1 + spread.square()),
        "moving": (drift / 0.0015).tanh(),
    }
    return {name: value[None] for name, value in terms.items()}


def alignment_terms(view: ClipView, facts: Facts, fps: float) -> Terms:
    """Match of the clip with the facts through time; ``lasting`` needs none."""
    shares, mass = view.shares, view.mass
    total = mass.sum(-1)  # [T]
    neutral = torch.full_like(mass[0, 0], NEUTRAL)
    terms = dict.fromkeys(("present", "pure", "motion", "pace", "size"), neutral)
    terms["lasting"] = total.amin() / (total.amax() + 0.005)
    terms["background"] = background_match(view.background, facts.background).mean()
    coloured = _coloured(facts)
    if coloured:
        columns = sorted({k for _, k in coloured})
        terms["pure"] = (mass[:, columns].sum(-1) / (mass.sum(-1) + 0.006)).mean()
    rows: dict[str, list[Tensor]] = {"present": [], "size": [], "motion": [], "pace": []}
    for sprite, k in coloured:
        expected = SPRITE_MASS[sprite.size or "small"]
        rows["present"].append((mass[:, k] / (0.7 * expected)).clamp(max=1.0).mean())
        if sprite.size:
            rows["size"].append(area_match(mass[:, k], sprite.size).mean())
        if sprite.motion and len(mass) > 2 * TURN_STRIDE:
            weight = (mass[:, k] / (0.5 * expected)).clamp(max=1.0)
            track = colour_track(shares[:, k])
            rows["motion"].append(_motion_match(track, weight, sprite, fps))
            if sprite.speed and sprite.motion != "still":
                rows["pace"].append(_pace_match(track, weight, sprite, fps))
    terms |= {name: torch.stack(values).mean() for name, values in rows.items() if values}
    return {name: value[None] for name, value in terms.items()}


def background_match(background: Tensor, word: str | None) -> Tensor:
    """Closeness in (0, 1] of frame backgrounds [T, 3] to a background word; neutral without one."""
    if word is None:
        return torch.full_like(background[:, 0], NEUTRAL)
    stated = torch.tensor(BACKGROUNDS[word], device=background.device)
    return (-(background - stated).square().sum(-1) / (2 * 0.15**2)).exp()


def area_match(mass: Tensor, size: str | None) -> Tensor:
    """Closeness in (0, 1] of a colour mass to the area of a sprite size; best size without one."""
    stated = [SPRITE_MASS[size]] if size else list(SPRITE_MASS.values())
    ratios = [((mass + 0.003) / (area + 0.003)).log().abs() for area in stated]
    off = (torch.stack(ratios).amin(0) - MASS_TOLERANCE).clamp(min=0.0)
    return (-off / 0.5).exp()


def _outline_match(share: Tensor, shape: str) -> Tensor:
    """Rough shape agreement [T]: how full the box is and how low the centre of mass lies."""
    mass, fill, lean = box_fill_and_lean(share)
    off = ((fill - SHAPE_BOX_FILL[shape]) / 0.12).square()
    off = off + ((lean - SHAPE_LEAN[shape]) / 0.06).square()
    # A heavy-tailed score keeps a slope for shapes that are far off; without mass there is none.
    return (mass / (mass + 0.005)) / (1 + off)


def _motion_match(track: Tensor, weight: Tensor, sprite: SpriteFacts, fps: float) -> Tensor:
    """Agreement in [0, 1] of a track [T, 2] with a motion word; ``weight`` [T] is its mass."""
    trust = weight.mean()
    travel = _displacement(track, weight)
    duration_s = (len(track) - 1) / fps
    step = (track[1:] - track[:-1]) * torch.minimum(weight[1:], weight[:-1])[:, None]
    path = _length(step).sum() / duration_s  # frame heights per second
    if sprite.motion == "still":
        return torch.exp(-path / 0.06) * trust
    if sprite.motion == "circling":
        long_step = track[TURN_STRIDE:] - track[:-TURN_STRIDE]
        first, second = long_step[:-TURN_STRIDE], long_step[TURN_STRIDE:]
        cross = first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]
        length = _length(first) * _length(second)
        turning = cross.sum().abs() / (length.sum() + 2e-3)
        return torch.clamp(turning / 0.7, max=1.0) * trust
    extent = STRAIGHT_SPEED[sprite.speed or "slow"] * duration_s
    if sprite.motion == "diagonal":
        goal = torch.where(travel >= 0, 1.0, -1.0) * (extent / math.sqrt(2))
    else:
        goal = travel.new_tensor(DIRECTIONS[sprite.motion or ""]) * extent
    along = (travel @ goal) / (_length(travel) * extent + 0.02 * extent)
    reached = 1 - (_length(travel - goal) / (1.5 * extent)).clamp(max=1.0)
    return torch.clamp(along, min=0.0) * (0.5 * trust) + reached * (0.5 * trust)


def _pace_match(track: Tensor, weight: Tensor, sprite: SpriteFacts, fps: float) -> Tensor:
    """Agreement in (0, 1] of the mean speed of a track with a speed word."""
    speeds = CIRCLING_SPEED if sprite.motion == "circling" else STRAIGHT_SPEED
    # Two-frame steps: the centre of mass on the coarse cells wobbles from frame to frame.
    step = (track[2:] - track[:-2]) * torch.minimum(weight[2:], weight[:-2])[:, None]
    speed = _length(step).mean() * fps / 2
    stated = speeds[sprite.speed or "slow"]
    return (-((speed + 0.02) / (stated + 0.02)).log().abs() / 0.5).exp()


def _displacement(track: Tensor, weight: Tensor) -> Tensor:
    """Last minus first position [2], each a mean over three frames, scaled to the whole clip."""
    ends = []
    for part in (slice(0, 3), slice(-3, None)):
        w = weight[part, None] + 1e-3
        ends.append((track[part] * w).sum(0) / w.sum())
    return (ends[1] - ends[0]) * ((len(track) - 1) / (len(track) - 3))


def _coloured(facts: Facts) -> list[tuple[SpriteFacts, int]]:
    """The sprites whose colour is stated, with its index in the palette."""
    names = list(COLOURS)
    return [(sprite, names.index(sprite.colour)) for sprite in facts.sprites if sprite.colour]


def _axes(share: Tensor) -> tuple[Tensor, Tensor]:
    """Cell centres along x [w] and y [h] in frame heights."""
    height, width = share.shape[-2:]
    x = (torch.arange(width, device=share.device) + 0.5) / height
    y = (torch.arange(height, device=share.device) + 0.5) / height
    return x, y


def _energy(values: Tensor) -> Tensor:
    return values.square().sum((-2, -1))


def _length(vectors: Tensor) -> Tensor:
    return vectors.square().sum(-1).sqrt()


def _second_difference(values: Tensor) -> Tensor:
    return values[2:] - 2 * values[1:-1] + values[:-2]
