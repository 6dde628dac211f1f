"""Motion oracle: is the motion smooth and physical, and does anything move that should?

Terms per sprite: presence in all frames, smooth path (residual from a local parabola), no jump,
constant area, constant colour, motion when the caption asks for it and stillness when it asks for
that; and per clip a background without flicker. The score is a weighted product, so that one bad
defect shows; two sprites are averaged.

Without a caption (``unprompted_motion_of``) nobody knows what should stand still: then a clip in
which nothing moves is the defect, and a sprite that never shows is none.
"""

import numpy as np

from longtake.sandbox.facts import Facts, SpriteFacts
from longtake.sandbox.oracles.alignment import extent
from longtake.sandbox.oracles.segmentation import Segmentation
from longtake.sandbox.oracles.soft import Array, decay, ramp, weighted_product
from longtake.sandbox.oracles.tracks import Track, find_tracks

# Least-squares parabola through five points, value at the middle one (Savitzky and Golay, 1964).
# The fastest orbit deviates from it by 0.04 px, white jitter by 0.72 of its standard deviation.
_PARABOLA: Array = np.array([-3, 12, 17, 12, -3]) / 35


def motion_of(clip: Segmentation, facts: Facts) -> float:
    """Mean over the caption's sprites of the product of all terms.

    Of the caption only the number of sprites, their colours (to tell them apart) and the motion
    that is asked for are used.
    """
    tracks, _ = find_tracks(clip, facts)
    steady = (steadiness(clip.background), 0.6)
    scores = [
        weighted_product([*motion_terms(track, sprite).values(), steady])
        for track, sprite in zip(tracks, facts.sprites, strict=True)
    ]
    return float(np.mean(scores))


def unprompted_motion_of(clip: Segmentation, shown: Facts) -> float:
    """Motion as someone judges it who has not read the caption (VideoAlign's motion quality).

    Mean over the sprites that show of the product of all terms; activity is that of the sprite that
    moves most. 0 if none shows. Of ``shown`` only the number and colours of the sprites are used,
    to tell them apart.
    """
    tracks = [track for track in find_tracks(clip, shown)[0] if track.present.any()]
    if not tracks:
        return 0.0
    activity = _moved(max(extent(track) for track in tracks))
    common = [(activity, 0.8), (steadiness(clip.background), 0.6)]
    scores = []
    for track in tracks:
        terms = motion_terms(track, SpriteFacts())  # asks for no motion: its own activity is 1
        scores.append(weighted_product([*terms.values(), *common]))
    return float(np.mean(scores))


def motion_terms(track: Track, sprite: SpriteFacts) -> dict[str, tuple[float, float]]:
    """Score and weight of each term of one sprite."""
    if not track.present.any():
        return {"presence": (0.0, 1.0)}
    residual = path_residual(track)
    rough = float(np.sqrt(np.mean(np.square(residual)))) if len(residual) else 3.0
    worst = float(residual.max()) if len(residual) else 6.0
    area = track.area[track.present]
    variation = float(area.std() / max(area.mean(), 1e-6))
    return {
        "presence": (track.share, 1.5),
        "smooth": (float(decay(rough, 0.12, 1.2)), 0.8),
        "no_jump": (float(ramp(worst, 9.0, 0.6)), 0.5),
        "area": (float(decay(variation, 0.03, 0.35)), 0.6),
        "colour": (steadiness(track.colour[track.present]), 0.6),
        "activity": (_activity(track, sprite.motion), 0.8),
    }


def path_residual(track: Track) -> Array:
    """Distance of each centre from the parabola through it and its four neighbours, px.

    Only where all five frames show the sprite; absence is judged by presence.
    """
    centre, present = track.centre, track.present
    residuals = []
    for middle in range(2, len(present) - 2):
        window = slice(middle - 2, middle + 3)
        if present[window].all():
            residuals.append(np.linalg.norm(centre[middle] - _PARABOLA @ centre[window]))
    return np.array(residuals)


def steadiness(colour: Array) -> float:
    """1 for a colour [T, 3] that does not change; falls with flicker and with drift."""
    if len(colour) < 2:
        return 1.0
    flicker = float(np.linalg.norm(np.diff(colour, axis=0), axis=1).mean())
    drift = float(np.sqrt(np.square(colour - colour.mean(axis=0)).sum(axis=1).mean()))
    return float(decay(flicker, 0.012, 0.22) * decay(drift, 0.03, 0.5))


def _activity(track: Track, motion_word: str | None) -> float:
    """Movement when motion is asked, rest when stillness is asked; 1 when neither is stated."""
    if motion_word is None:
        return 1.0
    moved = extent(track)
    if motion_word == "still":
        return float(ramp(moved, 5.0, 0.7))
    return _moved(moved)


def _moved(distance: float) -> float:
    """Score of a sprite that should move; px as :func:`extent`."""
    return float(0.1 + 0.9 * ramp(distance, 0.4, 3.2))
