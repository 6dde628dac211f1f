"""The frame of every HTML page: one file, nothing loaded from outside, light and dark.

Every plain text is escaped here. Arguments that are HTML already are named so.
"""

import html
from collections.abc import Iterable, Sequence

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --faint: #646a72; --paper: #fdfdfc;
  --panel: #f3f4f2; --rule: #dcdfe2; --mark: #2a6fb0; --warn: #9a5b00; --rise: #147040;
  --fall: #be2828; --flat: #6e737a; --width: 74rem; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6e8; --faint: #9aa1a9; --paper: #16181b;
  --panel: #1f2226; --rule: #363b41; --mark: #6aaaf0; --warn: #e0a85a; --rise: #5fc48b;
  --fall: #f08080; --flat: #8d949c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: var(--width); margin: 0 auto; padding: 2.2rem 1.25rem 5rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; overflow-wrap: anywhere; }
p { margin: .5rem 0; max-width: 48rem; overflow-wrap: anywhere; }
a { color: var(--mark); }
.faint, figcaption, .note { color: var(--faint); font-size: .87rem; }
.verdict { background: var(--panel); border-left: 5px solid var(--flat); border-radius: 4px;
  padding: .9rem 1.2rem; margin: 1.4rem 0; }
.verdict strong { font-size: 1.15rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: .7rem 0 1.1rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .25rem; }
th, td { text-align: left; padding: .32rem .8rem .32rem 0; border-bottom: 1px solid var(--rule);
  vertical-align: top; white-space: nowrap; }
th { color: var(--faint); font-weight: 600; font-size: .84rem; vertical-align: bottom; }
tr.head td { color: var(--faint); font-size: .85rem; padding-top: .9rem; }
.num { text-align: right; }
.wrap { white-space: normal; min-width: 14rem; overflow-wrap: anywhere; }
figure { margin: .7rem 0 1.5rem; }
img, video { max-width: 100%; height: auto; display: block; background: #fff; border-radius: 4px; }
figure img { border: 1px solid var(--rule); }
details { border-top: 1px solid var(--rule); padding: .5rem 0; }
summary { cursor: pointer; }
pre { background: var(--panel); padding: .8rem 1rem; border-radius: 4px; overflow-x: auto;
  font: .82rem/1.45 ui-monospace, "DejaVu Sans Mono", monospace; }
ul { padding-left: 1.2rem; margin: .4rem 0; } li { overflow-wrap: anywhere; }
"""
"""What pages have in common; a page appends its own rules."""


def text(value: object) -> str:
    """Escaped for HTML text and attributes."""
    return html.escape(str(value))


def page(title: str, body: str, style: str = "", script: str = "") -> str:
    """The whole document.

    Args:
        title: plain text.
        body: HTML.
        style: rules after those that all pages share.
        script: code that runs when the body is there; must not hold ``</script``.
    """
    code = f"<script>{script}</script>" if script else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE}{style}</style></head>\n"
        f"<body><main>{body}</main>{code}</body></html>\n"
    )


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str] | str],
    *,
    classes: Sequence[str] = (),
    caption: str = "",
    note: str = "",
) -> str:
    """A table that scrolls sideways where it is too wide.

    Args:
        columns: plain headings.
        rows: HTML cells, or one plain text as a heading inside the table.
        classes: of the columns: "", ``num`` (right-aligned), ``wrap`` (long texts), ...
        caption: plain text above it.
        note: HTML below it.
    """
    kinds = [f' class="{name}"' if name else "" for name in classes or [""] * len(columns)]
    head = "".join(
        f'<th scope="col"{kind}>{text(name)}</th>'
        for name, kind in zip(columns, kinds, strict=True)
    )
    lines = [
        f'<tr class="head"><td colspan="{len(columns)}">{text(row)}</td></tr>'
        if isinstance(row, str)
        else "<tr>"
        + "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(row, kinds, strict=True))
        + "</tr>"
        for row in rows
    ]
    label = f"<caption>{text(caption)}</caption>" if caption else ""
    remark = f'<p class="note">{note}</p>' if note else ""
    return (
        f'<div class="scroll"><table>{label}<thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table>{remark}</div>"
    )


def details(title: str, content: str) -> str:
    """A collapsed block of HTML under a heading, which is HTML too."""
    return f"<details><summary>{title}</summary>{content}</details>"


def media(uri: str, label: str, preload: str = "auto") -> str:
    """A picture or, if the address is not that of one, a player.

    Args:
        uri: a data URI or a link.
        label: plain text for readers who do not see it.
        preload: what a player may load before it is started: ``auto`` or ``metadata``.
    """
    path = uri.partition("?")[0]
    if uri.startswith("data:image/") or path.endswith((".gif", ".png", ".jpg", ".jpeg", ".webp")):
        return f'<img alt="{text(label)}" src="{text(uri)}">'
    return (
        f'<video controls loop muted playsinline preload="{preload}" aria-label="{text(label)}" '
        f'src="{text(uri)}"></video>'
    )


def figure(content: str, caption: str) -> str:
    """HTML with a caption below, which is HTML too."""
    return f"<figure>{content}<figcaption>{caption}</figcaption></figure>"
