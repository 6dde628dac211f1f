"""report.html of a run: the verdict in words, then everything it rests on, in one file.

The report is made from the files of the run directory alone, so it can be made again at any time,
also for a run that was interrupted: what is missing or torn is named and the rest is shown, because
the runs one most wants to look at are the interrupted ones.
"""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from longtake.grpo.figures import interval
from longtake.grpo.held_out import OVERALL
from longtake.runtime.errors import RunDirectoryError
from longtake.runtime.files import explained, replacing
from longtake.runtime.html import Embedder, render_page

MAX_BYTES = 20_000_000
"""Size of the file, about: the oldest sample grids are left out above it."""
MIN_PROMPTS = 10
"""Fewer held-out prompts say nothing about others, whatever their interval."""

_EXTREMES = 5
_NONE = "\N{EN DASH}"
_PHASES = ("rollout_s", "decode_s", "reward_s", "update_s")
_FILES = {
    "summary.json": "the run has not finished, so there is no verdict yet",
    "held_out_before.jsonl": "the held-out evaluation before training has not finished",
    "held_out_after.jsonl": "the held-out evaluation after training has not finished",
    "metrics.jsonl": "no update has finished",
    "timing.jsonl": "no timings",
    "curves.png": "no training curves",
    "samples/before_after.png": "no picture of clips before and after",
    "config.yaml": "the configuration is unknown",
    "provenance.json": "code state, versions and hardware are unknown",
}

Cells = Mapping[str, Mapping[str, Any]]
"""Metric -> before, after, diff, ci95, n, n_clusters, dropped (summary.json)."""


def write_report(run: Path, max_bytes: int = MAX_BYTES) -> Path:
    """Write ``report.html`` into a run directory; its pictures take at most ``max_bytes``."""
    if not run.is_dir():
        raise RunDirectoryError(
            "no run to report on", received=str(run), expected="a run directory"
        )
    files = _RunFiles(run, Embedder(max_bytes))
    summary = files.object("summary.json")
    provenance = files.object("provenance.json")
    metrics, timing = files.updates("metrics.jsonl"), files.updates("timing.jsonl")
    before, after = files.lines("held_out_before.jsonl"), files.lines("held_out_after.jsonl")
    seed = summary.get("seed")
    way, headline, notes = _verdict(summary)
    config = files.text("config.yaml")
    page = render_page(
        "grpo/report.html.j2",
        title="GRPO run" if seed is None else f"GRPO run, seed {seed}",
        subtitle=_subtitle(summary, provenance, len(metrics)),
        way=way,
        headline=headline,
        notes=notes,
        comparison=_comparison(summary),
        # The order in which pictures are embedded: the budget goes to the first ones.
        held_out=files.picture("held_out.png"),
        curves=files.picture("curves.png"),
        still=files.picture("samples/before_after.png"),
        pairs=files.picture("samples/before_after.mp4"),
        extremes=_extremes(before, after),
        evaluations=_evaluations(summary),
        phases=_phases(timing),
        grids=files.grids(),
        origin={
            "config.yaml": config,
            "provenance.json": json.dumps(provenance, indent=2, ensure_ascii=False),
            "summary.json": json.dumps(summary, indent=2, ensure_ascii=False),
        },
        missing=files.missing,
    )
    path = run / "report.html"
    with explained("write report.html", path), replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


