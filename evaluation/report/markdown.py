"""A report as Markdown: the same tables and texts; pictures and videos are linked."""

import html
from collections.abc import Iterable

from longtake.evaluation.report.content import (
    Block,
    Figure,
    Report,
    Source,
    TableBlock,
    Text,
    VideoRow,
    source_ranges,
)
from longtake.evaluation.tables import Cell, Table
from longtake.runtime.progress import format_value


def markdown(report: Report, figures: str) -> str:
    """The document.

    Args:
        report: what to write.
        figures: folder of the pictures, relative to the document.
    """
    lines = [f"# {_text(report.title)}", "", f"longtake {report.version}, {report.created}", ""]
    if report.verdict is not None:
        lines += [f"**{_text(report.verdict.sentence)}**", ""]
        lines += [f"- {_text(note)}" for note in report.verdict.notes] + [""]
    for section in report.sections:
        lines += [f"## {_text(section.title)}", ""]
        for block in section.blocks:
            lines += [*_block(block, figures), ""]
    lines += ["## Irregularities of the input", ""]
    for finding in report.findings:
        lines.append(f"- {_text(finding.kind)} ({finding.count}): {_text(finding.effect)}")
        lines += [f"    - {_text(item)}" for item in finding.items]
    lines += ["None."] * (not report.findings) + ["", "## Sources", ""]
    lines += _table(_sources(report.sources))
    return "\n".join(lines) + "\n"


def _block(block: Block, figures: str) -> list[str]:
    if isinstance(block, Text):
        return [_text(block.text)]
    if isinstance(block, Figure):
        return [f"![{_text(block.caption)}](<{figures}/{block.name}>)"]
    if isinstance(block, TableBlock):
        numbers = ", ".join(
            "-".join(f"[{number}]" for number in dict.fromkeys(run))
            for run in source_ranges(block.sources)
        )
        note = f"{_text(block.table.note)} Sources: {numbers}".strip()
        return [f"**{_text(block.table.title)}**", "", *_table(block.table), "", note]
    return _videos(block)


def _videos(row: VideoRow) -> list[str]:
    lines = [f"**{_text(row.caption)}** ({_text(row.why)})", ""]
    for video in row.videos:
        state = f" ({_text(video.problem)})" if video.problem else ""
        lines.append(f"- {_text(video.model)}: {_text(video.path)}; {_text(video.label)}{state}")
    return lines


def _table(table: Table) -> list[str]:
    return [
        _line(table.columns),
        _line(("---",) * len(table.columns)),
        *(_line(map(_cell, row)) for row in table.rows),
    ]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return _text(cell)
    return str(cell) if isinstance(cell, int) else format_value(cell)


def _text(value: str) -> str:
    """One line that Markdown shows as it is: no HTML, no markup, no end of a cell."""
    flat = html.escape(" ".join(value.split()), quote=False)
    for mark in ("\\", "`", "*", "_", "[", "]", "|", "#", "~"):
        flat = flat.replace(mark, f"\\{mark}")
    return flat


def _sources(sources: Iterable[Source]) -> Table:
    return Table(
        name="sources",
        title="Sources",
        columns=("number", "file", "bytes", "SHA-256"),
        rows=tuple((f"[{s.number}]", s.path, s.size, s.sha256) for s in sources),
    )
