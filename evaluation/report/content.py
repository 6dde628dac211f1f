"""A report as plain data, before it becomes HTML, Markdown or JSON."""

import hashlib
from dataclasses import dataclass, field
from typing import Literal

from longtake.evaluation.findings import Finding
from longtake.evaluation.tables import Table
from longtake.runtime.html import data_uri

Way = Literal["first", "second", "mixed", "none"]
"""Which model a comparison favours; `mixed`: each on something; `none`: no difference shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A file that numbers come from."""

    number: int
    """From 1; tables name their sources by it."""
    path: str
    """As it was given or found."""
    sha256: str
    """Digest of the content that was read."""
    size: int
    """Bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """A paragraph of plain text."""

    text: str

    def as_record(self) -> dict[str, object]:
        """JSON-ready."""
        return {"kind": "text", "text": self.text}


@dataclass(frozen=True, kw_only=True, slots=True)
class TableBlock:
    """A table and the files its numbers come from."""

    table: Table
    sources: tuple[int, ...]
    """Numbers of :class:`Source`."""
    detail: bool = False
    """Whether a page may fold it away."""

    def as_record(self) -> dict[str, object]:
        """JSON-ready but for NaN, which stands for missing."""
        return {
            "kind": "table",
            "name": self.table.name,
            "title": self.table.title,
            "columns": list(self.table.columns),
            "rows": [list(row) for row in self.table.rows],
            "note": self.table.note,
            "sources": list(self.sources),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A picture."""

    name: str
    """File name, unique in the report, such as ``mos-1.png``."""
    png: bytes = field(repr=False)
    caption: str

    def as_record(self) -> dict[str, object]:
        """JSON-ready; the picture is named with its digest."""
        digest = hashlib.sha256(self.png).hexdigest()
        return {"kind": "figure", "file": self.name, "sha256": digest, "caption": self.caption}

    def uri(self) -> str:
        """The picture as a data URI."""
        return data_uri(self.png, ".png")


@dataclass(frozen=True, kw_only=True, slots=True)
class Video:
    """One video, or where it should have been."""

    model: str
    label: str
    """Its score in words."""
    path: str
    """Where it was looked for."""
    uri: str = field(default="", repr=False)
    """Data URI, or a relative link; empty when there is nothing to play."""
    problem: str = ""
    """Why it cannot be played or is only linked; empty otherwise."""

    @property
    def is_inline(self) -> bool:
        """Whether the page itself holds it."""
        return self.uri.startswith("data:")

    def as_record(self) -> dict[str, object]:
        """JSON-ready, without the content."""
        return {
            "model": self.model,
            "label": self.label,
            "path": self.path,
            "shown": "inline" if self.is_inline else "linked" if self.uri else "missing",
            "problem": self.problem,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoRow:
    """The videos of one prompt beside each other."""

    caption: str
    """Text of the prompt, else its id."""
    why: str
    """Why this prompt was chosen."""
    videos: tuple[Video, ...]

    def as_record(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "kind": "videos",
            "caption": self.caption,
            "why": self.why,
            "videos": [video.as_record() for video in self.videos],
        }


def source_ranges(numbers: tuple[int, ...]) -> list[tuple[int, int]]:
    """Ascending numbers as (first, last) of each run without a gap."""
    runs: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


Block = Text | TableBlock | Figure | VideoRow


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """Blocks under one heading."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The answer of a comparison."""

    way: Way
    sentence: str
    """The answer in one sentence."""
    notes: tuple[str, ...]
    """How sure, and on what."""

    def as_record(self) -> dict[str, object]:
        """JSON-ready."""
        return {"way": self.way, "sentence": self.sentence, "notes": list(self.notes)}


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything a page shows."""

    title: str
    version: str
    """Of longtake."""
    created: str
    """ISO 8601."""
    sections: tuple[Section, ...]
    sources: tuple[Source, ...]
    findings: tuple[Finding, ...]
    """Everything irregular in the input."""
    verdict: Verdict | None = None
    """Of a comparison; None in a report."""

    @property
    def figures(self) -> tuple[Figure, ...]:
        """All pictures, in order."""
        blocks = (block for section in self.sections for block in section.blocks)
        return tuple(block for block in blocks if isinstance(block, Figure))

    def as_record(self) -> dict[str, object]:
        """JSON-ready but for NaN, which stands for missing."""
        return {
            "kind": "report",
            "title": self.title,
            "longtake": self.version,
            "created": self.created,
            "verdict": None if self.verdict is None else self.verdict.as_record(),
            "sections": [
                {"title": s.title, "blocks": [block.as_record() for block in s.blocks]}
                for s in self.sections
            ],
            "sources": [
                {"number": s.number, "path": s.path, "sha256": s.sha256, "bytes": s.size}
                for s in self.sources
            ],
            "findings": [finding.as_record() for finding in self.findings],
        }
