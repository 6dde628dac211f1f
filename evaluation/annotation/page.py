"""The page of one rater: items as JSON, and a small script that shows them and keeps answers.

The page knows opaque ids and file names only. What it saves is a log of ratings that
:func:`longtake.evaluation.ratings.read_ratings` reads. The provenance of each: ``study``, ``page``,
``format`` and ``longtake`` (what was answered), ``asked`` (answers that the whole page asks for),
``position`` (place of the item, from 1), ``seconds`` (time on the item), ``plays`` (to the end),
``revision`` (how often the answer was changed), ``viewport``, ``comment`` (of the item) and, for
pairs, ``shown`` (sides from left to right).
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from markupsafe import Markup

from longtake import __version__
from longtake.evaluation.dimensions import DIMENSIONS, TIER_WORDS, title_of
from longtake.evaluation.ratings import opaque_name
from longtake.runtime.errors import UserError
from longtake.runtime.files import explained, write_text
from longtake.runtime.html import MEDIA, data_uri, render_page, uri_length

Kind = Literal["mos", "gsb"]

FORMAT = 1
"""Of the page and of what it saves; a higher number once one of them changes."""
EMBED_BYTES = 20_000_000
"""Videos and images that take less in the page are put into it: it is then the only file."""
REASONS = ("The clip does not play.", "I do not understand the text.", "I do not know the subject.")
"""Offered for "cannot judge"; raters may write their own."""

_ASKED = ("question", "aspects", "tiers")
"""What a page shows of a listed dimension; your own have only the words of the scale."""
_PARTS = Path(__file__).parent
_SCRIPTS = ("answers.js", "player.js", "screen.js")


@dataclass(frozen=True, kw_only=True, slots=True)
class PageItem:
    """One clip, or two clips side by side."""

    id: str
    """Opaque; the ``sample`` of the answers."""
    caption: str
    dimensions: tuple[str, ...]
    videos: tuple[Path, ...]
    """Blind files, as is the image: one video, or left and right."""
    image: Path | None = None


def write_page(
    path: Path,
    kind: Kind,
    study: str,
    rater: str,
    items: Sequence[PageItem],
    embed_bytes: int = EMBED_BYTES,
) -> bool:
    """Write the page of one rater. Returns whether it holds its videos, so needs no other file.

    Answers name the ``study``, a digest of what is rated. Without a ``rater`` the page asks for the
    name. Embedded files may take ``embed_bytes`` characters; if they need more, all are linked.
    """
    images = [item.image for item in items if item.image is not None]
    files = dict.fromkeys([*(video for item in items for video in item.videos), *images])
    with explained("read a file for the page", path):
        addresses, is_whole = _addresses(path.parent, list(files), embed_bytes)
    names = dict.fromkeys(name for item in items for name in item.dimensions)
    content: dict[str, Any] = {
        "format": FORMAT,
        "kind": kind,
        "longtake": __version__,
        "study": study,
        "rater": rater,
        "tiers": TIER_WORDS,
        "dimensions": [
            {"name": name, "title": title_of(name), "question": "", "aspects": (), "tiers": ()}
            | {key: getattr(DIMENSIONS[name], key) for key in _ASKED if name in DIMENSIONS}
            for name in names
        ],
        "items": [
            {
                "id": item.id,
                "caption": item.caption,
                "dimensions": item.dimensions,
                "videos": [addresses[file] for file in item.videos],
                "image": addresses[item.image] if item.image else "",
            }
            for item in items
        ],
    }
    # Answers are kept in the browser under this name: another page must not find them.
    content["page"] = opaque_name(json.dumps(content))
    text = render_page(
        "evaluation/annotation/page.html.j2",
        title="Rating of clips",
        style=Markup((_PARTS / "page.css").read_text("utf-8")),
        reasons=REASONS,
        study=Markup(script_json(content)),
        script=Markup("\n".join((_PARTS / name).read_text("utf-8") for name in _SCRIPTS)),
    )
    # A page that was sent is the only reader of the answers that its rater's browser keeps.
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise UserError(
            "another page is there already and may be in use",
            received=str(path),
            remedy="bring in what was saved from it; then delete it or choose another --output-dir",
        )
    write_text(path, text)
    return is_whole


def script_json(content: object) -> str:
    """JSON that no text in it can end: without a ``<``, and ASCII throughout."""
    return json.dumps(content).replace("<", "\\u003c").replace(">", "\\u003e")


def _addresses(
    folder: Path, files: Sequence[Path], embed_bytes: int
) -> tuple[dict[Path, str], bool]:
    """All files as data URIs if they fit (and True), else all as links: easy to tell raters."""
    # One page that needs its folder and one that does not is what raters get wrong.
    has_types = all(file.suffix.lower() in MEDIA for file in files)
    if has_types and sum(map(uri_length, files)) <= embed_bytes:
        return {file: data_uri(file.read_bytes(), file.suffix) for file in files}, True
    links = {file: quote(Path(os.path.relpath(file, folder)).as_posix()) for file in files}
    return links, False
