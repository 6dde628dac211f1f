"""Ground-truth scorers of sandbox clips, from pixels and captions alone; never used in training."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from longtake.sandbox.facts import Facts
from longtake.sandbox.oracles.alignment import alignment, alignment_of, parse_captions
from longtake.sandbox.oracles.motion import motion, motion_of, unprompted_motion_of
from longtake.sandbox.oracles.segmentation import segment_batch
from longtake.sandbox.oracles.visual import visual, visual_of

Oracle = Callable[[Tensor, Sequence[str]], Tensor]

ORACLES: dict[str, Oracle] = {"alignment": alignment, "motion": motion, "visual": visual}

UNPROMPTED_MOTION = "unprompted_motion"
"""Motion for someone who has not read the caption: what labels of motion quality follow."""


def oracle_scores(
    video: Tensor, captions: Sequence[str], shown: Sequence[Facts] | None = None
) -> dict[str, Tensor]:
    """All oracles with one segmentation per clip: name to [B] float32, as ``ORACLES`` gives them.

    Args:
        video: [B, T, 3, H, W], uint8 or float in [0, 1].
        captions: B texts of the sandbox grammar.
        shown: B facts of what the clips show, whatever their captions say; adds
            :data:`UNPROMPTED_MOTION`, which judges by them.

    Raises:
        UserError: wrong shape, another number of captions, or a caption outside of the grammar.
    """
    facts = parse_captions(video, captions)
    clips = segment_batch(video)
    rows = [
        (math.nan,) * 3
        if clip is None
        else (alignment_of(clip, stated), motion_of(clip, stated), visual_of(clip))
        for clip, stated in zip(clips, facts, strict=True)
    ]
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 3)
    scores = {name: table[:, column] for column, name in enumerate(ORACLES)}
    if shown is not None:
        scores[UNPROMPTED_MOTION] = torch.tensor(
            [
                math.nan if clip is None else unprompted_motion_of(clip, there)
                for clip, there in zip(clips, shown, strict=True)
            ],
            dtype=torch.float32,
        )
    return scores


__all__ = [
    "ORACLES",
    "UNPROMPTED_MOTION",
    "Oracle",
    "alignment",
    "motion",
    "oracle_scores",
    "visual",
]
