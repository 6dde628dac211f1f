"""Which videos browsers play: told before raters find out."""

from pathlib import Path

import av

CODECS = frozenset(("av1", "h264", "libdav1d", "vp8", "vp9"))
"""Decoders of what Chromium and Firefox both play; they lack HEVC and MPEG-4 part 2."""
ENDINGS = frozenset((".mp4", ".webm"))


def why_not_played(path: Path) -> str:
    """Why browsers may not play a video; empty when they do."""
    if path.suffix.lower() not in ENDINGS:
        return f"ending {path.suffix or 'missing'}"
    try:
        with av.open(str(path)) as container:
            codecs = [stream.codec_context.name for stream in container.streams.video]
    except (av.FFmpegError, OSError, ValueError) as error:
        return f"cannot be read: {type(error).__name__}"
    if not codecs:
        return "holds no video"
    return "" if codecs[0] in CODECS else f"codec {codecs[0]}"
