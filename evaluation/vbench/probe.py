"""Frames, rate and size of video files from their headers; which files are unlike the others."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av

_RATE_TOLERANCE = 0.01
"""Relative: 23.976 and 24 frames per second count as the same rate."""


@dataclass(frozen=True, kw_only=True)
class VideoFacts:
    """What a file's header says."""

    frames: int
    fps: float
    """Frames per second; NaN when the file states none."""
    width: int
    height: int
    problem: str = ""
    """Why the file cannot be scored; empty when it can."""

    def __str__(self) -> str:
        return f"{self.frames} frames at {self.fps:g} fps, {self.width}x{self.height}"


def probe(path: Path) -> VideoFacts:
    """Read the header, count the packets and decode the first frames.

    A file that cannot be decoded has a ``problem`` instead of raising: one bad file of thousands is
    a result, not an accident.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                return _broken("no video stream")
            stream = container.streams.video[0]
            rate: Fraction | None = stream.average_rate
            size = (stream.width, stream.height)
            stated = stream.frames
            frames, decodable = 0, False
            for packet in container.demux(video=0):
                frames += packet.size > 0  # the last packet is empty: it flushes the decoder
                decodable = decodable or bool(packet.decode())
    except (av.FFmpegError, OSError, ValueError) as error:
        return _broken(str(error))
    if not decodable:
        return _broken("no frame can be decoded")
    if frames < stated:
        return _broken(f"torn: {frames} of {stated} frames")
    return VideoFacts(
        frames=frames, fps=float(rate) if rate else math.nan, width=size[0], height=size[1]
    )


def _broken(problem: str) -> VideoFacts:
    return VideoFacts(frames=0, fps=math.nan, width=0, height=0, problem=problem)


def unlike_the_rest(facts: Mapping[str, VideoFacts], fps: float | None = None) -> dict[str, str]:
    """Files whose rate, length or size differs from most, and why; unreadable ones as well.

    Args:
        facts: by name.
        fps: the rate that all files should have; None takes the most frequent one.
    """
    readable = [f for f in facts.values() if not f.problem]
    usual = Counter((f.frames, f.width, f.height) for f in readable).most_common(1)
    rates = Counter(f.fps for f in readable).most_common(1)
    expected = fps if fps is not None else rates[0][0] if rates else math.nan
    odd: dict[str, str] = {}
    for name, found in facts.items():
        if found.problem:
            odd[name] = f"unreadable: {found.problem}"
            continue
        reasons = []
        if not math.isclose(found.fps, expected, rel_tol=_RATE_TOLERANCE):
            reasons.append(f"{found.fps:g} fps instead of {expected:g}")
        frames, width, height = usual[0][0]
        if found.frames != frames:
            reasons.append(f"{found.frames} frames instead of {frames}")
        if (found.width, found.height) != (width, height):
            reasons.append(f"{found.width}x{found.height} instead of {width}x{height}")
        if reasons:
            odd[name] = ", ".join(reasons)
    return odd
