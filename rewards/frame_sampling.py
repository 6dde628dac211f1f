"""VideoAlign's choice of frames: two per second of playback, an even number, evenly spread.

The number of frames and the spacing in time both depend on the playback rate, so a clip scored
under another rate is another clip to the model. The rate is an argument without a default.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from longtake.rewards.pixels import TEMPORAL_PATCH
from longtake.runtime.errors import UserError


@dataclass(frozen=True, kw_only=True)
class FrameSampler:
    """VideoAlign's sampler; part of a reward's ``reward.json``."""

    target_fps: float = 2.0
    """Frames taken per second of playback (published value 2)."""
    min_frames: int = 4
    """Least number of frames, as far as the clip has them (even)."""
    max_frames: int = 768
    """Largest number of frames (even)."""
    num_frames: int | None = None
    """A fixed number of frames instead, whatever the playback rate."""

    def __post_init__(self) -> None:
        low, high, fixed = self.min_frames, self.max_frames, self.num_frames
        usable = self.target_fps > 0 and math.isfinite(self.target_fps)
        if not usable or low < 2 or low % 2 or high % 2 or high < low:
            raise UserError(
                "frame sampler cannot be used",
                received=f"target_fps={self.target_fps}, min_frames={low}, max_frames={high}",
                expected="a positive rate and even limits, 2 <= min_frames <= max_frames",
            )
        if fixed is not None and fixed < TEMPORAL_PATCH:
            raise UserError(
                "frame sampler cannot be used", received=f"num_frames={fixed}", expected=">= 2"
            )

    def count(self, total_frames: int, fps: float) -> int:
        """How many frames of a clip are taken: an even number, at least 2.

        ``total_frames / fps * target_fps`` is held within the limits and rounded to an even number
        (half of it rounds half to even, as Python does). A fixed ``num_frames`` above an odd
        ``total_frames`` is capped to the even number below it: the public sampler keeps it odd and
        then fails to pair the frames.

        Raises:
            UserError: fewer than 2 frames, or a playback rate that is not positive.
        """
        if total_frames < TEMPORAL_PATCH:
            raise UserError(
                "the clip is too short for a video reward",
                received=f"{total_frames} frame(s)",
                expected=f">= {TEMPORAL_PATCH}",
            )
        if not (fps > 0 and math.isfinite(fps)):
            raise UserError(
                "playback rate is not positive",
                received=fps,
                expected="frames per second > 0",
                remedy="pass the rate at which the clip is meant to be played",
            )
        all_pairs = total_frames // TEMPORAL_PATCH * TEMPORAL_PATCH
        if self.num_frames is not None:
            wanted: float = self.num_frames
        else:
            wanted = max(total_frames / fps * self.target_fps, self.min_frames)
            wanted = min(wanted, self.max_frames)
        return min(round(wanted / TEMPORAL_PATCH) * TEMPORAL_PATCH, all_pairs)

    def indices(self, total_frames: int, fps: float) -> Tensor:
        """Indices of the frames taken, int64 [count], from the first frame to the last.

        float32 steps rounded half to even, as in the public sampler: positions halfway between two
        frames fall to the same side.
        """
        count = self.count(total_frames, fps)
        return torch.linspace(0, total_frames - 1, count).round().long()
