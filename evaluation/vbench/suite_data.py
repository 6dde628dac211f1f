"""Prompts of a suite from the user's copy: its JSON file, a checkout, or the published wheel.

Nothing is imported or executed: a wheel is read as a zip.
"""

import hashlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longtake.evaluation.vbench.suites import Suite
from longtake.runtime.errors import UserError

KNOWN_VERSIONS = {
    "115e54e02ffbeee118ffe598fb497e9a4e40232a4ac4e0a3fd4e33867590a272": (
        "VBench 2.0 at commit 45e79ec"
    ),
    "006cb020b7ec510aff30c59dd92397af5b11bc98a90dcba31bc4e6d36d2e9f89": (
        "VBench 2.0 of the wheel vbench2 0.1.1: one prompt stands there twice, so it has 3,206 "
        "videos instead of the 3,209 of commit 45e79ec"
    ),
    "5dd2de80ee43cda750b2b72ea7023657c0b90d3702041c7e4608c65dbe50dccd": (
        "VBench 1.0 of the wheel vbench 0.1.5"
    ),
}
"""SHA-256 of a prompt file -> which one it is."""


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """One row of the prompt file: a prompt and dimensions that it tests."""

    prompt: str
    """English prompt; it also names the videos."""
    dimensions: tuple[str, ...]
    auxiliary: Any = None
    """What the public code needs to score the row: questions, labels; None: nothing."""

    def as_upstream(self, dimension: str, videos: Sequence[str]) -> dict[str, Any]:
        """The row as the public code wants it, with the videos to score for one dimension."""
        record = {"prompt_en": self.prompt, "dimension": [dimension], "video_list": list(videos)}
        return record if self.auxiliary is None else {**record, "auxiliary_info": self.auxiliary}


@dataclass(frozen=True, kw_only=True)
class SuiteData:
    """The prompts of one version of a suite."""

    suite: Suite
    rows: tuple[PromptRow, ...]
    source: str
    """File that was read."""
    digest: str
    """SHA-256 of its bytes."""
    remarks: tuple[str, ...] = field(default=())
    """What a reader should know: which version, repeated rows."""


def read_suite(suite: Suite, source: Path) -> SuiteData:
    """Read and check the prompts of a suite.

    Args:
        suite: which one.
        source: the JSON file, a checkout of the public repository (or a folder inside it that
            holds the package), or a wheel.

    Raises:
        UserError: nothing usable is at ``source``; names the file and the row.
    """
    where, content = _find(suite, source)
    digest = hashlib.sha256(content).hexdigest()
    try:
        records = json.loads(content.decode("utf-8"))
    except ValueError as error:
        raise _wrong(suite, where, f"it is not JSON ({error})") from error
    if not isinstance(records, list) or not records:
        raise _wrong(suite, where, "it is not a list of prompts")
    rows: dict[tuple[str, tuple[str, ...]], PromptRow] = {}
    repeats = []
    for number, record in enumerate(records):
        row = _row(suite, where, number, record)
        key = (row.prompt, row.dimensions)
        if key in rows:
            repeats.append(f"`{row.prompt}` in {', '.join(row.dimensions)}")
        rows.setdefault(key, row)
    remarks = [KNOWN_VERSIONS.get(digest, f"an unknown version of {suite.title}")]
    if repeats:
        remarks.append(f"a repeated row is used once: {'; '.join(repeats)}")
    return SuiteData(
        suite=suite,
        rows=tuple(rows.values()),
        source=where,
        digest=digest,
        remarks=tuple(remarks),
    )


def _find(suite: Suite, source: Path) -> tuple[str, bytes]:
    """Name and bytes of the prompt file."""
    inner = f"{suite.package}/{suite.prompt_file}"
    try:
        if source.is_dir():
            places = [source / suite.prompt_file, source / inner, source / suite.folder / inner]
            for place in places:
                if place.is_file():
                    return str(place), place.read_bytes()
        elif zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive:
                return f"{source}:{inner}", archive.read(inner)
        elif source.is_file():
            return str(source), source.read_bytes()
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise _wrong(suite, str(source), f"it cannot be read ({error})") from error
    raise _wrong(suite, str(source), "there is none")


def _row(suite: Suite, where: str, number: int, record: object) -> PromptRow:
    if not isinstance(record, dict):
        raise _wrong(suite, where, f"row {number} is no object")
    prompt, dimensions = record.get("prompt_en"), record.get("dimension")
    if not isinstance(prompt, str) or not prompt or "/" in prompt or "\0" in prompt:
        raise _wrong(suite, where, f"row {number} has no prompt that can name a file: {prompt!r}")
    known = isinstance(dimensions, list) and all(name in suite.dimensions for name in dimensions)
    if not known or not dimensions:
        raise _wrong(suite, where, f"row {number} has unknown dimensions: {dimensions!r}")
    return PromptRow(
        prompt=prompt, dimensions=tuple(dimensions), auxiliary=record.get("auxiliary_info")
    )


def _wrong(suite: Suite, where: str, problem: str) -> UserError:
    return UserError(
        f"the prompts of {suite.title} cannot be taken from here: {problem}",
        received=where,
        expected=f"{suite.prompt_file}, a checkout of the public VBench repository, or the wheel",
        remedy=f"for example: pip download --no-deps {suite.package}",
    )
