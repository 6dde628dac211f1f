"""Temporal flickering of VBench 1.0, the one dimension that needs no downloaded weights.

Own implementation of the published definition (VBench, arXiv 2311.17982): the mean absolute
difference of consecutive frames, mapped to [0, 1].
"""

from itertools import pairwise
from pathlib import Path

from longtake.core.video import read_video
from longtake.runtime.errors import UserError


def temporal_flickering(path: Path) -> float:
    """Score one video: (255 - mean |x[t+1] - x[t]|) / 255 over frame pairs, pixels and channels.

    Exactly 1 for a clip without any change. Decoders differ in how they turn YUV into RGB: against
    the public code, which decodes by OpenCV, expect differences up to 1e-4.

    Raises:
        UserError: unreadable, or fewer than two frames.
    """
    video, _ = read_video(path)  # uint8 [T, 3, H, W]
    if len(video) < 2:
        raise UserError("one frame cannot flicker", received=str(path), expected=">= 2 frames")
    total = 0
    for before, after in pairwise(video):  # one pair at a time: memory
        total += int((after.short() - before.short()).abs().sum())
    mean = total / ((len(video) - 1) * video[0].numel())
    return (255.0 - mean) / 255.0
