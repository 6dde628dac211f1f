"""A report as one HTML file: no script, nothing loaded from outside, light and dark.

Every text is escaped here, so names, prompts and reasons may hold anything.
"""

from collections.abc import Iterable

from longtake.evaluation.findings import Finding
from longtake.evaluation.report.content import (
    Block,
    Figure,
    Report,
    Section,
    Source,
    TableBlock,
    Text,
    Verdict,
    Video,
    VideoRow,
    source_ranges,
)
from longtake.evaluation.tables import Cell, Table
from longtake.runtime.html_page import details, figure, media, page, table, text
from longtake.runtime.progress import format_value

_LONG = 28
"""Texts longer than this may be wrapped."""

_STYLE = """
h2 { padding-top: .8rem; border-top: 1px solid var(--rule); }
nav { font-size: .9rem; margin: 1rem 0; } nav a { margin-right: 1.1rem; }
.verdict.first, .verdict.second, .verdict.mixed { border-color: var(--mark); }
.hash { font: .78rem ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere;
  white-space: normal; min-width: 18rem; }
.videos { display: flex; flex-wrap: wrap; gap: .9rem; margin: .4rem 0 .3rem; }
.videos figure { margin: 0; width: 19rem; max-width: 100%; }
.videos video, .videos img, .gone { width: 100%; aspect-ratio: 16 / 9; object-fit: contain;
  background: #000; border: 0; border-radius: 4px; display: block; }
.gone { background: var(--panel); color: var(--warn); font-size: .85rem; padding: .8rem;
  overflow: auto; overflow-wrap: anywhere; }
.prompt { margin: 1.4rem 0 .2rem; font-weight: 600; }
.warn { color: var(--warn); }
@media print { details { display: none; } }
"""


def html_page(report: Report) -> str:
    """The whole document."""
    links = "".join(
        f'<a href="#s{number}">{text(section.title)}</a>'
        for number, section in enumerate(report.sections, start=1)
    )
    body = "".join(
        [
            f"<h1>{text(report.title)}</h1>",
            f'<p class="faint">longtake {text(report.version)}, {text(report.created)}</p>',
            _verdict(report.verdict) if report.verdict is not None else "",
            f'<nav>{links}<a href="#findings">Irregularities</a><a href="#sources">Sources</a>'
            "</nav>",
            *(_section(section, number) for number, section in enumerate(report.sections, start=1)),
            _findings(report.findings),
            _sources(report.sources),
        ]
    )
    return page(report.title, body, _STYLE)


def _verdict(verdict: Verdict) -> str:
    notes = "".join(f"<li>{text(note)}</li>" for note in verdict.notes)
    return (
        f'<div class="verdict {verdict.way}"><strong>{text(verdict.sentence)}</strong>'
        f"<ul>{notes}</ul></div>"
    )


def _section(section: Section, number: int) -> str:
    blocks = "".join(map(_block, section.blocks))
    return f'<section id="s{number}"><h2>{text(section.title)}</h2>{blocks}</section>'


def _block(block: Block) -> str:
    if isinstance(block, Text):
        return f"<p>{text(block.text)}</p>"
    if isinstance(block, Figure):
        return figure(media(block.uri(), block.caption), text(block.caption))
    return _table_block(block) if isinstance(block, TableBlock) else _videos(block)


def _table_block(block: TableBlock) -> str:
    shown = table_html(block.table, block.sources)
    if not block.detail:
        return shown
    rows = len(block.table.rows)
    return details(f"{text(block.table.title)} ({rows} row{'s' * (rows != 1)})", shown)


def table_html(content: Table, sources: tuple[int, ...]) -> str:
    """A table with its note and the numbers of its sources."""
    links = ", ".join(
        "-".join(f'<a href="#f{number}">[{number}]</a>' for number in dict.fromkeys(run))
        for run in source_ranges(sources)
    )
    return table(
        content.columns,
        [[_cell(cell) for cell in row] for row in content.rows],
        classes=[_class(row[i] for row in content.rows) for i in range(len(content.columns))],
        caption=content.title,
        note=f"{text(content.note)} Sources: {links}",
    )


def _class(cells: Iterable[Cell]) -> str:
    shown = [cell for cell in cells if cell is not None]
    texts = [cell for cell in shown if isinstance(cell, str)]
    if shown and not texts:
        return "num"
    return "wrap" if any(len(cell) > _LONG for cell in texts) else ""


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return text(cell)
    return text(cell if isinstance(cell, int) else format_value(cell))


def _videos(row: VideoRow) -> str:
    cells = "".join(map(_video, row.videos))
    return (
        f'<p class="prompt">{text(row.caption)}</p><p class="faint">{text(row.why)}</p>'
        f'<div class="videos">{cells}</div>'
    )


def _video(video: Video) -> str:
    path = text(video.path)
    if video.uri:
        shown = media(video.uri, video.path, "auto" if video.is_inline else "metadata")
    else:
        shown = f'<div class="gone">{text(video.problem)}<br>{path}</div>'
    link = f' <a href="{text(video.uri)}">{path}</a>' if video.uri and not video.is_inline else ""
    problem = f' <span class="warn">{text(video.problem)}</span>' if video.uri else ""
    named = f"<b>{text(video.model)}</b> {text(video.label)}"
    return figure(shown, f"{named}{problem if video.problem else ''}{link}")


def _findings(findings: Iterable[Finding]) -> str:
    parts = []
    for finding in findings:
        items = "".join(f"<li>{text(item)}</li>" for item in finding.items)
        kind = f'<span class="warn">{text(finding.kind)}</span>'
        title = f"{kind} ({finding.count}): {text(finding.effect)}"
        parts.append(details(title, f"<ul>{items}</ul>"))
    content = "".join(parts) or "<p>None.</p>"
    return f'<section id="findings"><h2>Irregularities of the input</h2>{content}</section>'


def _sources(sources: Iterable[Source]) -> str:
    rows = [
        (f'<span id="f{s.number}">[{s.number}]</span>', text(s.path), str(s.size), s.sha256)
        for s in sources
    ]
    listed = table(("", "file", "bytes", "SHA-256"), rows, classes=("", "wrap", "num", "hash"))
    return f'<section id="sources"><h2>Sources</h2>{listed}</section>'
