"""A result on disk and on the screen: JSON, CSV tables, and what a person reads first."""

import datetime
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from longtake import __version__
from longtake.evaluation.csv_rows import write_text
from longtake.evaluation.findings import Finding
from longtake.evaluation.tables import Table
from longtake.runtime.errors import UserError
from longtake.runtime.files import to_plain


def with_provenance(record: Mapping[str, object], inputs: Sequence[Path]) -> dict[str, object]:
    """The record with the version, the time and the SHA-256 of every input file.

    Raises:
        UserError: an input cannot be read.
    """
    digests = {}
    for path in inputs:
        try:
            with path.open("rb") as file:
                digests[str(path)] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UserError(
                f"cannot read an input: {error.strerror or error}", received=str(path)
            ) from error
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"longtake": __version__, "created": now, "inputs": digests, **record}


def write_result(
    folder: Path, name: str, record: Mapping[str, object], tables: Sequence[Table]
) -> list[Path]:
    """Write ``NAME.json`` and ``NAME_TABLE.csv`` for each table with rows, each atomically.

    Raises:
        UserError: a file cannot be written.
    """
    text = json.dumps(to_plain(record), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    written = [write_text(folder / f"{name}.json", text)]
    for table in tables:
        path = folder / f"{name}_{table.name}.csv"
        if table.rows:
            written.append(write_text(path, table.as_csv()))
        else:  # a table of an earlier run must not stay beside a result that has none
            path.unlink(missing_ok=True)
    return written


def print_result(
    tables: Sequence[Table], findings: Sequence[Finding], *, shown: Sequence[str]
) -> None:
    """Print the tables named in ``shown`` and one line for each finding to standard output."""
    console = Console()
    for table in tables:
        if table.name in shown and table.rows:
            console.print(table.as_rich())
            if table.note:
                console.print(Text(table.note, style="dim"))
            console.print()
    print_findings(findings)


def print_findings(findings: Sequence[Finding]) -> None:
    """Print one line for each finding to standard output."""
    console = Console()
    for finding in findings:
        console.print(Text(f"! {finding}", style="yellow"), soft_wrap=True)


def print_json(record: Mapping[str, object]) -> None:
    """Print a record as JSON; a missing number is null."""
    sys.stdout.write(json.dumps(to_plain(record), indent=2, allow_nan=False) + "\n")


def present(
    name: str,
    record: Mapping[str, object],
    tables: Sequence[Table],
    findings: Sequence[Finding],
    *,
    inputs: Sequence[Path],
    folder: Path | None,
    draw: Callable[[Path], Path],
    as_json: bool,
    shown: Sequence[str],
) -> None:
    """Write a result to ``folder`` if there is one, and print it.

    Args:
        name: of the result: ``NAME.json``, ``NAME_TABLE.csv``, ``NAME.png``.
        record: JSON-ready but for NaN.
        tables: all tables.
        findings: everything irregular.
        inputs: files whose digests are recorded.
        folder: where to write; None prints only.
        draw: writes the figure to a path.
        as_json: print JSON instead of tables.
        shown: names of the tables to print.

    Raises:
        UserError: a file cannot be read or written.
    """
    complete = with_provenance(record, inputs)
    written = []
    if folder is not None:
        written = [*write_result(folder, name, complete, tables), draw(folder / f"{name}.png")]
    if as_json:
        print_json(complete)
        return
    print_result(tables, findings, shown=shown)
    if written:
        Console().print(Text(f"{len(written)} files in {folder}"), soft_wrap=True)
