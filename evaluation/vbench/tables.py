"""Results as tables and lines for people."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from rich.table import Table

from longtake.evaluation.vbench.plan import Plan
from longtake.evaluation.vbench.run import RunReport
from longtake.evaluation.vbench.scores import Comparison, ScoreLine, Scores
from longtake.evaluation.vbench.suites import SUITES, Suite
from longtake.runtime.progress import result_table

_MISSING = "-"
_SHOWN = 3
"""Reasons that are printed per dimension; the JSON has all."""


def percent(score: float | None, sign: str = "") -> str:
    """A score in percent with two decimals, as the public tables print it."""
    return _MISSING if score is None else f"{100 * score:{sign}.2f}"


def _interval(ends: tuple[float, float] | None, sign: str = "") -> str:
    return _MISSING if ends is None else f"{percent(ends[0], sign)} .. {percent(ends[1], sign)}"


def score_table(scores: Scores, only: Collection[str] | None = None) -> Table:
    """Dimensions, categories and the total, in percent; with ``only``, these dimensions alone."""
    lines = [scores.dimensions[name] for name in only or ()]
    if only is None:
        for category in scores.suite.categories:  # each below its dimensions, the total last
            lines += [scores.dimensions[d.name] for d in category.dimensions]
            lines.append(scores.categories[category.name])
        lines.append(scores.categories["Total"])
    rows = [
        (
            line.name,
            percent(line.score),
            _interval(line.interval),
            line.videos,
            line.not_applicable,
            len(line.unscored),
            line.origin,
        )
        for line in lines
    ]
    title = f"{scores.suite.title}: percent, 95 % intervals over prompts"
    columns = ("dimension", "score", "interval", "videos", "-1", "unscored", "by")
    return result_table(title, columns, rows)


def score_notes(lines: Iterable[ScoreLine]) -> list[str]:
    """Notes and the first reasons of unscored videos, one line each."""
    notes = []
    for line in lines:
        # That a dimension was not run is told once, in the notes of its category.
        notes += [f"{line.name}: {note}" for note in line.notes if note != "no result"]
        reasons = [f"{line.name}: unscored {video}: {why}" for video, why in line.unscored.items()]
        notes += reasons[:_SHOWN]
        if len(reasons) > _SHOWN:
            notes.append(f"{line.name}: {len(reasons) - _SHOWN} more unscored videos")
    return notes


def doctor_report(suite: Suite, lacking: Mapping[str, Mapping[str, str]]) -> list[str]:
    """What is missing for each dimension, and then once how to get each thing."""
    lines = [f"{name}: {', '.join(things) or 'nothing'}" for name, things in lacking.items()]
    ways = dict.fromkeys(f"{what}: {how}" for own in lacking.values() for what, how in own.items())
    return [f"{suite.title}, missing here for the public code:", *lines, "", *ways]


def run_report(report: RunReport) -> list[Table | str]:
    """What a run scored, why videos are unscored, and what could not be run."""
    table = [score_table(report.scores, only=report.results)] if report.results else []
    not_run = [
        f"{name}: not run, missing: {', '.join(things)}; see `eval vbench doctor`"
        for name, things in report.not_run.items()
    ]
    return [*table, *score_notes(report.scores.dimensions[n] for n in report.results), *not_run]


def comparison_report(
    suite: Suite, comparison: Comparison, names: Sequence[str]
) -> list[Table | str]:
    """Both scores, their difference, what can be said about it, and on what it stands."""
    rows = []
    for line in comparison.lines:
        ends = None
        if line.difference is not None and line.half_width is not None:
            ends = (line.difference - line.half_width, line.difference + line.half_width)
        scores = (percent(line.first), percent(line.second), percent(line.difference, "+"))
        rows.append((line.name, *scores, _interval(ends, "+"), line.verdict))
    title = (
        f"{suite.title}, percent. Intervals: 95 % for the total, and for the other "
        f"{comparison.family} lines together"
    )
    columns = ("", "first", "second", "difference", "interval", "verdict")
    bases = dict.fromkeys(line.basis for line in comparison.lines if line.basis)
    head = f"first: {names[0]}\nsecond: {names[1]}\nintervals by: {', '.join(bases)}"
    return [head, result_table(title, columns, rows), *comparison.remarks]


def round_trip_report(plan: Plan, scores: Scores) -> list[Table | str]:
    """What the round trip scored, and what it did not."""
    total = sum(len(suite.dimensions) for suite in SUITES.values())
    scored = [name for name, line in scores.dimensions.items() if line.score is not None]
    notes = [f"{name}: {note}" for name in scored for note in scores.dimensions[name].notes]
    remarks = [f"plan: {remark}" for remark in plan.remarks]
    last = (
        f"Scored: {', '.join(scored)} ({len(scored)} of {total} dimensions), on "
        f"{len(plan.videos)} videos of {len(plan.rows)} prompts. Not scored: the other "
        f"{total - len(scored)}, whose weights are not here; `eval vbench doctor` says how to get "
        "each. No total is given: a missing dimension is not 0."
    )
    return [score_table(scores, only=scored), *notes, *remarks, last]
