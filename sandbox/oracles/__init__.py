"""Ground-truth scorers of sandbox clips, from pixels and captions alone; never used in training."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from longtake.sandbox.captions import parse_caption
from longtake.sandbox.facts import Facts
from longtake.sandbox.oracles.alignment import alignment_of
from longtake.sandbox.oracles.motion import motion_of, unprompted_motion_of
from longtake.sandbox.oracles.segmentation import Segmentation, segment_batch
from longtake.sandbox.oracles.visual import visual_of

# Clips [B, T, 3, H, W], uint8 or float in [0, 1], and B captions to [B] float32 in [0, 1]; NaN for
# a clip with a pixel that is not finite. UserError for a caption outside of the grammar.
Oracle = Callable[[Tensor, Sequence[str]], Tensor]

# Motion for someone who has not read the caption: what labels of motion quality follow.
UNPROMPTED_MOTION = "unprompted_motion"

_SCORES: dict[str, Callable[[Segmentation, Facts], float]] = {
    "alignment": alignment_of,
    "motion": motion_of,
    "visual": lambda clip, _: visual_of(clip),  # it never sees the caption
}


def oracle_scores(
    video: Tensor, captions: Sequence[str], shown: Sequence[Facts] | None = None
) -> dict[str, Tensor]:
    """All oracles with one segmentation per clip: name to [B] float32, as ``ORACLES`` gives them.

    Args:
        video: as :data:`Oracle`.
        captions: as :data:`Oracle`.
        shown: B facts of what the clips show, whatever their captions say; adds
            :data:`UNPROMPTED_MOTION`, which judges by them.
    """
    facts, clips = [parse_caption(text) for text in captions], segment_batch(video)
    scores = {name: _scored(score, clips, facts) for name, score in _SCORES.items()}
    if shown is not None:
        scores[UNPROMPTED_MOTION] = _scored(unprompted_motion_of, clips, shown)
    return scores


def _scored(
    score: Callable[[Segmentation, Facts], float],
    clips: Sequence[Segmentation | None],
    facts: Sequence[Facts],
) -> Tensor:
    values = [
        math.nan if clip is None else score(clip, stated)
        for clip, stated in zip(clips, facts, strict=True)
    ]
    return torch.tensor(values, dtype=torch.float32)


def _oracle(name: str, video: Tensor, captions: Sequence[str]) -> Tensor:
    facts = [parse_caption(text) for text in captions]
    return _scored(_SCORES[name], segment_batch(video), facts)


ORACLES: dict[str, Oracle] = {name: partial(_oracle, name) for name in _SCORES}
