"""What to know of a video before raters get it: whether browsers play it, what its file says."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import av

CODECS = frozenset(("av1", "h264", "libdav1d", "vp8", "vp9"))
"""Decoders of what Chromium and Firefox both play; they lack HEVC and MPEG-4 part 2."""
ENDINGS = frozenset((".mp4", ".webm"))


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoFacts:
    """What a file says."""

    problem: str = ""
    """Why browsers may not play it; empty when they do."""
    tags: tuple[str, ...] = ()
    """Texts in the container, such as title, comment and encoder."""

    def names(self, models: Iterable[str]) -> list[str]:
        """Models that a tag names as a word of its own."""
        text = "\n".join(self.tags)
        words = {model: rf"(?<!\w){re.escape(model)}(?!\w)" for model in models}
        return [model for model, word in words.items() if re.search(word, text, re.IGNORECASE)]


def video_facts(path: Path) -> VideoFacts:
    """Read the head of a video."""
    try:
        with av.open(str(path)) as container:
            videos = [stream.codec_context.name for stream in container.streams.video]
            tables = (container.metadata, *(stream.metadata for stream in container.streams))
            tags = tuple(str(value) for table in tables for value in table.values())
    except (av.FFmpegError, OSError, ValueError) as error:
        return VideoFacts(problem=f"cannot be read: {type(error).__name__}")
    problem = ""
    if not videos:
        problem = "holds no video"
    elif path.suffix.lower() not in ENDINGS:
        problem = f"ending {path.suffix or 'missing'}"
    elif videos[0] not in CODECS:
        problem = f"codec {videos[0]}"
    return VideoFacts(problem=problem, tags=tags)
