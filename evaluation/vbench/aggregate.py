"""The score table of one model: dimensions, categories and the total, with intervals.

A missing dimension is never 0: what depends on it has no score, and the table says why.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from longtake.evaluation.vbench.bootstrap import Spread, prompt_of, resampled_scores, spread
from longtake.evaluation.vbench.plan import Plan
from longtake.evaluation.vbench.result_files import ResultSet
from longtake.evaluation.vbench.results import DimensionResults
from longtake.evaluation.vbench.suites import Suite
from longtake.evaluation.vbench.totals import all_scores


@dataclass(frozen=True, kw_only=True)
class ScoreLine:
    """One line of the table."""

    name: str
    score: float | None
    """In [0, 1]; None when it cannot be given."""
    interval: Spread | None
    """95 % over prompts; None without results of videos, or from one prompt."""
    videos: int = 0
    """Videos in the mean (Diversity: prompts)."""
    prompts: int = 0
    not_applicable: int = 0
    """Videos that left the mean because their result is -1."""
    unscored: Mapping[str, str] | None = None
    """Reason by video, for videos that should count and do not."""
    origin: str = ""
    notes: tuple[str, ...] = ()
    """Why there is no score, and what to know about the one there is."""

    @property
    def is_complete(self) -> bool:
        """Whether there is a score and every video it needs is in it."""
        return self.score is not None and not self.unscored


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The whole table."""

    suite: Suite
    dimensions: Mapping[str, ScoreLine]
    """Every dimension of the suite, scored or not."""
    categories: Mapping[str, ScoreLine]
    """Every category, and `Total` last."""
    problems: tuple[str, ...]
    """About files that could not be used."""

    @property
    def is_complete(self) -> bool:
        """Whether the total stands on every video of every dimension."""
        return self.categories["Total"].score is not None and not self.problems

    def as_record(self) -> dict[str, Any]:
        """JSON-ready content; a score that is missing is null."""
        return {
            "suite": self.suite.name,
            "problems": list(self.problems),
            "categories": {n: _line_record(line) for n, line in self.categories.items()},
            "dimensions": {n: _line_record(line) for n, line in self.dimensions.items()},
        }


def _line_record(line: ScoreLine) -> dict[str, Any]:
    interval = line.interval
    return {
        "score": line.score,
        "ci95": None if interval is None else [interval.low, interval.high],
        "videos": line.videos,
        "prompts": line.prompts,
        "not_applicable": line.not_applicable,
        "unscored": dict(line.unscored or {}),
        "origin": line.origin,
        "notes": list(line.notes),
    }


def aggregate(
    found: ResultSet,
    plan: Plan | None = None,
    *,
    allow_incomplete: bool = False,
    resamples: int = 10_000,
    seed: int = 0,
) -> Scores:
    """Score a model from its results.

    Args:
        found: see :func:`longtake.evaluation.vbench.result_files.read_results`.
        plan: the videos that should be there; None compares numbers with the official suite.
        allow_incomplete: give categories and the total also where videos (never dimensions) are
            missing; the notes say so.
        resamples: of the bootstrap over prompts.
        seed: of the bootstrap.
    """
    suite = found.suite
    results = planned_results(found, plan)
    samples = resampled_scores(suite, [results], resamples=resamples, seed=seed)[0]
    intervals = {name: spread(values) for name, values in samples.items()}
    lines = {name: _line(name, results.get(name), intervals.get(name)) for name in suite.dimensions}
    usable = {
        name: line.score
        for name, line in lines.items()
        if line.score is not None and (line.is_complete or allow_incomplete)
    }
    scores = all_scores(suite, usable)
    categories = {}
    for category in suite.categories:
        names = [d.name for d in category.dimensions]
        categories[category.name] = _category_line(category.name, names, lines, scores, intervals)
    names = list(suite.dimensions)
    categories["Total"] = _category_line("Total", names, lines, scores, intervals)
    return Scores(
        suite=suite, dimensions=lines, categories=categories, problems=tuple(found.problems)
    )


def planned_results(found: ResultSet, plan: Plan | None) -> dict[str, DimensionResults]:
    """Results by dimension after :func:`_with_missing`."""
    return {name: _with_missing(known, plan) for name, known in found.dimensions.items()}


def _with_missing(results: DimensionResults, plan: Plan | None) -> DimensionResults:
    """A copy in which videos without a result are unscored, and unplanned ones are left out."""
    dimension = results.dimension
    if not results.videos and not results.unscored:
        return results  # only a score is known, as for published models
    videos, unscored = dict(results.videos), dict(results.unscored)
    problems = list(results.problems)
    if plan is None:
        expected = dimension.prompts * dimension.results_per_prompt
        absent = [f"{expected - len(videos) - len(unscored)} more"]
        num_absent = expected - len(videos) - len(unscored)
        if num_absent < 0:
            problems.append(f"{-num_absent} results more than the official suite's {expected}")
    else:
        planned = plan.results_of(dimension.name)
        absent = [name for name in planned if name not in videos and name not in unscored]
        num_absent = len(absent)
        if strange := sorted(set(videos) - set(planned)):
            problems.append(f"{len(strange)} results are not planned and not used: {strange[0]}...")
            videos = {name: result for name, result in videos.items() if name in set(planned)}
    if num_absent > 0 and dimension.leaves_out:
        problems.append(f"upstream left out {num_absent} videos: no object found, or no video")
    elif num_absent > 0:
        unscored |= dict.fromkeys(absent, "missing: no result")
    return replace(results, videos=videos, unscored=unscored, problems=problems)


def _line(name: str, results: DimensionResults | None, interval: Spread | None) -> ScoreLine:
    if results is None:
        return ScoreLine(name=name, score=None, interval=None, notes=("no result",))
    counted = results.applicable
    return ScoreLine(
        name=name,
        score=results.score,
        interval=interval,
        videos=len(counted),
        prompts=len({prompt_of(video) for video in counted}),
        not_applicable=len(results.videos) - len(counted),
        unscored=dict(results.unscored),
        origin=results.origin,
        notes=tuple(results.notes()),
    )


def _category_line(
    name: str,
    members: list[str],
    lines: Mapping[str, ScoreLine],
    scores: Mapping[str, float],
    intervals: Mapping[str, Spread | None],
) -> ScoreLine:
    """A category or the total, with the reason where it has no score."""
    missing = [member for member in members if lines[member].score is None]
    partial = [m for m in members if lines[m].score is not None and lines[m].unscored]
    notes = []
    if missing:
        notes.append(f"no score without {', '.join(missing)}")
    if partial:
        word = "incomplete" if name in scores else "no score while videos are missing"
        notes.append(f"{word}: {', '.join(partial)}")
    return ScoreLine(
        name=name,
        score=scores.get(name),
        interval=intervals.get(name) if name in scores else None,
        videos=sum(lines[member].videos for member in members),
        notes=tuple(notes),
    )
