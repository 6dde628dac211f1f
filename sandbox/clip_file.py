"""Oracle scores of a clip in a file (`sandbox oracles`)."""

from pathlib import Path

import torch.nn.functional as F

from longtake.core.video import read_video
from longtake.runtime.errors import UserError
from longtake.sandbox.facts import FRAME_PX
from longtake.sandbox.oracles import oracle_scores


def score_file(path: Path, caption: str) -> dict[str, float]:
    """Score a clip file by every oracle, each in [0, 1]; NaN where a clip cannot be judged.

    Files that were enlarged by a whole factor for human eyes are averaged back first, because the
    oracles measure speeds and sizes in pixels of the sandbox.

    Raises:
        UserError: an unreadable file, another size, or a caption outside of the grammar.
    """
    video, _ = read_video(path)  # [T, 3, H, W], uint8
    height, width = video.shape[-2:]
    if height != width or height % FRAME_PX:
        raise UserError(
            "not a sandbox clip",
            received=f"{height}x{width} pixels in {path}",
            expected=f"{FRAME_PX}x{FRAME_PX} pixels, or a whole multiple",
        )
    pixels = F.avg_pool2d(video.float() / 255, height // FRAME_PX)
    return {name: score.item() for name, score in oracle_scores(pixels[None], [caption]).items()}
