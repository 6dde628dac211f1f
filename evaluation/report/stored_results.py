"""Results that another command wrote: its JSON, the CSV tables and the figure beside it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longtake.evaluation.csv_rows import read_csv_rows
from longtake.evaluation.findings import Finding, Findings
from longtake.evaluation.report.content import Block, Figure, Section, TableBlock, Text
from longtake.evaluation.report.sources import SourceList
from longtake.evaluation.tables import Table
from longtake.runtime.errors import UserError

SHOWN_AT_ONCE = (
    *("overview", "comparisons", "tests", "ranking", "merged_overview", "position", "agreement"),
    "protocol",
)
"""Tables of a result that a page does not fold, in the order of showing."""


def stored_section(path: Path, sources: SourceList, findings: Findings, number: int) -> Section:
    """The section of one result.

    The inputs that the result names are looked up: one that has changed or gone is a finding.

    Raises:
        UserError: a table beside the result cannot be read.
    """
    record = json.loads(path.read_text(encoding="utf-8"))
    where = sources.numbers([path])
    blocks: list[Block] = [
        Text(
            text=f"Written by longtake {record['longtake']} at {record['created']} to {path}; "
            "the tables are shown as they were written."
        )
    ]
    picture = path.with_suffix(".png")
    if picture.is_file():
        blocks.append(
            Figure(
                name=f"result-{number}.png", png=picture.read_bytes(), caption=f"Figure of {path}"
            )
        )
    tables = {
        file.stem.removeprefix(f"{path.stem}_"): file
        for file in path.parent.glob(f"{path.stem}_*.csv")
    }
    for name in sorted(tables, key=_order):
        file = tables[name]
        columns, rows, _ = read_csv_rows(file, ())
        table = Table(
            name=name,
            title=name.replace("_", " ").capitalize(),
            columns=columns,
            rows=tuple(tuple(row[column] for column in columns) for _, row in rows),
        )
        own = (*where, *sources.numbers([file]))
        blocks.append(TableBlock(table=table, sources=own, detail=name not in SHOWN_AT_ONCE))
    if not tables:
        blocks.append(Text(text="No tables lie beside it, so only the file is named here."))
    findings.add("input of a stored result", "the result is shown as it is", _changed(path, record))
    for item in _earlier(record):
        findings.add(item.kind, item.effect, item.items)
    return Section(title=f"Stored result: {path.stem}", blocks=tuple(blocks))


def _order(name: str) -> tuple[int, str]:
    shown = SHOWN_AT_ONCE.index(name) if name in SHOWN_AT_ONCE else len(SHOWN_AT_ONCE)
    return shown, name


def _changed(path: Path, record: Mapping[str, Any]) -> list[str]:
    """Inputs of a result that are no longer what they were, in words."""
    inputs = record["inputs"]
    if not isinstance(inputs, Mapping):
        raise UserError("the result names no inputs", received=str(path))
    cases = []
    for name, digest in inputs.items():
        try:
            with Path(name).open("rb") as file:
                now = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            cases.append(f"{path}: {name}: {error.strerror or error}")
            continue
        if now != digest:
            cases.append(f"{path}: {name} has changed since")
    return cases


def _earlier(record: Mapping[str, Any]) -> list[Finding]:
    """The findings that the result states."""
    stated = record.get("findings")
    return [
        Finding(kind=str(f["kind"]), effect=str(f["effect"]), items=tuple(map(str, f["items"])))
        for f in (stated if isinstance(stated, list) else ())
        if isinstance(f, Mapping) and {"kind", "effect", "items"} <= f.keys() and f["items"]
    ]
