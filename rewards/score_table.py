"""The output of file scoring: one row per clip in a CSV or JSONL file that survives a kill."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from longtake.runtime.errors import UserError
from longtake.runtime.files import replacing, to_plain

_BEFORE = ("path", "prompt", "fps", "frames")
_AFTER = ("unscored", "notes", "settings", "digest")


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """Scores of one clip."""

    path: str
    """Name of the clip: relative to the folder or as in the CSV."""
    prompt: str
    """Caption that was used."""
    fps: float | None
    """Playback rate that was used; None when there is none."""
    frames: int | None
    """Number of frames; None when the file could not be read."""
    scores: Mapping[str, float | None]
    """Score by reward; None where unscored."""
    unscored: Mapping[str, str] = field(default_factory=dict)
    """Reason by reward, for the unscored ones."""
    notes: Sequence[str] = ()
    """What a reader of the scores should know."""
    settings: str
    """Digest of the fingerprints of the rewards."""
    digest: str
    """Digest of the file, the caption, the given rate and the settings; empty without a file."""


def read_table(path: Path, names: Sequence[str]) -> list[ScoreRow]:
    """The complete rows of a table; a torn last row (a kill) is left out.

    Args:
        path: ``.csv`` or ``.jsonl``.
        names: the rewards.

    Raises:
        UserError: another ending, unreadable, not a score table, or one of other rewards.
    """
    form = _form(path)
    if not path.exists():
        return []
    try:
        return form.read(path.read_bytes().decode("utf-8", "surrogateescape"), names)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, csv.Error) as error:
        raise UserError(
            f"the output file cannot be continued: {error}",
            received=str(path),
            expected=f"a table of scores of {', '.join(names)}",
            remedy="choose another --output",
        ) from error


def write_table(path: Path, names: Sequence[str], rows: Sequence[ScoreRow]) -> None:
    """Write the whole table; the file is the old one or the new one, also after a kill.

    Raises:
        UserError: the file cannot be written.
    """
    form = _form(path)
    text = form.header(names) + "".join(form.line(row, names) for row in rows)
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(text.encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise _unwritable(path, error) from error


def append_row(path: Path, names: Sequence[str], row: ScoreRow) -> None:
    """Add one row at the end.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        with path.open("ab") as file:
            file.write(_form(path).line(row, names).encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise _unwritable(path, error) from error


@dataclass(frozen=True)
class _Form:
    """A file format: its first line, a row as text, and the rows of a text."""

    header: Callable[[Sequence[str]], str]
    line: Callable[[ScoreRow, Sequence[str]], str]
    read: Callable[[str, Sequence[str]], list[ScoreRow]]


def _form(path: Path) -> _Form:
    if path.suffix.lower() not in _FORMS:
        raise UserError(
            "the output format is unknown",
            received=path.name,
            expected="a name that ends in " + " or ".join(_FORMS),
        )
    return _FORMS[path.suffix.lower()]


def _csv_line(cells: Sequence[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _csv_header(names: Sequence[str]) -> str:
    return _csv_line([*_BEFORE, *names, *_AFTER])


def _csv_row(row: ScoreRow, names: Sequence[str]) -> str:
    unscored = json.dumps(dict(row.unscored), ensure_ascii=False) if row.unscored else ""
    notes = json.dumps(list(row.notes), ensure_ascii=False) if row.notes else ""
    scores = [row.scores[name] for name in names]
    return _csv_line([row.path, row.prompt, row.fps, row.frames, *scores, unscored, notes,
                      row.settings, row.digest])  # fmt: skip


def _read_csv(text: str, names: Sequence[str]) -> list[ScoreRow]:
    # A line break inside a quoted caption ends no row: there, the number of quotes is odd.
    end = len(text)
    while end and not (text[end - 1] == "\n" and text.count('"', 0, end) % 2 == 0):
        end = text.rfind("\n", 0, end - 1) + 1
    records = list(csv.reader(io.StringIO(text[:end], newline=""), strict=True))
    if not records:
        return []
    columns = [*_BEFORE, *names, *_AFTER]
    if records[0] != columns:
        raise ValueError(f"its columns are {', '.join(records[0])}")
    rows = []
    for record in records[1:]:
        cells = dict(zip(columns, record, strict=True))
        rows.append(
            ScoreRow(
                path=cells["path"],
                prompt=cells["prompt"],
                fps=float(cells["fps"]) if cells["fps"] else None,
                frames=int(cells["frames"]) if cells["frames"] else None,
                scores={name: float(cells[name]) if cells[name] else None for name in names},
                unscored=json.loads(cells["unscored"] or "{}"),
                notes=json.loads(cells["notes"] or "[]"),
                settings=cells["settings"],
                digest=cells["digest"],
            )
        )
    return rows


def _json_row(row: ScoreRow, names: Sequence[str]) -> str:
    return json.dumps(to_plain(asdict(row)), ensure_ascii=False, allow_nan=False) + "\n"


def _read_json(text: str, names: Sequence[str]) -> list[ScoreRow]:
    rows = []
    for line in text.split("\n")[:-1]:  # the last piece has no line break: empty or torn
        record: dict[str, Any] = json.loads(line)
        row = ScoreRow(**record)
        if sorted(row.scores) != sorted(names):
            raise ValueError(f"it holds scores of {', '.join(row.scores)}")
        rows.append(row)
    return rows


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"cannot write the scores: {error.strerror or error}",
        received=str(path),
        expected="a writable folder with free space",
        remedy="mend it and run the same command again: scored rows are kept",
    )


_FORMS = {
    ".csv": _Form(header=_csv_header, line=_csv_row, read=_read_csv),
    ".jsonl": _Form(header=lambda names: "", line=_json_row, read=_read_json),
}