@dataclass
class _RunFiles:
    """The files of a run, whole, torn or missing; ``missing`` says what cannot be shown."""

    path: Path
    budget: Embedder
    missing: list[str] = field(init=False)

    def __post_init__(self) -> None:
        absent = {n: why for n, why in _FILES.items() if not (self.path / n).is_file()}
        self.missing = [f"{name}: {why}" for name, why in absent.items()]

    def text(self, name: str) -> str:
        with suppress(FileNotFoundError):
            return (self.path / name).read_text(encoding="utf-8", errors="replace")
        return ""

    def object(self, name: str) -> dict[str, Any]:
        text = self.text(name)
        found = _parse(text)
        if text and found is None:
            self.missing.append(f"{name}: it cannot be read")
        return found or {}

    def lines(self, name: str) -> list[dict[str, Any]]:
        parsed = [_parse(line) for line in self.text(name).split("\n") if line.strip()]
        records = [record for record in parsed if record is not None]
        if count := len(parsed) - len(records):
            plural = "s" * (count > 1)
            self.missing.append(f"{name}: {count} unreadable line{plural} left out")
        return records

    def updates(self, name: str) -> list[dict[str, Any]]:
        """A resumed run may have logged an update twice: the later record counts."""
        table = {int(r["update"]): r for r in self.lines(name) if r.get("update") is not None}
        return [table[update] for update in sorted(table)]

    def picture(self, name: str) -> str | None:
        path = self.path / name
        if not path.is_file():
            return None
        uri = self.budget.uri(path)
        if uri is None:
            self.missing.append(f"{name}: it is too large to be embedded")
        return uri

    def grids(self) -> dict[int, str]:
        """Update -> its groups as a video, newest first, until the budget is spent."""
        found = {int(p.stem[7:]): p for p in (self.path / "samples").glob("update-*.mp4")}
        shown: dict[int, str] = {}
        for update in sorted(found, reverse=True):
            uri = self.budget.uri(found[update])
            if uri is None:
                left = len(found) - len(shown)
                self.missing.append(
                    f"samples: the {left} oldest grids are too large to be embedded"
                )
                break
            shown[update] = uri
        return shown


def _parse(text: str) -> dict[str, Any] | None:
    with suppress(ValueError):
        value = json.loads(text)
        return value if isinstance(value, dict) else None
    return None


def _subtitle(summary: Mapping[str, Any], provenance: Mapping[str, Any], num_updates: int) -> str:
    updates = summary.get("updates", num_updates)
    parts = [f"{updates} update{'s' * (updates != 1)}"]
    if summary.get("wall_s") is not None:
        parts.append(duration(summary["wall_s"]))
    git = provenance.get("git") or {}
    if git.get("commit"):
        parts.append(f"commit {git['commit'][:10]}{' with local changes' * bool(git['dirty'])}")
    hardware = provenance.get("hardware") or {}
    devices = hardware.get("gpus") or ([hardware["cpu"]] if hardware.get("cpu") else [])
    return ", ".join([*parts, *dict.fromkeys(map(str, devices))])


def _verdict(summary: Mapping[str, Any]) -> tuple[str, str, list[str]]:
    """Did the held-out mean rise, did anything fall, was anything left unscored.

    Returns:
        The way (rise, fall or flat), the headline and its notes.
    """
    if not summary:
        return "flat", "Unfinished: there is no summary.json yet.", []
    held_out: Cells = summary.get("held_out") or {}
    rewards: Cells = summary.get("rewards") or {}
    way, headline = _headline(held_out)
    notes = []
    if summary.get("stopped"):
        notes.append(f"Training stopped early: {summary['stopped']}.")
    fallen = [name for name, cell in held_out.items() if direction(cell) == "fall"]
    enough = [cell for cell in held_out.values() if cell.get("n_clusters", 0) >= MIN_PROMPTS]
    if fallen:
        cells = [f"{_name(n)} {_change(held_out[n])} {span(held_out[n])}" for n in fallen]
        notes.append(f"Fell significantly: {', '.join(cells)}.")
    elif enough and any(name != OVERALL for name in held_out):
        notes.append("No single held-out metric fell significantly.")
    risen = [name for name, cell in rewards.items() if direction(cell) == "rise"]
    if risen and enough and way != "rise":
        notes.append(
            f"The training rewards {', '.join(map(_name, risen))} rose on the same clips while the "
            "held-out metrics did not: this may be reward hacking."
        )
    training = ", ".join(f"{_name(n)} {k}" for n, k in (summary.get("unscored") or {}).items() if k)
    everything = [*held_out.items(), *rewards.items()]
    pairs = ", ".join(f"{_name(n)} {c['dropped']}" for n, c in everything if c.get("dropped"))
    parts = [f"in training: {training}"] if training else []
    parts += [f"held-out pairs left out: {pairs}"] if pairs else []
    notes.append(f"Unscored clips, {'; '.join(parts)}." if parts else "Every clip was scored.")
    # A rise that cost something is no success.
    return "flat" if fallen and way == "rise" else way, headline, notes


