"""Files of preference pairs: the public CSV of VideoAlign and the public JSON of HPSv3.

Every value is checked when it is read. The error lists the first bad rows by number, counted as a
spreadsheet does: the header of a CSV is row 1; the first entry of a JSON list is row 1.
"""

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from longtake.rewards.preference_data import (
    LABELS,
    OVERALL,
    PreferencePair,
)
from longtake.rewards.preference_labels import (
    A_WINS,
    LABEL_OF_WORD,
    UNLABELLED,
    WORD_OF_LABEL,
)
from longtake.rewards.reward_spec import DIMENSIONS
from longtake.runtime.errors import RunDirectoryError, UserError

CLIP_COLUMNS = (
    "path_A",
    "path_B",
    "prompt",
    "fps_A",
    "num_frames_A",
    "fps_B",
    "num_frames_B",
)
CONFIDENCE_THRESHOLD = 0.95
"""Pairs below it do not enter HPSv3's training."""

_MAX_LISTED = 5
T = TypeVar("T")
Problems = list[str]


def read_preference_csv(path: Path) -> list[PreferencePair]:
    """Read the columns of VideoAlign's data.

    Needed: ``path_A, path_B, prompt, fps_A, num_frames_A, fps_B, num_frames_B`` and at least one of
    the label columns ``VQ, MQ, TA, Overall`` (A, B or same; empty = not judged). Optional:
    ``MOS_A_VQ``, ``MOS_B_VQ`` and so on (a number or empty). Other columns are left aside.

    Raises:
        UserError: unreadable, without pairs, missing columns, or wrong values (with row numbers).
    """
    header, rows = _read_csv(path)
    missing = [name for name in CLIP_COLUMNS if name not in header]
    dimensions = [name for name in LABELS if name in header]
    if missing or not dimensions:
        raise UserError(
            "columns of the preference data are missing",
            received=f"{path} with {', '.join(header)}",
            expected=f"{', '.join(CLIP_COLUMNS)} and one or more of {', '.join(LABELS)}",
            remedy="add " + (", ".join(missing) if missing else "a column of labels"),
        )
    problems: Problems = []
    pairs = []
    for number, cells in rows:
        row = _Row(f"row {number}", dict(zip(header, cells, strict=False)), problems)
        if len(cells) != len(header):
            row.report(f"{len(cells)} cells, expected {len(header)}")
            continue
        labels = {name: row.read(name, _label, "A, B, same or empty") for name in dimensions}
        pair = PreferencePair(
            prompt=row.read("prompt", _text, "a text"),
            path_a=row.read("path_A", _text, "a file"),
            path_b=row.read("path_B", _text, "a file"),
            labels={name: label for name, label in labels.items() if label != UNLABELLED},
            fps_a=row.read("fps_A", _positive, "a rate above 0"),
            fps_b=row.read("fps_B", _positive, "a rate above 0"),
            num_frames_a=row.read("num_frames_A", _count, "a whole number above 0"),
            num_frames_b=row.read("num_frames_B", _count, "a whole number above 0"),
            mos_a=row.read_mos("A"),
            mos_b=row.read_mos("B"),
        )
        pairs.append(pair)
    _raise_problems(path, problems)
    return _not_empty(path, pairs)


def write_preference_csv(pairs: Sequence[PreferencePair], path: Path) -> Path:
    """Write what :func:`read_preference_csv` reads back to equal pairs.

    Raises:
        UserError: a pair without playback rate or number of frames.
        RunDirectoryError: the file cannot be written.
    """
    has_overall = any(OVERALL in pair.labels for pair in pairs)
    dimensions = LABELS if has_overall else DIMENSIONS
    mos_columns = {
        f"MOS_{side}_{name}": (side, name)
        for name in LABELS
        for side in "AB"
        if any(name in _mos(pair, side) for pair in pairs)
    }
    rows: list[dict[str, object]] = []
    for number, pair in enumerate(pairs):
        timing = (pair.fps_a, pair.num_frames_a, pair.fps_b, pair.num_frames_b)
        if None in timing:
            raise UserError(
                f"pair {number} does not fit the CSV of video pairs",
                received=f"fps and frames of A and B: {timing}",
                expected="playback rate and number of frames of both clips",
                remedy="write image pairs with write_hpsv3_json",
            )
        row: dict[str, object] = {
            "path_A": pair.path_a,
            "path_B": pair.path_b,
            "prompt": pair.prompt,
            "fps_A": pair.fps_a,
            "num_frames_A": pair.num_frames_a,
            "fps_B": pair.fps_b,
            "num_frames_B": pair.num_frames_b,
        }
        row |= {name: WORD_OF_LABEL[pair.label(name)] for name in dimensions}
        for column, (side, name) in mos_columns.items():
            row[column] = _mos(pair, side).get(name, "")
        rows.append(row)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as file:
            columns = [*CLIP_COLUMNS, *dimensions, *mos_columns]
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise _unwritable(path, error) from error
    return path


