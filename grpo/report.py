"""report.html of a run: the verdict in words, then everything it rests on, in one file.

The report is made from the files of the run directory alone, so it can be made again at any time,
also for a run that was interrupted: what is missing is named and the rest is shown.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longtake.grpo.curves import interval
from longtake.grpo.report_data import (
    OVERALL,
    Cells,
    RunData,
    direction,
    per_prompt,
    read_run,
    score_name,
)
from longtake.grpo.report_page import STYLE, duration, number, span
from longtake.runtime import html_page
from longtake.runtime.errors import RunDirectoryError
from longtake.runtime.files import replacing
from longtake.runtime.html import Embedder
from longtake.runtime.html_page import text

MAX_BYTES = 20_000_000
"""Size of the file, about: the oldest sample grids are left out above it."""

_EXTREMES = 5
_PHASES = ("rollout_s", "decode_s", "reward_s", "update_s")


def write_report(run: Path, max_bytes: int = MAX_BYTES) -> Path:
    """Write ``report.html`` into a run directory from the files that it holds.

    Args:
        run: the run directory.
        max_bytes: bound of the embedded pictures and videos together.

    Raises:
        RunDirectoryError: no such directory, or it cannot be written.
    """
    if not run.is_dir():
        raise RunDirectoryError(
            "no run to report on", received=str(run), expected="a run directory"
        )
    data = read_run(run)
    budget = Embedder(max_bytes)
    seed = data.summary.get("seed")
    title = "GRPO run" if seed is None else f"GRPO run, seed {seed}"
    body = "".join(
        [
            f"<h1>{text(title)}</h1>",
            _subtitle(data),
            _verdict(data),
            _missing(data),
            _section("Held-out prompts, before and after", _comparison(data, budget)),
            _section("Training", _picture(data, budget, "curves.png", "Training curves")),
            _section("Clips before and after", _before_after(data, budget)),
            _section("Prompts that changed most", _extremes(data)),
            _section("Cost", _cost(data)),
            _section("Groups during training", _grids(data, budget)),
            _section("Configuration and provenance", _origin(data)),
        ]
    )
    return _write(run / "report.html", html_page.page(title, body, STYLE))


def _subtitle(data: RunData) -> str:
    updates = data.summary.get("updates", len(data.metrics))
    parts = [f"{updates} update{'s' * (updates != 1)}"]
    if data.summary.get("wall_s") is not None:
        parts.append(duration(data.summary["wall_s"]))
    git = data.provenance.get("git") or {}
    if git.get("commit"):
        parts.append(f"commit {git['commit'][:10]}{' with local changes' * bool(git['dirty'])}")
    hardware = data.provenance.get("hardware") or {}
    devices = hardware.get("gpus") or ([hardware["cpu"]] if hardware.get("cpu") else [])
    parts += dict.fromkeys(devices)
    return f'<p class="faint">{text(", ".join(map(str, parts)))}</p>'


def _verdict(data: RunData) -> str:
    """Did the held-out mean rise, did anything fall, was anything left unscored."""
    if not data.summary:
        return (
            '<div class="verdict"><strong>Unfinished: there is no summary.json yet.</strong></div>'
        )
    way, headline = _headline(data.held_out)
    notes = []
    if data.summary.get("stopped"):
        notes.append(f"Training stopped early: {text(data.summary['stopped'])}.")
    fallen = [name for name, cell in data.held_out.items() if direction(cell) == "fall"]
    single = [name for name in data.held_out if name != OVERALL]
    if fallen:
        cells = [f"{_name(name)} {_with_interval(data.held_out[name])}" for name in fallen]
        notes.append(f"Fell significantly: {', '.join(cells)}.")
    elif single:
        notes.append("No single held-out metric fell significantly.")
    risen = [name for name, cell in data.rewards.items() if direction(cell) == "rise"]
    if risen and data.held_out and way != "rise":
        notes.append(
            f"The training rewards {', '.join(map(_name, risen))} rose on the same clips while the "
            "held-out metrics did not: this may be reward hacking."
        )
    notes.append(_unscored(data))
    items = "".join(f"<li>{note}</li>" for note in notes)
    colour = "flat" if fallen and way == "rise" else way  # a rise that cost something is no success
    return f'<div class="verdict {colour}"><strong>{headline}</strong><ul>{items}</ul></div>'


def _headline(held_out: Cells) -> tuple[str, str]:
    """The way of the overall metric (rise, fall or flat), and HTML that says it."""
    if not held_out:
        return "flat", "No held-out metric was measured, so only the training rewards speak."
    name = OVERALL if OVERALL in held_out else next(iter(held_out))
    label = "the mean of the held-out oracles" if name == OVERALL else f"held-out {_name(name)}"
    cell = held_out[name]
    bounds, way = interval(cell), direction(cell)
    if bounds is None or cell.get("diff") is None:
        return "flat", f"Nothing can be said about {label}: no complete pair of scores."
    low, high, confidence = bounds
    how = {
        "rise": f"rose by {number(cell['diff'])}",
        "fall": f"fell by {number(-cell['diff'])}",
        "flat": f"did not change measurably ({number(cell['diff'], signed=True)})",
    }[way]
    sentence = (
        f"{label} {how}, from {number(cell['before'])} to {number(cell['after'])} "
        f"({confidence:g} % interval of the change {span(low, high)}, {cell['n']} clips of "
        f"{cell['n_clusters']} prompts)."
    )
    return way, sentence[0].upper() + sentence[1:]


def _unscored(data: RunData) -> str:
    counts = data.summary.get("unscored") or {}
    training = ", ".join(f"{_name(name)} {n}" for name, n in counts.items() if n)
    cells = [*data.held_out.items(), *data.rewards.items()]
    pairs = ", ".join(f"{_name(n)} {c['dropped']}" for n, c in cells if c.get("dropped"))
    if not training and not pairs:
        return "Every clip was scored."
    parts = [f"in training: {training}"] if training else []
    parts += [f"held-out pairs left out: {pairs}"] if pairs else []
    return f"Unscored clips, {'; '.join(parts)}."


def _name(name: str) -> str:
    return text(name.replace("_", " "))


def _change(cell: Mapping[str, Any]) -> str:
    diff = number(cell.get("diff"), signed=True)
    return f'<b class="{direction(cell)}">{diff}</b>'


def _with_interval(cell: Mapping[str, Any]) -> str:
    bounds = interval(cell)
    return _change(cell) + ("" if bounds is None else f" {span(bounds[0], bounds[1])}")


def _missing(data: RunData) -> str:
    if not data.missing:
        return ""
    items = "".join(f"<li>{text(line)}</li>" for line in data.missing)
    return _section("Missing from this run", f"<ul>{items}</ul>")


def _comparison(data: RunData, budget: Embedder) -> str:
    rows: list[Sequence[str] | str] = []
    confidence = 95.0
    for heading, cells in (("held-out metrics", data.held_out), ("training rewards", data.rewards)):
        rows += [heading] if cells else []
        for name, cell in cells.items():
            bounds = interval(cell)
            confidence = bounds[2] if bounds else confidence
            rows.append(
                [
                    f"<b>{_name(name)}</b>" if name == OVERALL else _name(name),
                    number(cell.get("before")),
                    number(cell.get("after")),
                    _change(cell),
                    "&ndash;" if bounds is None else span(bounds[0], bounds[1]),
                    str(cell.get("n", 0)),
                    str(cell.get("n_clusters", "&ndash;")),
                    str(cell.get("dropped", 0)),
                ]
            )
    if not rows:
        return ""
    columns = ("", "before", "after", "change", f"{confidence:g} % CI", "n", "prompts", "dropped")
    note = (
        "Same prompts and noise before and after. n: clips scored both times; dropped: pairs with "
        "a missing score. Intervals: bootstrap over prompts."
    )
    chart = _picture(data, budget, "held_out.png", "Change and interval of each metric")
    return _table(columns, rows, note) + chart


def _picture(data: RunData, budget: Embedder, name: str, caption: str) -> str:
    path = data.path / name
    if not path.is_file():
        return ""
    uri = budget.uri(path)
    if uri is None:
        return f'<p class="faint">{text(name)} is too large to be embedded.</p>'
    return _figure(uri, caption, caption)


def _before_after(data: RunData, budget: Embedder) -> str:
    caption = "Frames of held-out clips from the same noise, before above after"
    still = _picture(data, budget, "samples/before_after.png", caption)
    return still + _picture(data, budget, "samples/before_after.mp4", "The same clips as a video")


def _grids(data: RunData, budget: Embedder) -> str:
    """Newest first, until the budget is spent."""
    grids = sorted((data.path / "samples").glob("update-*.mp4"), key=_update_of, reverse=True)
    shown = []
    for path in grids:
        uri = budget.uri(path)
        if uri is None:
            break
        caption = f"update {_update_of(path)}"
        shown.append(_figure(uri, caption, f"Groups of {caption} with their scores"))
    left_out = len(grids) - len(shown)
    note = "One row per prompt, one column per member of the group; the best score is bold."
    if left_out:
        note += f" The {left_out} oldest grids are left out to keep this file small; see samples/."
    return f'<p class="faint">{text(note)}</p>{"".join(shown)}' if grids else ""


def _update_of(path: Path) -> int:
    number = path.stem.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def _extremes(data: RunData) -> str:
    changes = per_prompt(data.before, data.after)
    if not changes:
        return ""
    first = data.before[0].get("metrics") or {}
    label = "mean of the training rewards" if not first else score_name(first).replace("_", " ")
    ranked = sorted(changes, key=lambda row: row[3], reverse=True)
    gains = [row for row in ranked if row[3] > 0][:_EXTREMES]
    losses = [row for row in reversed(ranked) if row[3] < 0][:_EXTREMES]
    rows: list[Sequence[str] | str] = []
    for heading, chosen in (("largest gains", gains), ("largest losses", losses)):
        rows.append(heading if chosen else f"{heading}: none")
        for prompt, before, after, diff, count in chosen:
            mark = f'<b class="{"rise" if diff > 0 else "fall"}">'
            rows.append(
                [
                    text(prompt),
                    number(before),
                    number(after),
                    f"{mark}{number(diff, signed=True)}</b>",
                    str(count),
                ]
            )
    up, down = (sum(row[3] * sign > 0 for row in changes) for sign in (1, -1))
    note = f"{label}; {up} prompts rose, {down} fell, {len(changes) - up - down} stayed."
    return _table(("prompt", "before", "after", "change", "clips"), rows, note)


def _cost(data: RunData) -> str:
    nfe, out = data.summary.get("nfe") or {}, ""
    rows: list[Sequence[str]] = []
    for key, label in (("rollout", "rollout evaluations"), ("train_forwards", "training forwards")):
        counted, naive = nfe.get(key), nfe.get(f"{key}_naive")
        if counted is not None and naive:
            saved = f"{100 * (1 - counted / naive):.1f} %"
            rows.append([label, number(counted, 0), number(naive, 0), saved])
    if rows:
        note = "Velocity evaluations of the model; naive: each clip of a group computed on its own."
        out += _table(("", "counted", "naive, closed form", "saved"), rows, note)
    totals = {phase: math.fsum(float(r.get(phase) or 0) for r in data.timing) for phase in _PHASES}
    total = math.fsum(totals.values())
    if total > 0:
        count = len(data.timing)
        rows = [
            [
                phase.removesuffix("_s"),
                duration(seconds),
                f"{seconds / count:.2f} s",
                f"{100 * seconds / total:.0f} %",
            ]
            for phase, seconds in totals.items()
        ]
        rows.append(["all", duration(total), f"{total / count:.2f} s", "100 %"])
        note = f"Wall-clock of {count} updates on this machine; evaluation is not included."
        out += _table(("phase", "total", "per update", "share"), rows, note)
    return out


def _origin(data: RunData) -> str:
    out = _file("config.yaml", data.config) if data.config else ""
    if data.provenance:
        out += _file("provenance.json", json.dumps(data.provenance, indent=2, ensure_ascii=False))
    if data.summary:
        out += _file("summary.json", json.dumps(data.summary, indent=2, ensure_ascii=False))
    return out


def _section(title: str, content: str) -> str:
    """A heading over HTML; nothing when the HTML is empty."""
    return f"<section><h2>{text(title)}</h2>{content}</section>" if content else ""


def _table(columns: Sequence[str], rows: Sequence[Sequence[str] | str], note: str) -> str:
    """A table of names and numbers."""
    kinds = ("", *["num"] * (len(columns) - 1))
    return html_page.table(columns, rows, classes=kinds, note=text(note))


def _figure(uri: str, caption: str, label: str) -> str:
    return html_page.figure(html_page.media(uri, label), text(caption))


def _file(name: str, content: str) -> str:
    return html_page.details(text(name), f"<pre>{text(content)}</pre>")


def _write(path: Path, document: str) -> Path:
    try:
        with replacing(path) as temporary:
            temporary.write_text(document, encoding="utf-8")
    except OSError as error:
        raise RunDirectoryError(
            f"cannot write {path.name}: {error.strerror or error}",
            received=str(path),
            expected="a writable run directory with free space",
            remedy="free some space, then make the report again",
        ) from error
    return path