def _headline(held_out: Cells) -> tuple[str, str]:
    if not held_out:
        return "flat", "No held-out metric was measured, so only the training rewards speak."
    name = OVERALL if OVERALL in held_out else next(iter(held_out))
    label = "the mean of the held-out oracles" if name == OVERALL else f"held-out {_name(name)}"
    cell = held_out[name]
    bounds, way = interval(cell), direction(cell)
    if bounds is None or cell.get("diff") is None:
        return "flat", f"Nothing can be said about {label}: no complete pair of scores."
    how = {
        "rise": f"rose by {number(cell['diff'])}",
        "fall": f"fell by {number(-cell['diff'])}",
        "flat": f"did not change measurably ({_change(cell)})",
    }[way]
    # A percentile interval of so few clusters is far too narrow.
    if cell["n_clusters"] < MIN_PROMPTS:
        how = f"changed by {_change(cell)}"
    sentence = (
        f"{label} {how}, from {number(cell['before'])} to {number(cell['after'])} "
        f"({bounds[2]:g} % interval of the change {span(cell)}, {cell['n']} clips of "
        f"{cell['n_clusters']} prompts)."
    )
    sentence = sentence[0].upper() + sentence[1:]
    if cell["n_clusters"] < MIN_PROMPTS:
        return "flat", f"Too few prompts to tell (below {MIN_PROMPTS}). {sentence}"
    return way, sentence


def _comparison(summary: Mapping[str, Any]) -> tuple[float, list[list[object] | str]]:
    """Confidence of the intervals, and the rows of the table of held-out differences."""
    rows: list[list[object] | str] = []
    confidence = 95.0
    for heading, key in (("held-out metrics", "held_out"), ("training rewards", "rewards")):
        cells = summary.get(key) or {}
        rows += [heading] if cells else []
        for name, cell in cells.items():
            bounds = interval(cell)
            confidence = bounds[2] if bounds else confidence
            rows.append(
                [
                    Markup("<b>{}</b>").format(_name(name)) if name == OVERALL else _name(name),
                    number(cell.get("before")),
                    number(cell.get("after")),
                    _coloured(direction(cell), _change(cell)),
                    span(cell),
                    cell.get("n", 0),
                    cell.get("n_clusters", _NONE),
                    cell.get("dropped", 0),
                ]
            )
    return confidence, rows


def _extremes(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
) -> tuple[str, list[list[object] | str]] | None:
    """A note, and the rows of the prompts that changed most."""
    changes = per_prompt(before, after)
    if not changes:
        return None
    first = before[0].get("metrics") or {}
    label = "mean of the training rewards" if not first else _name(score_name(first))
    # By change, not by score: what training did, not which prompts are easy.
    ranked = sorted(changes, key=lambda row: row[3], reverse=True)
    gains = [row for row in ranked if row[3] > 0][:_EXTREMES]
    losses = [row for row in reversed(ranked) if row[3] < 0][:_EXTREMES]
    rows: list[list[object] | str] = []
    for heading, part in (("largest gains", gains), ("largest losses", losses)):
        rows.append(heading if part else f"{heading}: none")
        for prompt, low, high, diff, count in part:
            change = _coloured("rise" if diff > 0 else "fall", number(diff, signed=True))
            rows.append([prompt, number(low), number(high), change, count])
    up, down = (sum(row[3] * sign > 0 for row in changes) for sign in (1, -1))
    return f"{label}; {up} prompts rose, {down} fell, {len(changes) - up - down} stayed.", rows


