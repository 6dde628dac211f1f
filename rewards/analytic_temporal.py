"""Clip terms of the ``motion_quality`` and ``text_alignment`` rewards.

``motion_terms`` sees gray clips and no caption; ``alignment_terms`` follows the centre of mass of
the caption's colours. Both return [B, 1] per term, in about [0, 1], higher is better. Lengths are
in frame heights and speeds in frame heights per second, so the playback rate matters.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from longtake.rewards.analytic_visual import NEUTRAL, SPRITE_MASS, area_match, background_match
from longtake.rewards.caption_words import COLOURS, CaptionWords, SpriteWords
from longtake.rewards.sprite_features import (
    ClipView,
    colour_track,
    distance_to,
    soft_mask,
)

STRAIGHT_SPEED = {"slow": 0.125, "fast": 0.25}
"""Speed of straight motions, frame heights per second (1 and 2 px per frame at 64 px and 8 fps)."""
CIRCLING_SPEED = {"slow": 0.27, "fast": 0.54}
"""Speed on a circle, frame heights per second."""
DIRECTIONS: dict[str, tuple[float, float]] = {
    "left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0),
}  # fmt: skip
"""Unit vectors (x to the right, y down)."""
TURN_STRIDE = 3
"""Frames between the two headings whose cross product measures turning."""


def motion_terms(view: ClipView, fps: Tensor, words: Sequence[CaptionWords]) -> dict[str, Tensor]:
    """Caption-free motion quality: ``smooth``, ``steady``, ``kept``, ``even``, ``moving``.

    Args:
        view: gray clips.
        fps: [B].
        words: not used.
    """
    # The three channels are equal, so one is enough.
    grid, background = view.grid[:, :, :1], view.background[:, :, :1]
    distance = distance_to(grid, background)  # [B, T, h, w]
    mask = soft_mask(distance, 0.02, 0.10)
    mass = mask.mean((-2, -1))  # [B, T]
    height = mask.shape[-2]
    x = (torch.arange(mask.shape[-1], device=mask.device) + 0.5) / height
    y = (torch.arange(height, device=mask.device) + 0.5) / height
    norm = mass * mask.shape[-1] * height + 1.0
    centre = torch.stack([mask.sum(-2) @ x, mask.sum(-1) @ y], dim=-1) / norm[..., None]

    frames = grid.flatten(2)  # [B, T, h*w]
    step = (frames[:, 1:] - frames[:, :-1]).abs().mean(-1)  # [B, T-1]
    if step.shape[1] < 2:
        still = torch.full((grid.shape[0], 1), NEUTRAL, device=grid.device)
        return dict.fromkeys(("smooth", "steady", "kept", "even", "moving"), still)
    bend = (frames[:, 2:] - 2 * frames[:, 1:-1] + frames[:, :-2]).abs().mean(-1)
    brightness = frames.mean(-1)

    jerk = _length(_second_difference(centre)).mean(1) * fps / 8  # frame heights
    flicker = _second_difference(brightness).abs().mean(1)
    log_mass = (mass + 0.005).log()
    change = (log_mass[:, 1:] - log_mass[:, :-1]).abs().mean(1)
    spread = step.std(1) / (step.mean(1) + 5e-4)
    drift = step.mean(1) * fps / 8  # pixel units per frame at 8 fps
    # A sharp sprite in uniform motion has a ratio near 1 and independent frames have sqrt(3);
    # below 1 there is no bonus, or a still picture would be the smoothest motion.
    ratio = (bend.mean(1) / (step.mean(1) + 1e-3)).clamp(min=1.0)
    terms = {
        "smooth": (-jerk / 0.02).exp() + 1 - ratio,
        "steady": (-flicker / 0.01).exp(),
        "kept": (-change / 0.15).exp(),
        "even": 1 / (1 + spread.square()),
        "moving": (drift / 0.0015).tanh(),
    }
    return {key: value[:, None] for key, value in terms.items()}


def alignment_terms(
    view: ClipView, fps: Tensor, words: Sequence[CaptionWords]
) -> dict[str, Tensor]:
    """Match of the clip with the caption through time.

    Terms: ``present``, ``pure``, ``motion``, ``pace``, ``size``, ``background``, and the
    caption-free ``lasting``.

    Args:
        view: colour clips.
        fps: [B].
        words: B read captions. Terms without words are neutral.
    """
    total = view.mass.sum(-1)  # [B, T]
    lasting = total.amin(1) / (total.amax(1) + 0.005)
    rates = fps.tolist()
    rows = [
        _alignment_row(
            view.shares[index], view.mass[index], view.background[index], caption, rates[index]
        )
        for index, caption in enumerate(words)
    ]
    terms = {key: torch.stack([row[key] for row in rows])[:, None] for key in rows[0]}
    return {**terms, "lasting": lasting[:, None]}


def _alignment_row(
    shares: Tensor, mass: Tensor, background: Tensor, caption: CaptionWords, fps: float
) -> dict[str, Tensor]:
    """Terms of one clip, scalars: shares [T, K, h, w], mass [T, K], background [T, 3]."""
    names = list(COLOURS)
    columns = [(sprite, names.index(sprite.colour)) for sprite in caption.sprites if sprite.colour]
    neutral = torch.full_like(mass[0, 0], NEUTRAL)
    row = dict.fromkeys(("present", "pure", "motion", "pace", "size"), neutral)
    row["background"] = background_match(background, caption.background).mean()
    if not columns:
        return row
    wanted = sorted({k for _, k in columns})
    row["pure"] = (mass[:, wanted].sum(-1) / (mass.sum(-1) + 0.006)).mean()
    present, size, motion, pace = [], [], [], []
    for sprite, k in columns:
        expected = SPRITE_MASS[sprite.size or "small"]
        present.append((mass[:, k] / (0.7 * expected)).clamp(max=1.0).mean())
        if sprite.size:
            size.append(area_match(mass[:, k], sprite.size).mean())
        if sprite.motion and mass.shape[0] > 2 * TURN_STRIDE:
            weight = (mass[:, k] / (0.5 * expected)).clamp(max=1.0)
            track = colour_track(shares[None, :, k])[0]
            motion.append(_motion_match(track, weight, sprite, fps))
            if sprite.speed and sprite.motion != "still":
                pace.append(_pace_match(track, weight, sprite, fps))
    found = {"present": present, "size": size, "motion": motion, "pace": pace}
    return {**row, **{key: torch.stack(parts).mean() for key, parts in found.items() if parts}}


def _motion_match(track: Tensor, weight: Tensor, sprite: SpriteWords, fps: float) -> Tensor:
    """Agreement in [0, 1] of a track [T, 2] with a motion word; ``weight`` [T] is its mass."""
    trust = weight.mean()
    travel = _displacement(track, weight)
    duration_s = (track.shape[0] - 1) / fps
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
    speed = STRAIGHT_SPEED[sprite.speed or "slow"]
    extent = speed * duration_s
    if sprite.motion == "diagonal":
        signs = torch.where(travel >= 0, 1.0, -1.0)
        goal = signs * (extent / math.sqrt(2))
    else:
        goal = travel.new_tensor(DIRECTIONS[sprite.motion or ""]) * extent
    along = (travel @ goal) / (_length(travel) * extent + 0.02 * extent)
    reached = 1 - (_length(travel - goal) / (1.5 * extent)).clamp(max=1.0)
    return torch.clamp(along, min=0.0) * (0.5 * trust) + reached * (0.5 * trust)


def _pace_match(track: Tensor, weight: Tensor, sprite: SpriteWords, fps: float) -> Tensor:
    """Agreement in (0, 1] of the mean speed of a track with a speed word."""
    speeds = CIRCLING_SPEED if sprite.motion == "circling" else STRAIGHT_SPEED
    # Two-frame steps: the centre of mass on the coarse cells wobbles from frame to frame.
    step = (track[2:] - track[:-2]) * torch.minimum(weight[2:], weight[:-2])[:, None]
    speed = _length(step).mean() * fps / 2
    wanted = speeds[sprite.speed or "slow"]
    return (-((speed + 0.02) / (wanted + 0.02)).log().abs() / 0.5).exp()


def _displacement(track: Tensor, weight: Tensor) -> Tensor:
    """Last minus first position [2], each a mean over three frames, scaled to the whole clip."""
    ends = []
    for part in (slice(0, 3), slice(-3, None)):
        w = weight[part, None] + 1e-3
        ends.append((track[part] * w).sum(0) / w.sum())
    frames = track.shape[0]
    return (ends[1] - ends[0]) * ((frames - 1) / (frames - 3))


def _length(vectors: Tensor) -> Tensor:
    return vectors.square().sum(-1).sqrt()


def _second_difference(values: Tensor) -> Tensor:
    return values[:, 2:] - 2 * values[:, 1:-1] + values[:, :-2]
