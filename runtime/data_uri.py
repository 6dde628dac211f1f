"""Pictures and videos inside a page, until its budget is spent."""

import base64
from pathlib import Path

MEDIA = {
    ".gif": "image/gif",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".mp4": "video/mp4",
    ".png": "image/png",
    ".webm": "video/webm",
    ".webp": "image/webp",
}
"""Endings that browsers show or play, with their types."""


def data_uri(content: bytes, ending: str) -> str:
    """A file as an address that holds it.

    Raises:
        KeyError: browsers have no type for the ending.
    """
    return f"data:{MEDIA[ending.lower()]};base64,{base64.b64encode(content).decode('ascii')}"


def uri_length(path: Path) -> int:
    """Characters of the data URI of a file, told without reading it.

    Raises:
        OSError: there is no file.
        KeyError: browsers have no type for its ending.
    """
    return len(data_uri(b"", path.suffix)) + 4 * -(-path.stat().st_size // 3)


class Embedder:
    """Turns files into data URIs until a budget is spent.

    Args:
        budget: characters that all URIs together may take.
    """

    def __init__(self, budget: int) -> None:
        self._left = budget

    def uri(self, path: Path) -> str | None:
        """The file as a data URI; None if it does not fit any more.

        Raises:
            OSError: the file cannot be read.
            KeyError: browsers have no type for its ending.
        """
        size = uri_length(path)
        if size > self._left:
            return None
        self._left -= size
        return data_uri(path.read_bytes(), path.suffix)
