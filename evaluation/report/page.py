"""A report as one HTML file: no script, nothing loaded from outside, light and dark.

Every text is escaped here, so names, prompts and reasons may hold anything.
"""

import html
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
from longtake.runtime.progress import format_value

_LONG = 28
"""Texts longer than this may be wrapped."""

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --faint: #646a72; --paper: #fdfdfc;
  --panel: #f3f4f2; --rule: #dcdfe2; --mark: #2a6fb0; --flat: #8a9097; --warn: #9a5b00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6e8; --faint: #9aa1a9; --paper: #16181b;
  --panel: #1f2226; --rule: #363b41; --mark: #6aaaf0; --flat: #7d848c; --warn: #e0a85a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 74rem; margin: 0 auto; padding: 2.2rem 1.25rem 5rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; padding-top: .8rem;
  border-top: 1px solid var(--rule); overflow-wrap: anywhere; }
p { margin: .5rem 0; max-width: 48rem; overflow-wrap: anywhere; }
nav { font-size: .9rem; margin: 1rem 0; } nav a { margin-right: 1.1rem; }
a { color: var(--mark); }
.faint, figcaption, .note { color: var(--faint); font-size: .86rem; }
.verdict { background: var(--panel); border-left: 5px solid var(--flat); border-radius: 4px;
  padding: .9rem 1.2rem; margin: 1.4rem 0; }
.verdict.first, .verdict.second, .verdict.mixed { border-color: var(--mark); }
.verdict strong { font-size: 1.15rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: .7rem 0 1.1rem; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .25rem; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--rule);
  vertical-align: top; white-space: nowrap; }
th { color: var(--faint); font-weight: 600; font-size: .82rem; vertical-align: bottom; }
.num { text-align: right; }
.wrap { white-space: normal; min-width: 14rem; overflow-wrap: anywhere; }
.hash { font: .78rem ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere;
  white-space: normal; min-width: 18rem; }
figure { margin: .8rem 0 1.4rem; }
img { max-width: 100%; height: auto; display: block; background: #fff; border-radius: 4px;
  border: 1px solid var(--rule); }
