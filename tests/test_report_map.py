"""docs/report_map.md names every numbered item of the report, and only files that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STATUSES = ("done", "partly: ", "tiny only", "operator only", "not yet", "text")
COUNTS = {"Eq.": 50, "Table": 9, "Fig.": 20}


def rows() -> list[list[str]]:
    text = (ROOT / "docs" / "report_map.md").read_text(encoding="utf-8")
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|") and not line.startswith("|---")
    ]
    return [row for row in cells if row[0] != "Report"]


def test_every_numbered_item_has_exactly_one_row() -> None:
    for label, count in COUNTS.items():
        numbers: list[int] = []
        for row in rows():
            found = re.fullmatch(rf"{re.escape(label)} (\d+)(?:-(\d+))?", row[0])
            if found:
                numbers += range(int(found[1]), int(found[2] or found[1]) + 1)
        assert numbers == list(range(1, count + 1)), label


def test_rows_are_complete() -> None:
    for row in rows():
        assert len(row) == 5, row
        _, what, code, test, status = row
        assert what
        assert status.startswith(STATUSES), row
        if status == "done":
            assert code and test, row
        if status in {"not yet", "text"}:
            assert not code and not test, row


def test_named_files_and_tests_exist() -> None:
    for row in rows():
        for name in re.findall(r"`([^`]+)`", row[2] + row[3]):
            path, _, function = name.partition("::")
            assert (ROOT / path).is_file(), name
            if function:
                assert f"def {function}(" in (ROOT / path).read_text(encoding="utf-8"), name
