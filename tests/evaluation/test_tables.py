"""Tables: CSV with full precision, terminal cells, dataclasses as rows, findings."""

import csv
import io
from dataclasses import dataclass

from rich.console import Console

from longtake.evaluation.findings import Findings
from longtake.evaluation.tables import Table, findings_table, interval_text, table_of

TABLE = Table(
    name="t",
    title="Title",
    columns=("name", "value", "count"),
    rows=(("a, b", 1 / 3, 2), ("c", float("nan"), None)),
)


def test_csv_keeps_every_digit_and_leaves_missing_cells_empty():
    rows = list(csv.reader(io.StringIO(TABLE.as_csv())))
    assert rows[0] == ["name", "value", "count"]
    assert float(rows[1][1]) == 1 / 3 and rows[1][0] == "a, b"
    assert rows[2] == ["c", "", ""]


def test_a_terminal_shows_four_digits_and_dashes():
    console = Console(file=io.StringIO(), width=80)
    console.print(TABLE.as_rich())
    text = console.file.getvalue()
    assert "0.3333" in text and "-" in text.splitlines()[-2]


def test_intervals_as_text():
    assert interval_text(3.38, 3.31, 3.45) == "3.38 [3.31, 3.45]"
    assert interval_text(3.38, float("nan"), 1.0) == "3.38 [no interval]"
    assert interval_text(float("nan"), 1.0, 2.0) == "-"


def test_dataclasses_as_rows():
    @dataclass
    class Row:
        name: str
        good: bool
        value: float

    table = table_of("t", "T", [Row("a", True, 0.5), Row("b", False, 1.5)])
    assert table.columns == ("name", "good", "value")
    assert table.rows == (("a", "yes", 0.5), ("b", "no", 1.5))
    assert table_of("t", "T", []).rows == ()


def test_findings_list_every_case_and_shorten_only_the_line():
    findings = Findings()
    findings.add("nothing", "no", [])
    findings.add("odd", "used", [f"case {i}" for i in range(5)])
    (finding,) = findings.all()
    assert str(finding) == "odd (5, used): case 0; case 1; case 2; and 2 more"
    assert len(findings_table(findings.all()).rows) == 5
    assert finding.as_record()["items"] == [f"case {i}" for i in range(5)]
