"""How far a reward moves when only the colours of a clip change (report section 3.3.2, Figure 20).

Motion quality has nothing to do with colour, so a motion reward should score a clip and its
recoloured copy alike. Colours change in the chroma plane of BT.601: hue is a rotation of it,
saturation a factor on it, and luma stays as it is, up to clipping at [0, 1]. The change of a score
is given in standard deviations of the scores over the clips, so that rewards of any scale compare.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from longtake.core.video import to_uint8
from longtake.rewards.contract import Reward, VideoBatch
from longtake.runtime.errors import UserError
from longtake.runtime.statistics import paired_bootstrap
from longtake.sandbox.corruptions import LUMA

# Rotations of the chroma plane, degrees.
HUES = (-90.0, -45.0, 45.0, 90.0)
# Factors on the chroma.
SATURATIONS = (0.3, 0.65, 1.35, 1.7)


@dataclass(frozen=True, kw_only=True, slots=True)
class ColourSensitivity:
    """Change of a reward under one kind of recolouring."""

    reward: str
    change: str
    """``hue`` or ``saturation``."""
    mean: float
    """|score of the recoloured clip - score of the clip|, in standard deviations of the scores of
    the clips as they are; mean over clips and strengths."""
    ci_low: float
    """Of the 95 % interval (bootstrap over clips)."""
    ci_high: float
    clips: int
    """Clips scored in every colour."""
    unscored: int
    """Clips left out."""


def recolour(video: Tensor, *, hue_degrees: float = 0.0, saturation: float = 1.0) -> Tensor:
    """Rotate and scale the (Cb, Cr) of every pixel at constant BT.601 luma; saturation 0 is gray.

    ``video`` [..., 3, H, W], float in [0, 1] or uint8, keeps its type; what leaves [0, 1] is
    clipped.
    """
    pixels = video.float() / 255 if video.dtype == torch.uint8 else video
    red, green, blue = pixels.unbind(-3)
    luma = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    cb, cr = (blue - luma) / (2 - 2 * LUMA[2]), (red - luma) / (2 - 2 * LUMA[0])
    angle = math.radians(hue_degrees)
    cos, sin = saturation * math.cos(angle), saturation * math.sin(angle)
    cb, cr = cos * cb - sin * cr, sin * cb + cos * cr
    red, blue = luma + (2 - 2 * LUMA[0]) * cr, luma + (2 - 2 * LUMA[2]) * cb
    green = (luma - LUMA[0] * red - LUMA[2] * blue) / LUMA[1]
    changed = torch.stack([red, green, blue], dim=-3).clamp(0, 1)
    return to_uint8(changed) if video.dtype == torch.uint8 else changed


def colour_sensitivity(
    rewards: Mapping[str, Reward],
    batches: Sequence[VideoBatch],
    *,
    hues: Sequence[float] = HUES,
    saturations: Sequence[float] = SATURATIONS,
) -> list[ColourSensitivity]:
    """Score clips as they are and recoloured: two entries per reward, hue and saturation."""
    changes = {
        "hue": [{"hue_degrees": hue} for hue in hues],
        "saturation": [{"saturation": factor} for factor in saturations],
    }
    rows = []
    for name, reward in rewards.items():
        plain = _scores(reward, batches, {})
        for change, settings in changes.items():
            table = np.stack([_scores(reward, batches, setting) for setting in settings])
            rows.append(_summary(name, change, plain, table))
    return rows


def _scores(
    reward: Reward, batches: Sequence[VideoBatch], setting: Mapping[str, float]
) -> np.ndarray:
    columns: list[float] = []
    for batch in batches:
        video = recolour(batch.video, **setting) if setting else batch.video
        changed = VideoBatch(video=video, prompts=batch.prompts, fps=batch.fps)
        columns += [float(score) for score in reward.score(changed)]
    return np.array(columns)


def _summary(reward: str, change: str, plain: np.ndarray, table: np.ndarray) -> ColourSensitivity:
    used = np.isfinite(plain) & np.isfinite(table).all(0)
    spread = float(plain[used].std()) if used.sum() > 1 else 0.0
    if not spread > 0:
        raise UserError(
            "the colour sensitivity of a reward has no scale",
            received=f"{int(used.sum())} scored clips of {len(plain)} for {reward}",
            expected="at least two clips with different scores",
            remedy="give more clips",
        )
    moved = np.abs(table[:, used] - plain[used]).mean(0) / spread
    interval = paired_bootstrap(np.zeros_like(moved), moved)
    return ColourSensitivity(
        reward=reward,
        change=change,
        mean=float(moved.mean()),
        ci_low=interval.ci_low,
        ci_high=interval.ci_high,
        clips=int(used.sum()),
        unscored=int((~used).sum()),
    )
