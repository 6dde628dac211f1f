"""Which frames of a batch are equal, so that a still clip costs one frame.

Frames are compared by digest after the quantisation to 8 bits, the first step of every published
image preprocessing: a float clip and its 8-bit copy hold the same frames.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from longtake.rewards.pixels import to_uint8


@dataclass(frozen=True)
class UniqueFrames:
    """The different frames of some clips.

    Args:
        slots: [B, F] int64, which different frame stands there; -1 for clips that were left out.
        places: clip and frame index of the first appearance of each different frame.
        digests: sha256 of each different frame.
        repeated: [B] int64, frames of a clip that equal an earlier frame of the same clip.
    """

    slots: Tensor
    places: tuple[tuple[int, int], ...]
    digests: tuple[bytes, ...]
    repeated: Tensor


def unique_frames(video: Tensor, frame_idx: Tensor, clips: Sequence[int]) -> UniqueFrames:
    """Find equal frames within and across clips.

    Args:
        video: [B, T, 3, H, W], uint8 or float in [0, 1].
        frame_idx: [F] int64, the frames of every clip that count.
        clips: indices of the clips whose frames are read; their pixels are finite.
    """
    slots = torch.full((video.shape[0], len(frame_idx)), -1)
    repeated = torch.zeros(video.shape[0], dtype=torch.long)
    known: dict[bytes, int] = {}
    places: list[tuple[int, int]] = []
    for clip in clips:
        digests = _digests(to_uint8(video[clip, frame_idx.to(video.device)]))
        repeated[clip] = len(digests) - len(set(digests))
        for position, (frame, digest) in enumerate(zip(frame_idx.tolist(), digests, strict=True)):
            if digest not in known:
                known[digest] = len(known)
                places.append((clip, frame))
            slots[clip, position] = known[digest]
    return UniqueFrames(slots, tuple(places), tuple(known), repeated)


def _digests(frames: Tensor) -> list[bytes]:
    rows = frames.cpu().contiguous().flatten(1).numpy()
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        return list(pool.map(lambda row: hashlib.sha256(row).digest(), rows))