def per_prompt(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
) -> list[tuple[str, float, float, float, int]]:
    """(prompt, before, after, change, clips) over the samples that were scored both times.

    The score is ``oracle_mean``, else the first metric, else the mean of the training rewards.
    """
    later = {(r["prompt_id"], r["sample"]): _score(r) for r in after}
    groups: dict[Any, tuple[str, list[tuple[float, float]]]] = {}
    for record in before:
        first, second = _score(record), later.get((record["prompt_id"], record["sample"]))
        if first is not None and second is not None:
            group = groups.setdefault(record["prompt_id"], (record["prompt"], []))
            group[1].append((first, second))
    rows = []
    for prompt, pairs in groups.values():
        a, b = (math.fsum(side) / len(pairs) for side in zip(*pairs, strict=True))
        rows.append((prompt, a, b, b - a, len(pairs)))
    return rows


def score_name(metrics: Mapping[str, Any]) -> str:
    """The metric that stands for a clip: the overall one, else the first."""
    return OVERALL if OVERALL in metrics else next(iter(metrics))


def _score(record: Mapping[str, Any]) -> float | None:
    metrics = record.get("metrics") or {}
    if metrics:
        value = metrics[score_name(metrics)]
        return None if value is None else float(value)
    values = list((record.get("rewards") or {}).values())
    if not values or any(value is None for value in values):
        return None
    return math.fsum(values) / len(values)


def _evaluations(summary: Mapping[str, Any]) -> list[list[object]]:
    nfe = summary.get("nfe") or {}
    rows: list[list[object]] = []
    for key, label in (("rollout", "rollout evaluations"), ("train_forwards", "training forwards")):
        counted, naive = nfe.get(key), nfe.get(f"{key}_naive")
        if counted is not None and naive:
            saved = f"{100 * (1 - counted / naive):.1f} %"
            rows.append([label, number(counted, 0), number(naive, 0), saved])
    return rows


def _phases(timing: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    totals = {phase: math.fsum(float(r.get(phase) or 0) for r in timing) for phase in _PHASES}
    total, count = math.fsum(totals.values()), len(timing)
    if not total:
        return []
    totals["all"] = total
    return [
        [
            phase.removesuffix("_s"),
            duration(seconds),
            f"{seconds / count:.2f} s",
            f"{100 * seconds / total:.0f} %",
        ]
        for phase, seconds in totals.items()
    ]


def direction(cell: Mapping[str, Any]) -> str:
    """``rise`` or ``fall`` when the interval of enough prompts excludes zero, else ``flat``."""
    bounds = interval(cell)
    if bounds is None or cell.get("n_clusters", 0) < MIN_PROMPTS:
        return "flat"
    return "rise" if bounds[0] > 0 else "fall" if bounds[1] < 0 else "flat"


def _name(name: str) -> str:
    return name.replace("_", " ")


def _change(cell: Mapping[str, Any]) -> str:
    return number(cell.get("diff"), signed=True)


def _coloured(way: str, text: str) -> Markup:
    return Markup('<b class="{}">{}</b>').format(way, text)


def number(value: float | None, digits: int = 3, *, signed: bool = False) -> str:
    """A number with a true minus sign; a dash when it is missing."""
    if value is None or not math.isfinite(value):
        return _NONE
    return f"{value:{'+' * signed},.{digits}f}".replace("-", "\N{MINUS SIGN}")


def span(cell: Mapping[str, Any]) -> str:
    """The interval of a cell; a dash without one."""
    bounds = interval(cell)
    if bounds is None:
        return _NONE
    return f"[{number(bounds[0], signed=True)}, {number(bounds[1], signed=True)}]"


def duration(seconds: float) -> str:
    """Seconds as a reader says them: 42 s, 8 min 20 s, 3 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
