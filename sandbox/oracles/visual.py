"""Visual oracle: is the picture clean? It never sees the caption.

Terms: sharp edges, clean colours (uniform inside a sprite and close to the palette of the world),
intact shapes (each silhouette fits one of the four shapes, no fragments), a quiet background, and
something to see in every frame. The score is a weighted product.
"""

import numpy as np

from longtake.sandbox.facts import BACKGROUNDS, COLOURS
from longtake.sandbox.oracles.segmentation import SPRITE_AREA_PX, Segmentation
from longtake.sandbox.oracles.soft import Array, decay, ramp, weighted_product

MAX_SPRITES = 2
WHOLE_SPRITE_PX = 70.0  # the smallest sprite of the world has 107 px

_COLOUR_TABLE: Array = np.array(list(COLOURS.values()))
_BACKGROUND_TABLE: Array = np.array(list(BACKGROUNDS.values()))


def visual_of(clip: Segmentation) -> float:
    """Weighted product of all terms."""
    return weighted_product(list(visual_terms(clip).values()))


def visual_terms(clip: Segmentation) -> dict[str, tuple[float, float]]:
    """Score and weight of each term; sprites weigh in by area within a frame."""
    quiet = float(decay(clip.background_rms, 0.03, 0.12).mean())
    gap = np.linalg.norm(clip.background[:, None] - _BACKGROUND_TABLE, axis=-1).min(axis=1)
    # Weights below 1 soften a term: a noisy background alone should not take all of the score.
    terms = {
        "quiet": (quiet, 0.8),
        "background": (float(decay(gap, 0.08, 0.3).mean()), 0.5),
    }
    is_sprite = clip.area >= SPRITE_AREA_PX
    shown = np.zeros(clip.num_frames, dtype=bool)
    shown[clip.frame[is_sprite]] = True
    terms["shown"] = (float(shown.mean()), 1.0)
    if not shown.any():
        return terms
    weight = clip.area[is_sprite]
    weight = weight / weight.sum()

    def average(score: Array) -> float:
        return float((weight * score).sum())

    colour = clip.colour[is_sprite]
    off_palette = np.linalg.norm(colour[:, None] - _COLOUR_TABLE, axis=-1).min(axis=1)
    terms["sharp"] = (average(ramp(edge_width(clip)[is_sprite], 11.0, 2.6)), 1.0)
    terms["uniform"] = (average(decay(clip.spread[is_sprite], 0.04, 0.12)), 0.6)
    terms["palette"] = (average(decay(off_palette, 0.10, 0.35)), 0.5)
    terms["shape"] = (average(ramp(clip.fit[is_sprite].max(axis=1), 0.55, 0.93)), 1.0)
    terms["whole"] = (wholeness(clip), 0.6)
    return terms


def edge_width(clip: Segmentation) -> Array:
    """Effective width of each component's edges [L], px.

    Sum of |grad alpha| over sum of |grad alpha|^2. The numerator is the perimeter whatever the
    blur; a Gaussian blur of standard deviation s gives 2 sqrt(pi) s.
    """
    alpha, labels = clip.alpha, clip.labels
    across = np.zeros_like(alpha)
    down = np.zeros_like(alpha)
    across[:, :, 1:-1] = 0.5 * (alpha[:, :, 2:] - alpha[:, :, :-2])
    down[:, 1:-1, :] = 0.5 * (alpha[:, 2:, :] - alpha[:, :-2, :])
    slope = np.sqrt(across * across + down * down)
    slope = np.where(slope > 0.08, slope, 0.0)  # below: noise in the core and in the halo
    inside = labels > 0
    owner, steep = labels[inside], slope[inside].astype(np.float64)
    count = len(clip.area) + 1
    total = np.bincount(owner, steep, minlength=count)[1:]
    squared = np.bincount(owner, steep * steep, minlength=count)[1:]
    return np.where(total > 0, total / np.maximum(squared, 1e-9), 20.0)


def wholeness(clip: Segmentation) -> float:
    """Share of the foreground that belongs to at most two pieces as large as a sprite."""
    shares = []
    for frame in range(clip.num_frames):
        area = np.sort(clip.area[clip.frame == frame])[::-1]
        if len(area):
            whole = area[:MAX_SPRITES] * ramp(area[:MAX_SPRITES], 15.0, WHOLE_SPRITE_PX)
            shares.append(float(whole.sum() / area.sum()))
    return float(np.mean(shares)) if shares else 0.0