.videos { display: flex; flex-wrap: wrap; gap: .9rem; margin: .4rem 0 .3rem; }
.videos figure { margin: 0; width: 19rem; max-width: 100%; }
.videos video, .videos img, .gone { width: 100%; aspect-ratio: 16 / 9; object-fit: contain;
  background: #000; border: 0; border-radius: 4px; display: block; }
.gone { background: var(--panel); color: var(--warn); font-size: .85rem; padding: .8rem;
  overflow: auto; overflow-wrap: anywhere; }
.prompt { margin: 1.4rem 0 .2rem; font-weight: 600; }
details { border-top: 1px solid var(--rule); padding: .5rem 0; }
summary { cursor: pointer; } ul { padding-left: 1.2rem; margin: .4rem 0; }
li { overflow-wrap: anywhere; } .warn { color: var(--warn); }
@media print { details { display: none; } }
"""


def html_page(report: Report) -> str:
    """The whole document."""
    title = _text(report.title)
    links = "".join(
        f'<a href="#s{number}">{_text(section.title)}</a>'
        for number, section in enumerate(report.sections, start=1)
    )
    body = "".join(
        [
            f"<h1>{title}</h1>",
            f'<p class="faint">longtake {_text(report.version)}, {_text(report.created)}</p>',
            _verdict(report.verdict) if report.verdict is not None else "",
            f'<nav>{links}<a href="#findings">Irregularities</a><a href="#sources">Sources</a>'
            "</nav>",
            *(_section(section, number) for number, section in enumerate(report.sections, start=1)),
            _findings(report.findings),
            _sources(report.sources),
        ]
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head>\n"
        f"<body><main>{body}</main></body></html>\n"
    )


def _text(value: object) -> str:
    return html.escape(str(value))


def _verdict(verdict: Verdict) -> str:
    notes = "".join(f"<li>{_text(note)}</li>" for note in verdict.notes)
    return (
        f'<div class="verdict {verdict.way}"><strong>{_text(verdict.sentence)}</strong>'
        f"<ul>{notes}</ul></div>"
    )


def _section(section: Section, number: int) -> str:
    blocks = "".join(map(_block, section.blocks))
    return f'<section id="s{number}"><h2>{_text(section.title)}</h2>{blocks}</section>'


def _block(block: Block) -> str:
    if isinstance(block, Text):
        return f"<p>{_text(block.text)}</p>"
    if isinstance(block, Figure):
        caption = _text(block.caption)
        return (
            f'<figure><img alt="{caption}" src="{block.uri()}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    return _table_block(block) if isinstance(block, TableBlock) else _videos(block)


def _table_block(block: TableBlock) -> str:
    if not block.detail:
        return table_html(block.table, block.sources)
    rows = len(block.table.rows)
    return (
        f"<details><summary>{_text(block.table.title)} ({rows} row{'s' * (rows != 1)})</summary>"
        f"{table_html(block.table, block.sources)}</details>"
    )


def table_html(table: Table, sources: tuple[int, ...]) -> str:
    """A table with its note and the numbers of its sources."""
    classes = [_class(row[i] for row in table.rows) for i in range(len(table.columns))]
    head = "".join(
        f'<th scope="col"{kind}>{_text(name)}</th>'
        for name, kind in zip(table.columns, classes, strict=True)
    )
    rows = "".join(
        "<tr>"
        + "".join(f"<td{k}>{_cell(cell)}</td>" for cell, k in zip(row, classes, strict=True))
        + "</tr>"
        for row in table.rows
    )
    links = ", ".join(
        "-".join(f'<a href="#f{number}">[{number}]</a>' for number in dict.fromkeys(run))
        for run in source_ranges(sources)
    )
    note = f'<p class="note">{_text(table.note)} Sources: {links}</p>'
    return (
        f'<div class="scroll"><table><caption>{_text(table.title)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{note}</div>"
    )


def _class(cells: Iterable[Cell]) -> str:
    shown = [cell for cell in cells if cell is not None]
    texts = [cell for cell in shown if isinstance(cell, str)]
    if shown and not texts:
        return ' class="num"'
    return ' class="wrap"' if any(len(text) > _LONG for text in texts) else ""


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return _text(cell)
    return _text(cell if isinstance(cell, int) else format_value(cell))


def _videos(row: VideoRow) -> str:
    cells = "".join(map(_video, row.videos))
    return (
        f'<p class="prompt">{_text(row.caption)}</p><p class="faint">{_text(row.why)}</p>'
        f'<div class="videos">{cells}</div>'
    )


def _video(video: Video) -> str:
    uri, path = _text(video.uri), _text(video.path)
    if not video.uri:
        media = f'<div class="gone">{_text(video.problem)}<br>{path}</div>'
    elif video.uri.partition("?")[0].endswith(".gif") or video.uri.startswith("data:image/"):
        media = f'<img alt="{path}" src="{uri}">'
    else:
        preload = "auto" if video.is_inline else "metadata"
        media = (
            f'<video controls loop muted playsinline preload="{preload}" aria-label="{path}" '
            f'src="{uri}"></video>'
        )
    link = f' <a href="{uri}">{path}</a>' if video.uri and not video.is_inline else ""
    problem = f' <span class="warn">{_text(video.problem)}</span>' if video.uri else ""
    return (
        f"<figure>{media}<figcaption><b>{_text(video.model)}</b> {_text(video.label)}"
        f"{problem if video.problem else ''}{link}</figcaption></figure>"
    )


def _findings(findings: Iterable[Finding]) -> str:
    parts = []
    for finding in findings:
        items = "".join(f"<li>{_text(item)}</li>" for item in finding.items)
        parts.append(
            f'<details><summary><span class="warn">{_text(finding.kind)}</span> '
            f"({finding.count}): {_text(finding.effect)}</summary><ul>{items}</ul></details>"
        )
    content = "".join(parts) or "<p>None.</p>"
    return f'<section id="findings"><h2>Irregularities of the input</h2>{content}</section>'


def _sources(sources: Iterable[Source]) -> str:
    rows = "".join(
        f'<tr id="f{s.number}"><td>[{s.number}]</td><td class="wrap">{_text(s.path)}</td>'
        f'<td class="num">{s.size}</td><td class="hash">{s.sha256}</td></tr>'
        for s in sources
    )
    return (
        '<section id="sources"><h2>Sources</h2><div class="scroll"><table><thead><tr><th></th>'
        '<th scope="col">file</th><th scope="col" class="num">bytes</th>'
        f'<th scope="col">SHA-256</th></tr></thead><tbody>{rows}</tbody></table></div></section>'
    )
