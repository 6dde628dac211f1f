"""Alignment oracle: the share of the caption's facts that hold in the clip.

Each stated fact gets a graded score in [0, 1]; the number of sprites counts as one more fact. The
result is the plain mean. A sprite that cannot be found scores 0 on all of its facts.
"""

import math

import numpy as np

from longtake.sandbox.facts import (
    BACKGROUNDS,
    COLOURS,
    ORBIT_PX,
    ORBIT_SPEEDS,
    SHAPES,
    SIZES,
    SPEEDS,
    Facts,
    SpriteFacts,
)
from longtake.sandbox.oracles.segmentation import UNIT_AREA, Segmentation
from longtake.sandbox.oracles.soft import Array, nearest_of, ramp
from longtake.sandbox.oracles.tracks import Track, find_tracks

MIN_TRACK_FRAMES = 5  # fewer positions do not show a motion

_COLOUR_TABLE: Array = np.array(list(COLOURS.values()))
_BACKGROUND_TABLE: Array = np.array(list(BACKGROUNDS.values()))
_HEADING_RAD = {"right": 0.0, "down": 0.5 * math.pi, "left": math.pi, "up": -0.5 * math.pi}


def alignment_of(clip: Segmentation, facts: Facts) -> float:
    """Mean score of the stated facts."""
    scores = fact_scores(clip, facts)
    return float(np.mean(list(scores.values())))


def fact_scores(clip: Segmentation, facts: Facts) -> dict[str, float]:
    """Score of each fact: "count", "background" and "<attribute><sprite number>"."""
    tracks, extra = find_tracks(clip, facts)
    present = np.mean([ramp(track.area, 15.0, 70.0) for track in tracks], axis=0)  # [T]
    # Extra pieces cost as missing ones do: a caption of one sprite is wrong about two.
    scores = {"count": float((present * (1 - ramp(extra, 0.02, 0.4))).mean())}
    if facts.background is not None:
        own = list(BACKGROUNDS).index(facts.background)
        scores["background"] = float(nearest_of(clip.background, _BACKGROUND_TABLE, own).mean())
    for number, (track, sprite) in enumerate(zip(tracks, facts.sprites, strict=True), start=1):
        for name, score in _sprite_scores(track, sprite).items():
            scores[f"{name}{number}"] = score
    return scores


def _sprite_scores(track: Track, sprite: SpriteFacts) -> dict[str, float]:
    if not track.present.any():
        return dict.fromkeys(sprite.stated(), 0.0)
    scores: dict[str, float] = {}
    if sprite.colour is not None:
        own = list(COLOURS).index(sprite.colour)
        colour = nearest_of(track.colour[track.present], _COLOUR_TABLE, own)
        scores["colour"] = float(colour.sum() / len(track.present))
    if sprite.shape is not None:
        scores["shape"] = _shape_score(track, sprite.shape)
    if sprite.size is not None:
        scores["size"] = _size_score(track, sprite)
    if sprite.motion is not None:
        scores["motion"] = motion_score(track, sprite.motion)
    if sprite.speed is not None:
        scores["speed"] = _speed_score(track, sprite.motion, sprite.speed)
    return scores


def _shape_score(track: Track, shape: str) -> float:
    """The silhouette fits the stated shape, and no other shape fits better."""
    fit = track.fit[track.present]
    own = fit[:, SHAPES.index(shape)]
    margin = own - np.delete(fit, SHAPES.index(shape), axis=1).max(axis=1)
    score = ramp(margin, -0.11, 0.045) * ramp(own, 0.45, 0.82)
    return float(score.sum() / len(track.present))


def _size_score(track: Track, sprite: SpriteFacts) -> float:
    """Radius from the area, on a log scale on which small is 0 and large is 1."""
    fit = np.nan_to_num(track.fit[track.present])
    if sprite.shape is not None:
        unit_area = np.full(len(fit), UNIT_AREA[SHAPES.index(sprite.shape)])
    else:
        unit_area = UNIT_AREA[fit.argmax(axis=1)]
    radius = np.sqrt(track.area[track.present] / unit_area)
    low, high = SIZES["small"], SIZES["large"]
    u = np.log(np.maximum(radius, 0.1) / low) / math.log(high / low)
    if sprite.size == "small":
        score = ramp(u, 0.85, 0.25) * ramp(u, -1.8, -0.5)
    else:
        score = ramp(u, 0.15, 0.75) * ramp(u, 2.2, 1.4)
    return float(score.sum() / len(track.present))


