"""The HTML of a report: one file, no script, nothing loaded from outside, light and dark.

Every text is escaped here; functions that take ``html`` in their name's place say so.
"""

import base64
import html
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

_MEDIA = {".png": "image/png", ".mp4": "video/mp4"}

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --faint: #646a72; --paper: #fdfdfc;
  --panel: #f3f4f2; --rule: #dcdfe2; --rise: #147040; --fall: #be2828; --flat: #6e737a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6e8; --faint: #9aa1a9; --paper: #16181b;
  --panel: #1f2226; --rule: #363b41; --rise: #5fc48b; --fall: #f08080; --flat: #9aa1a9; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2.5rem 1.25rem 5rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.15rem; margin: 2.75rem 0 .6rem; }
p { margin: .5rem 0; max-width: 46rem; }
.faint, figcaption, caption { color: var(--faint); font-size: .88rem; }
.verdict { background: var(--panel); border-left: 5px solid var(--flat); border-radius: 4px;
  padding: .9rem 1.2rem; margin: 1.4rem 0; }
.verdict.rise { border-color: var(--rise); } .verdict.fall { border-color: var(--fall); }
.verdict strong { font-size: 1.15rem; }
.rise b, b.rise { color: var(--rise); } .fall b, b.fall { color: var(--fall); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; margin: .4rem 0 .8rem;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .3rem; }
th, td { text-align: right; padding: .34rem .7rem; border-bottom: 1px solid var(--rule);
  vertical-align: top; white-space: nowrap; }
th { color: var(--faint); font-weight: 600; font-size: .85rem; }
th:first-child, td:first-child { text-align: left; padding-left: 0; white-space: normal; }
tr.head td { color: var(--faint); font-size: .85rem; padding-top: .9rem; }
figure { margin: .6rem 0 1.6rem; }
img, video { max-width: 100%; height: auto; display: block; background: #fff; border-radius: 4px; }
figure img { border: 1px solid var(--rule); }
figcaption { margin-bottom: .35rem; }
details { border-top: 1px solid var(--rule); padding: .6rem 0; }
summary { cursor: pointer; font-weight: 600; }
pre { background: var(--panel); padding: .8rem 1rem; border-radius: 4px; overflow-x: auto;
  font: .82rem/1.45 ui-monospace, "DejaVu Sans Mono", monospace; }
ul { padding-left: 1.2rem; margin: .4rem 0; }
"""


def text(value: object) -> str:
    """Escaped for HTML text and attributes."""
    return html.escape(str(value))


def number(value: float | None, digits: int = 3, *, signed: bool = False) -> str:
    """A number with a true minus sign; a dash when it is missing."""
    if value is None or not math.isfinite(value):
        return "&ndash;"
    shown = f"{value:+,.{digits}f}" if signed else f"{value:,.{digits}f}"
    return shown.replace("-", "&minus;")


def span(low: float, high: float) -> str:
    """An interval."""
    return f"[{number(low, signed=True)}, {number(high, signed=True)}]"


def duration(seconds: float) -> str:
    """Seconds as a reader says them: 42 s, 8 min 20 s, 3 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def table(columns: Sequence[str], rows: Iterable[Sequence[str] | str], caption: str = "") -> str:
    """A table.

    Args:
        columns: plain headings.
        rows: HTML cells, or one plain text as a heading inside the table.
        caption: plain text.
    """
    head = "".join(f'<th scope="col">{text(c)}</th>' for c in columns)
    lines = [
        f'<tr class="head"><td colspan="{len(columns)}">{text(row)}</td></tr>'
        if isinstance(row, str)
        else "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>"
        for row in rows
    ]
    label = f"<caption>{text(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table>{label}<thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def details(title: str, content: str) -> str:
    """A collapsed block of plain text."""
    return f"<details><summary>{text(title)}</summary><pre>{text(content)}</pre></details>"


def figure(uri: str, caption: str, alt: str) -> str:
    """A picture or, by the type of its data URI, a player."""
    label = f"<figcaption>{text(caption)}</figcaption>"
    if uri.startswith("data:video/"):
        media = (
            f'<video controls loop muted playsinline aria-label="{text(alt)}" src="{uri}"></video>'
        )
    else:
        media = f'<img alt="{text(alt)}" src="{uri}">'
    return f"<figure>{label}{media}</figure>"


def section(title: str, content: str) -> str:
    """A heading over HTML; nothing when the HTML is empty."""
    return f"<section><h2>{text(title)}</h2>{content}</section>" if content else ""


def page(title: str, body: str) -> str:
    """The whole document around HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><main>{body}</main></body></html>\n"
    )


class Embedder:
    """Turns files into data URIs until a budget is spent.

    Args:
        budget: characters that all URIs together may take.
    """

    def __init__(self, budget: int) -> None:
        self._left = budget

    def uri(self, path: Path) -> str | None:
        """The file as a data URI; None if it does not fit any more.

        Raises:
            OSError: the file cannot be read.
        """
        prefix = f"data:{_MEDIA[path.suffix]};base64,"
        size = len(prefix) + 4 * -(-path.stat().st_size // 3)
        if size > self._left:
            return None
        self._left -= size
        return prefix + base64.b64encode(path.read_bytes()).decode("ascii")
