"""HTML pages: one file each, nothing loaded from outside, texts escaped by the template engine.

A template stands beside the code that fills it, extends ``runtime/page.html.j2`` and takes tables,
players and figures from ``runtime/parts.html.j2``. HTML made elsewhere is passed as ``Markup``.
"""

import base64
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

PICTURES = {
    ".gif": "image/gif",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
}
MEDIA = {**PICTURES, ".mp4": "video/mp4", ".webm": "video/webm"}
"""Endings that browsers show or play, with their types."""

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).resolve().parents[1]),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.tests["picture"] = lambda uri: (
    uri.startswith("data:image/") or uri.partition("?")[0].lower().endswith(tuple(PICTURES))
)


def render_page(template: str, **context: object) -> str:
    """The page of a template, named from the root of the package: ``grpo/report.html.j2``."""
    return _TEMPLATES.get_template(template).render(context)


def data_uri(content: bytes, ending: str) -> str:
    """A file as an address that holds it; KeyError for an ending that browsers have no type for."""
    return f"data:{MEDIA[ending.lower()]};base64,{base64.b64encode(content).decode('ascii')}"


def uri_length(path: Path) -> int:
    """Characters of the data URI of a file, told without reading it."""
    return len(data_uri(b"", path.suffix)) + 4 * -(-path.stat().st_size // 3)


class Embedder:
    """Turns files into data URIs until a budget is spent.

    Args:
        budget: characters that all URIs together may take.
    """

    def __init__(self, budget: int) -> None:
        self._left = budget

    def uri(self, path: Path) -> str | None:
        """The file as a data URI; None if it does not fit any more."""
        size = uri_length(path)
        if size > self._left:
            return None
        self._left -= size
        return data_uri(path.read_bytes(), path.suffix)
