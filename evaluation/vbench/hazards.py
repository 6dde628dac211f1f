"""Ways in which the public code gives results that mean nothing, seen before or after it ran.

Human Anatomy's 1 for videos without a person and Human Interaction's sampled answer leave no trace;
:meth:`DimensionResults.notes` states them.
"""

import glob
import re
from collections.abc import Iterable
from pathlib import Path

from longtake.evaluation.vbench.probe import VideoFacts

_FAILED_CLIP = re.compile(r"Error processing video: .*/(?P<stem>.+)_clip_\d{4}\.mp4")
_CLIP_S = 2


def unfit(dimension: str, facts: VideoFacts) -> str:
    """Why a video must not be given to the public code; empty when it may.

    Instance Preservation cuts a video into clips of two seconds and gives 1 when no clip shows an
    anomaly, also when there is no clip.
    """
    if facts.problem:
        return f"unreadable: {facts.problem}"
    if dimension == "Instance_Preservation" and facts.frames // facts.fps < _CLIP_S:
        return f"shorter than {_CLIP_S} s: upstream judges no clip of it and gives 1"
    return ""


def clear_stale_clips(dimension: str, root: Path, links: Iterable[Path]) -> None:
    """Remove clips that Instance Preservation cut earlier from videos of the same names.

    It keeps them in ``model_clip/<model>/`` of the checkout and never cuts a clip again, so another
    model's, or a replaced video's, old clips would be judged.

    Args:
        dimension: name.
        root: folder that the public code is started from.
        links: videos that it will be given, ``.../<model>/<dimension>/<name>``.
    """
    if dimension != "Instance_Preservation":
        return
    for link in links:
        clips = root / "model_clip" / link.parts[-3]
        for old in clips.glob(f"{glob.escape(link.stem)}_clip_*.mp4"):
            old.unlink()


def inflated_results(
    dimension: str, entries: Iterable[tuple[str, object]], log: Path
) -> dict[str, str]:
    """Videos whose result must not count, and why.

    Instance Preservation takes a clip that it could not judge for one without anomaly (a bare
    `except`; for example where ffmpeg lacks the encoder), and says so only in its output.

    Args:
        dimension: name.
        entries: file name and result of the videos that the attempt finished.
        log: output of the attempt.
    """
    if dimension != "Instance_Preservation":
        return {}
    text = log.read_text(encoding="utf-8", errors="replace")
    failed = {match["stem"] for match in _FAILED_CLIP.finditer(text)}
    reason = "judging a clip failed, which upstream takes for no anomaly"
    return {name: reason for name, value in entries if value == 1 and Path(name).stem in failed}