def read_hpsv3_json(
    path: Path, min_confidence: float = CONFIDENCE_THRESHOLD
) -> list[PreferencePair]:
    """Read HPSv3's list of ``{"prompt", "path1", "path2", "confidence"}``; path1 is preferred.

    The winner becomes A, with the label in the dimension ``Overall``
    (``preference_data.balance_order`` mixes the order). Other keys of an entry are left aside.

    Args:
        path: the file.
        min_confidence: pairs with less are dropped.

    Raises:
        UserError: unreadable, not such a list, wrong values (with row numbers), or no pair left.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(path, error, "a JSON list of preference pairs in UTF-8") from error
    if not isinstance(entries, list):
        raise UserError(
            "preference data are not a list",
            received=f"{type(entries).__name__} in {path}",
            expected="a JSON list of objects with prompt, path1, path2 and confidence",
        )
    problems: Problems = []
    pairs = []
    for number, entry in enumerate(entries, start=1):
        where = f"row {number}"
        if not isinstance(entry, dict):
            problems.append(f"{where}: {type(entry).__name__}, expected an object")
            continue
        row = _Row(where, entry, problems)
        pair = PreferencePair(
            prompt=row.read("prompt", _text, "a text"),
            path_a=row.read("path1", _text, "a file"),
            path_b=row.read("path2", _text, "a file"),
            labels={OVERALL: A_WINS},
            confidence=row.read("confidence", _share, "a number from 0 to 1"),
        )
        pairs.append(pair)
    _raise_problems(path, problems)
    kept = [pair for pair in pairs if (pair.confidence or 0.0) >= min_confidence]
    if pairs and not kept:
        raise UserError(
            "no pair reaches the confidence asked for",
            received=f"{len(pairs)} pairs below {min_confidence} in {path}",
            remedy="lower min_confidence",
        )
    return _not_empty(path, kept)


def write_hpsv3_json(pairs: Sequence[PreferencePair], path: Path) -> Path:
    """Write the winner of each pair as path1.

    Raises:
        UserError: a pair without a winner in ``Overall`` or without a confidence.
        RunDirectoryError: the file cannot be written.
    """
    entries = []
    for number, pair in enumerate(pairs):
        ordered = pair if pair.label(OVERALL) == A_WINS else pair.swapped()
        if ordered.label(OVERALL) != A_WINS or pair.confidence is None:
            raise UserError(
                f"pair {number} does not fit HPSv3's list",
                received=f"labels {dict(pair.labels)}, confidence {pair.confidence}",
                expected="A or B in Overall, and a confidence",
                remedy="write ties and video pairs with write_preference_csv",
            )
        entries.append(
            {
                "prompt": ordered.prompt,
                "path1": ordered.path_a,
                "path2": ordered.path_b,
                "confidence": ordered.confidence,
            }
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(entries, indent=1, ensure_ascii=False), encoding="utf-8")
    except OSError as error:
        raise _unwritable(path, error) from error
    return path


def _mos(pair: PreferencePair, side: str) -> Mapping[str, float]:
    return pair.mos_a if side == "A" else pair.mos_b


class _Row:
    """Reads the values of one row and collects what is wrong with them."""

    def __init__(self, where: str, cells: Mapping[str, object], problems: Problems) -> None:
        self.where, self.cells, self.problems = where, cells, problems

    def report(self, problem: str) -> None:
        self.problems.append(f"{self.where}: {problem}")

    def read(self, name: str, convert: Callable[[object], T], expected: str) -> T:
        value = self.cells.get(name)
        try:
            return convert(value)
        except (ValueError, TypeError, KeyError):
            self.report(f"{name} is {value!r}, expected {expected}")
            return None  # type: ignore[return-value]  # the row is refused before it is used

    def read_mos(self, side: str) -> dict[str, float]:
        columns = {name: f"MOS_{side}_{name}" for name in LABELS}
        return {
            name: self.read(column, _finite, "a number or empty")
            for name, column in columns.items()
            if str(self.cells.get(column, "")).strip()
        }


def _label(value: object) -> int:
    return LABEL_OF_WORD[str(value).strip()]


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return value


def _finite(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _positive(value: object) -> float:
    number = _finite(value)
    if number <= 0:
        raise ValueError
    return number


def _share(value: object) -> float:
    number = _finite(value)
    if not 0 <= number <= 1:
        raise ValueError
    return number


def _count(value: object) -> int:
    number = _positive(value)
    if number != int(number):  # pandas writes whole columns with a gap as 93.0
        raise ValueError
    return int(number)


def _read_csv(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header, and the rows that are not blank with their numbers."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = list(csv.reader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, error, "a CSV file in UTF-8") from error
    if not table:
        raise _unreadable(path, "it is empty", "a CSV file with a header")
    header = [name.strip() for name in table[0]]
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise UserError("a column is there twice", received=f"{', '.join(twice)} in {path}")
    return header, [(number, cells) for number, cells in enumerate(table[1:], start=2) if cells]


def _raise_problems(path: Path, problems: Problems) -> None:
    if problems:
        more = len(problems) - _MAX_LISTED
        listed = problems[:_MAX_LISTED] + ([f"{more} more"] if more > 0 else [])
        raise UserError(
            "values of the preference data cannot be used",
            received=f"{path}: " + "; ".join(listed),
            remedy="correct or remove these rows",
        )


def _not_empty(path: Path, pairs: list[PreferencePair]) -> list[PreferencePair]:
    if not pairs:
        raise UserError("preference data hold no pair", received=str(path))
    return pairs


def _unreadable(path: Path, reason: object, expected: str) -> UserError:
    return UserError(f"cannot read {path.name}: {reason}", received=str(path), expected=expected)


def _unwritable(path: Path, error: OSError) -> RunDirectoryError:
    return RunDirectoryError(
        f"cannot write {path.name}: {error.strerror or error}",
        received=str(path),
        remedy="choose a folder that you may write, with free space",
    )
