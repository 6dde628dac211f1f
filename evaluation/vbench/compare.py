"""Which of two models is better, and is the difference more than the noise of the prompts?

Two sets of results are compared under the same resamples of prompts. Published scores have no
results of videos: there, a rough standard error stands in, and the comparison says so.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from scipy.stats import t as student_t

from longtake.evaluation.vbench.aggregate import planned_results
from longtake.evaluation.vbench.bootstrap import (
    FloatArray,
    prompt_of,
    resampled_scores,
    standard_error,
)
from longtake.evaluation.vbench.plan import Plan
from longtake.evaluation.vbench.published import PublishedModel, find_published, rough_error
from longtake.evaluation.vbench.result_files import ResultSet, read_results
from longtake.evaluation.vbench.suites import Suite
from longtake.evaluation.vbench.totals import all_scores

PAIRED = "paired prompts"
ROUGH = "rough bound"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One line: first minus second."""

    name: str
    first: float | None
    second: float | None
    low: float | None
    high: float | None
    """Interval of the difference; None when there is no basis for one."""
    basis: str
    """`paired prompts`, `rough bound`, or why there is no interval."""

    @property
    def difference(self) -> float | None:
        """The first score minus the second; None when one is missing."""
        if self.first is None or self.second is None:
            return None
        return self.first - self.second

    @property
    def verdict(self) -> str:
        """In words."""
        if self.difference is None:
            return "no score"
        if self.low is None or self.high is None:
            return "not known"
        if self.low > 0:
            return "first is better"
        return "second is better" if self.high < 0 else "not separable"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Differences by dimension, category and in total."""

    suite: Suite
    lines: tuple[Difference, ...]
    """`Total` last."""
    confidence: float
    """Of the interval of the total."""
    family: int
    """Other lines with an interval: theirs hold together with ``confidence`` (Bonferroni)."""
    remarks: tuple[str, ...]


def read_side(suite: Suite, name: str) -> ResultSet | PublishedModel:
    """One side of a comparison: a folder or zip of results, or the name of a published model.

    Raises:
        UserError: neither.
    """
    path = Path(name)
    if path.exists():
        return read_results(suite, path)
    return find_published(suite, name)


def compare(
    suite: Suite,
    first: ResultSet | PublishedModel,
    second: ResultSet | PublishedModel,
    plan: Plan | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare two models.

    Args:
        suite: that both were scored on.
        first: results or published scores.
        second: the same.
        plan: videos that should have results; see :func:`aggregate`.
        confidence: of the intervals, in (0, 1).
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    sides = [_Side(suite, side, plan) for side in (first, second)]
    order = [*suite.dimensions, *(c.name for c in suite.categories), "Total"]
    names = [name for name in order if any(name in side.scores for side in sides)]
    models = [side.results for side in sides if side.results is not None]
    samples = resampled_scores(suite, models, resamples=resamples, seed=seed) if models else []
    for side in sides:
        if side.results is not None:
            side.samples = samples.pop(0)
    family = sum(n != "Total" and all(n in side.scores for side in sides) for n in names)
    lines = []
    for name in names:
        level = confidence if name == "Total" else 1 - (1 - confidence) / max(1, family)
        low_high, basis = _interval(suite, name, sides, level)
        lines.append(
            Difference(
                name=name,
                first=sides[0].scores.get(name),
                second=sides[1].scores.get(name),
                low=None if low_high is None else low_high[0],
                high=None if low_high is None else low_high[1],
                basis=basis,
            )
        )
    return Comparison(
        suite=suite,
        lines=tuple(lines),
        confidence=confidence,
        family=family,
        remarks=(*(remark for side in sides for remark in side.remarks), *_mixed_versions(sides)),
    )


def _mixed_versions(sides: Sequence["_Side"]) -> list[str]:
    """Remarks where results came from different code or prompts: those are different metrics."""
    remarks = []
    for key in ("upstream_commit", "suite_sha256"):
        values = {
            str(results.provenance[key])
            for side in sides
            for results in (side.results or {}).values()
            if key in results.provenance
        }
        if len(values) > 1:
            remarks.append(f"not the same {key}: {', '.join(sorted(values))}")
    return remarks


class _Side:
    """Scores of one side and what is known about their noise."""

    def __init__(self, suite: Suite, side: ResultSet | PublishedModel, plan: Plan | None) -> None:
        self.samples: dict[str, FloatArray] = {}
        self.errors: dict[str, float] = {}
        self.remarks: list[str] = []
        if isinstance(side, PublishedModel):
            self.results = None
            self.scores: Mapping[str, float] = {**side.dimensions, **side.categories}
            self.errors = rough_error(suite, side.categories)
            self.remarks.append(
                f"{side.name}: {side.source}, evaluated {side.evaluated}; no results of videos, so "
                "its noise is a rough bound from the number of prompts"
            )
            return
        self.results = planned_results(side, plan)
        known = {n: r.score for n, r in self.results.items()}
        dimensions = {n: score for n, score in known.items() if score is not None}
        self.scores = {**dimensions, **all_scores(suite, dimensions)}
        self.remarks += side.problems
        for name, results in self.results.items():
            if results.unscored:
                self.remarks.append(f"{side.source}: {name} lacks {len(results.unscored)} results")
            if not results.applicable:
                self.remarks.append(f"{side.source}: {name} has no results of videos")

    def error(self, suite: Suite, name: str) -> float | None:
        """Standard error of a score; None when unknown."""
        if name in self.errors:
            return self.errors[name]
        found = standard_error(suite, name, self.samples, self.prompts)
        return None if found is None else found[0]

    @cached_property
    def prompts(self) -> dict[str, int]:
        """Number of prompts that count, by dimension."""
        return {
            name: len({prompt_of(video) for video in results.applicable})
            for name, results in (self.results or {}).items()
        }


def _interval(
    suite: Suite, name: str, sides: Sequence[_Side], level: float
) -> tuple[tuple[float, float] | None, str]:
    """Interval of the difference and what it stands on."""
    first, second = sides
    if any(name not in side.scores for side in sides):
        return None, "one side has no score"
    if first.samples and second.samples:
        differences = {
            n: first.samples[n] - second.samples[n]
            for n in first.samples.keys() & second.samples.keys()
        }
        others = second.prompts
        prompts = {n: min(count, others.get(n, 0)) for n, count in first.prompts.items()}
        found, basis = standard_error(suite, name, differences, prompts), PAIRED
    else:
        errors = [side.error(suite, name) for side in sides]
        known = errors[0] is not None and errors[1] is not None
        found = (math.hypot(errors[0] or 0, errors[1] or 0), math.inf) if known else None
        basis = ROUGH
    if found is None:
        return None, "no results of videos"
    error, freedom = found
    half = float(student_t.ppf((1 + level) / 2, freedom)) * error if error else 0.0
    difference = first.scores[name] - second.scores[name]
    return (difference - half, difference + half), basis
