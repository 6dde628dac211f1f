"""A result on the screen and on disk: what a person reads first, CSV tables, and one JSON file."""

import datetime
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from longtake import __version__
from longtake.evaluation.agreement import Agreement
from longtake.evaluation.ratings import Finding
from longtake.runtime.config import Config
from longtake.runtime.files import digest, explained, to_plain, write_csv, write_json
from longtake.runtime.progress import result_table

if TYPE_CHECKING:
    from rich.table import Table as RichTable


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Named columns under a heading; None and NaN are missing values."""

    name: str
    """File name without suffix, such as ``mos``."""
    title: str
    frame: pd.DataFrame
    note: str = ""
    """What a reader must know to read the numbers."""

    def as_rich(self) -> "RichTable":
        """For a terminal: numbers with four significant digits, ``-`` for missing."""
        return result_table(self.title, self.frame.columns.tolist(), list(rows_of(self.frame)))


def table_of_rows(
    name: str, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], note: str = ""
) -> Table:
    """A table of rows of cells, which keep their types."""
    frame = pd.DataFrame(list(rows), columns=list(columns), dtype="object")
    return Table(name=name, title=title, frame=frame, note=note)


def table_of(name: str, title: str, items: Sequence[Any], note: str = "") -> Table:
    """Dataclass instances as rows, their fields as columns."""
    frame = pd.DataFrame(record_of(tuple(items)), dtype="object")
    words = frame.map(lambda cell: ("no", "yes")[cell] if isinstance(cell, bool) else cell)
    return Table(name=name, title=title, frame=words, note=note)


def agreement_table(agreement: Mapping[str, Agreement], counts: tuple[str, str], how: str) -> Table:
    """Krippendorff's alpha by dimension; ``counts`` names the columns of samples and ratings."""
    rows = [
        (name, a.alpha, a.ci_low, a.ci_high, a.n_samples, a.n_ratings, a.reason)
        for name, a in agreement.items()
    ]
    columns = ("dimension", "alpha", "ci_low", "ci_high", *counts, "remark")
    note = f"Krippendorff's alpha, {how}."
    return table_of_rows("agreement", "Agreement of the raters", columns, rows, note)


def findings_table(findings: Sequence[Finding]) -> Table:
    """One row for each case of each finding."""
    rows = [(finding.kind, finding.effect, item) for finding in findings for item in finding.items]
    columns = ("kind", "effect", "case")
    return table_of_rows("findings", "Irregularities of the input", columns, rows)


def rows_of(frame: pd.DataFrame) -> Iterator[Any]:
    """The rows as named tuples of Python values."""
    yield from frame.itertuples(index=False)


def record_of(value: Any) -> Any:
    """A result as JSON has it, but for NaN: a table is a list of rows, a dataclass a mapping."""
    if isinstance(value, pd.DataFrame):
        return [dict(zip(value.columns, row, strict=True)) for row in rows_of(value)]
    if isinstance(value, Finding):
        return value.as_record()
    if isinstance(value, Config):
        return value.model_dump()
    if is_dataclass(value):
        return {item.name: record_of(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {key: record_of(item) for key, item in value.items()}
    return [record_of(item) for item in value] if isinstance(value, tuple) else value


def interval_text(value: float, low: float, high: float, digits: int = 2) -> str:
    """``3.38 [3.31, 3.45]``; ``-`` without a value, the value alone without an interval."""
    if math.isnan(value):
        return "-"
    if math.isnan(low) or math.isnan(high):
        return f"{value:.{digits}f} [no interval]"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def with_provenance(record: Mapping[str, object], inputs: Sequence[Path]) -> dict[str, object]:
    """The record with the version, the time and the SHA-256 of every input."""
    digests = {}  # a number without the digest of its input cannot be checked later
    for path in inputs:
        with explained("read an input", path):
            digests[str(path)] = digest(path)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"longtake": __version__, "created": now, "inputs": digests, **record}


def write_result(
    folder: Path, name: str, record: Mapping[str, object], tables: Sequence[Table]
) -> list[Path]:
    """Write ``NAME.json`` and ``NAME_TABLE.csv`` for each table with rows, each atomically."""
    written = [write_json(folder / f"{name}.json", record)]
    words = {True: "yes", False: "no"}
    for table in tables:
        path = folder / f"{name}_{table.name}.csv"
        if table.frame.empty:  # a table of an earlier run must not stay beside a result without it
            path.unlink(missing_ok=True)
        else:
            flags = table.frame.select_dtypes("bool").apply(lambda column: column.map(words))
            written.append(write_csv(path, table.frame.assign(**flags)))
    return written


def print_findings(findings: Sequence[Finding]) -> None:
    """Print one line for each finding to standard output."""
    from rich.console import Console
    from rich.text import Text

    for finding in findings:
        # As plain text: names of files may hold what rich would take for markup.
        Console().print(Text(f"! {finding}", style="yellow"), soft_wrap=True)


def present(
    name: str,
    record: Mapping[str, object],
    tables: Sequence[Table],
    findings: Sequence[Finding],
    *,
    inputs: Sequence[Path],
    folder: Path | None,
    as_json: bool,
    shown: Sequence[str],
    draw: Callable[[Path], object] | None = None,
) -> None:
    """Write a result to ``folder``, if any, and print it: as JSON or the tables named in ``shown``.

    ``draw`` makes the figure ``NAME.png``.
    """
    from rich.console import Console
    from rich.text import Text

    complete, console = with_provenance(record, inputs), Console()
    written: list[object] = []
    if folder is not None:
        written += write_result(folder, name, complete, tables)
        if draw is not None:
            written.append(draw(folder / f"{name}.png"))
    if as_json:  # standard output is the record alone: scripts parse it
        sys.stdout.write(json.dumps(to_plain(complete), indent=2, allow_nan=False) + "\n")
        return
    for table in tables:
        if table.name in shown and not table.frame.empty:
            console.print(table.as_rich())
            console.print(Text(f"{table.note}\n" if table.note else "", style="dim"))
    print_findings(findings)
    if folder is not None:
        sys.stdout.write(f"{len(written)} files in {folder}\n")
