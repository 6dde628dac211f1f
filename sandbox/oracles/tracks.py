"""Tracks: which component is which sprite of the caption, frame by frame.

A caption with two sprites always states their colours, so a component goes to the sprite whose
colour it shows; continuity of the position breaks ties. A caption with one sprite takes the
largest component.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longtake.sandbox.facts import COLOURS, SHAPES, Facts
from longtake.sandbox.oracles.segmentation import SPRITE_AREA_PX, Segmentation
from longtake.sandbox.oracles.soft import Array


@dataclass(frozen=True, kw_only=True, slots=True)
class Track:
    """One sprite over T frames; rows without the sprite are NaN except ``area``, which is 0."""

    present: NDArray[np.bool_]  # [T]
    centre: Array  # [T, 2] px
    area: Array  # [T] px
    colour: Array  # [T, 3]
    fit: Array  # [T, 4]

    @property
    def share(self) -> float:
        """Share of frames in which the sprite is there."""
        return float(self.present.mean())


def find_tracks(clip: Segmentation, facts: Facts) -> tuple[list[Track], Array]:
    """The track of each sprite of the caption, and the area share of extra components [T]."""
    number, num_frames = len(facts.sprites), clip.num_frames
    chosen = np.full((number, num_frames), -1, dtype=np.int64)
    last: list[Array | None] = [None] * number
    extra = np.zeros(num_frames)
    for frame in range(num_frames):
        members = np.flatnonzero(clip.frame == frame)
        candidates = members[clip.area[members] >= SPRITE_AREA_PX]
        # Four largest are enough: more than two sprites never belong to a caption.
        candidates = candidates[np.argsort(-clip.area[candidates], kind="stable")][:4]
        for slot, component in _assign(clip, facts, candidates, last):
            chosen[slot, frame] = component
            last[slot] = clip.centre[component]
        total = clip.area[members].sum()
        used = chosen[:, frame]
        if total > 0:
            extra[frame] = 1 - clip.area[used[used >= 0]].sum() / total
    return [_track(clip, chosen[slot]) for slot in range(number)], extra


def _assign(
    clip: Segmentation,
    facts: Facts,
    candidates: NDArray[np.int64],
    last: list[Array | None],
) -> list[tuple[int, int]]:
    """Pairs (sprite, component) with the largest total affinity, each used once."""
    if len(candidates) == 0:
        return []
    if len(facts.sprites) == 1:
        return [(0, int(candidates[0]))]
    affinity = np.zeros((2, len(candidates)))
    for slot, sprite in enumerate(facts.sprites):
        if sprite.colour is not None:
            gap = np.linalg.norm(clip.colour[candidates] - COLOURS[sprite.colour], axis=1)
            affinity[slot] += np.exp(-0.5 * (gap / 0.4) ** 2)
        before = last[slot]
        if before is not None:
            step = np.linalg.norm(clip.centre[candidates] - before, axis=1)
            affinity[slot] += 0.4 * np.exp(-step / 8)
    # A speck of the right colour must not win over the sprite itself.
    affinity *= np.sqrt(np.minimum(clip.area[candidates], 150.0) / 150.0)
    if len(candidates) == 1:
        return [(int(np.argmax(affinity[:, 0])), int(candidates[0]))]
    pairs = affinity[0][:, None] + affinity[1][None, :]
    np.fill_diagonal(pairs, -1.0)
    first, second = np.unravel_index(int(np.argmax(pairs)), pairs.shape)
    return [(0, int(candidates[first])), (1, int(candidates[second]))]


def _track(clip: Segmentation, chosen: NDArray[np.int64]) -> Track:
    present = chosen >= 0
    rows = chosen[present]

    def spread(values: Array, width: int) -> Array:
        out = np.full((len(chosen), width), np.nan)
        out[present] = values[rows]
        return out

    area = np.zeros(len(chosen))
    area[present] = clip.area[rows]
    return Track(
        present=present,
        centre=spread(clip.centre, 2),
        area=area,
        colour=spread(clip.colour, 3),
        fit=spread(clip.fit, len(SHAPES)),
    )