def motion_score(track: Track, motion: str) -> float:
    """How well the centres follow a class of motion."""
    if track.present.sum() < MIN_TRACK_FRAMES:
        return 0.0
    seen = ramp(track.share, 0.2, 0.7)
    if motion == "still":
        return float(seen * ramp(extent(track), 3.2, 0.7))
    if motion == "circling":
        radius, rate, error = orbit(track)
        sweep = abs(rate) * (len(track.present) - 1)
        score = ramp(sweep, 1.2, 3.2) * ramp(radius, 2.5, 6.0) * ramp(error / radius, 0.6, 0.15)
        return float(seen * score)
    travel, straight = line(track)
    heading = math.atan2(travel[1], travel[0])
    if motion == "diagonal":
        turns = (heading - 0.25 * math.pi) / (0.5 * math.pi)
        angle = abs(turns - round(turns)) * 90.0
    else:
        gap = heading - _HEADING_RAD[motion]
        angle = abs(math.degrees(math.atan2(math.sin(gap), math.cos(gap))))
    length = float(np.linalg.norm(travel))
    score = ramp(angle, 40.0, 8.0) * ramp(length, 3.0, 11.0) * ramp(straight, 0.45, 0.9)
    return float(seen * score)


def _speed_score(track: Track, motion: str | None, speed: str) -> float:
    """Path length on a log scale on which slow is 0 and fast is 1."""
    if track.present.sum() < MIN_TRACK_FRAMES:
        return 0.0
    steps = len(track.present) - 1
    if motion == "circling":
        radius, rate, _ = orbit(track)
        # A nearly straight path fits a huge circle: the rate then goes to 0 and the arc is right.
        path, slow = min(radius, 64.0) * abs(rate) * steps, ORBIT_PX * ORBIT_SPEEDS["slow"] * steps
    else:
        path, slow = float(np.linalg.norm(line(track)[0])), SPEEDS["slow"] * steps
    u = math.log(max(path, 0.5) / slow) / math.log(2)
    if speed == "slow":
        return float(ramp(u, 0.85, 0.25) * ramp(u, -2.2, -0.6))
    return float(ramp(u, 0.15, 0.75) * ramp(u, 2.6, 1.6))


def extent(track: Track) -> float:
    """RMS distance of the centres from their mean, px."""
    centre = track.centre[track.present]
    return float(np.sqrt(np.square(centre - centre.mean(axis=0)).sum(axis=1).mean()))


def line(track: Track) -> tuple[Array, float]:
    """Travel over the clip [2] (px) of the best uniform motion, and its explained variance."""
    times = np.flatnonzero(track.present).astype(np.float64)
    centre = track.centre[track.present]
    times_c, centre_c = times - times.mean(), centre - centre.mean(axis=0)
    slope = (times_c[:, None] * centre_c).sum(axis=0) / np.square(times_c).sum()
    left = np.square(centre_c - times_c[:, None] * slope).sum()
    total = np.square(centre_c).sum() + 0.5  # half a square pixel: noise of a still sprite
    return slope * (len(track.present) - 1), float(1 - left / total)


def orbit(track: Track) -> tuple[float, float, float]:
    """Radius (px), angular rate (rad per frame) and RMS error (px) of the best circle.

    Algebraic circle fit: x^2 + y^2 = 2ax + 2by + c is linear in (a, b, c). The rate is the slope
    of the unwrapped angle, so that a path that goes back and forth has none.
    """
    times = np.flatnonzero(track.present).astype(np.float64)
    centre = track.centre[track.present]
    local = centre - centre.mean(axis=0)
    design = np.concatenate([2 * local, np.ones((len(local), 1))], axis=1)
    solution = np.linalg.lstsq(design, np.square(local).sum(axis=1), rcond=1e-9)[0]
    middle = solution[:2]
    radius = math.sqrt(max(float(solution[2] + middle @ middle), 1e-6))
    arms = local - middle
    error = float(np.sqrt(np.square(np.linalg.norm(arms, axis=1) - radius).mean()))
    angle = np.unwrap(np.arctan2(arms[:, 1], arms[:, 0]))
    times_c = times - times.mean()
    rate = float((times_c * angle).sum() / np.square(times_c).sum())
    return radius, rate, error
