"""From results of videos to dimensions, categories and the total: one model, two models, a zip.

A missing dimension is never 0: what depends on it has no score, and the table says why.

Intervals. Videos of a prompt are not independent, and one prompt may test several dimensions with
the same videos, so prompts are the units. A line L is linear in its dimensions, L = sum_d a_d x_d,
and x_d is a ratio of sums over prompts; to first order prompt p moves L by

    z_p = sum_d a_d (sum of p's values - x_d * p's weight) / W_d,     Var L = sum_p z_p^2,

where W_d is the weight of all prompts. That is the variance that resampling prompts tends to; it
needs no draws, holds for all lines at once and shares prompts between dimensions correctly. Each
dimension's part v_d gets the factor n_d / (n_d - 1), and the lines of few prompts (Diversity has
ten) Student's t with the degrees of freedom of Welch and Satterthwaite: percentiles of resamples of
ten prompts end where the prompts end.
"""

import json
import math
import zipfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import t as student_t

from longtake.evaluation.vbench.plan import Plan
from longtake.evaluation.vbench.results import (
    RESULTS_ENDING,
    DimensionResults,
    ResultSet,
    public_content,
    read_results,
)
from longtake.evaluation.vbench.suites import Suite, find_suite
from longtake.runtime.errors import UserError
from longtake.runtime.files import explained, replacing

PUBLISHED = Path(__file__).resolve().parents[2] / "benchmarks_data" / "published"
CONFIDENCE = 0.95
PAIRED, ROUGH = "paired prompts", "rough bound"
_Interval = Callable[[str, float | None], tuple[float, float] | None]
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the bytes of the zip depend on the results only


def prompt_of(video: str) -> str:
    """The part of a file name that stands for the prompt: `{prompt[:180]}-{index}.mp4`."""
    return video.rpartition("-")[0]


@dataclass(frozen=True, kw_only=True)
class ScoreLine:
    """One line of the table."""

    name: str
    score: float | None
    """In [0, 1]; None when it cannot be given."""
    interval: tuple[float, float] | None
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

    def as_record(self) -> dict[str, Any]:
        """The line in JSON; a score that is missing is null."""
        record = asdict(self) | {"ci95": self.interval, "unscored": dict(self.unscored or {})}
        return {key: value for key, value in record.items() if key not in ("name", "interval")}


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The table of one model."""

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
        """What `eval vbench aggregate --json` writes."""
        return {
            "suite": self.suite.name,
            "problems": list(self.problems),
            "categories": {n: line.as_record() for n, line in self.categories.items()},
            "dimensions": {n: line.as_record() for n, line in self.dimensions.items()},
        }


def aggregate(
    found: ResultSet, plan: Plan | None = None, *, allow_incomplete: bool = False
) -> Scores:
    """Score a model from its results.

    ``plan`` says which videos should be there; None compares numbers with the official suite.
    ``allow_incomplete`` gives totals also where videos (never dimensions) are missing.
    """
    suite = found.suite
    results = planned_results(found, plan)
    moves = prompt_moves(results)

    def interval(line: str, score: float | None) -> tuple[float, float] | None:
        error = standard_error(suite, line, moves, moves.count())
        if score is None or error is None:
            return None
        half = _half_width(error, CONFIDENCE)
        return score - half, score + half

    lines = {name: _dimension_line(name, results.get(name), interval) for name in suite.dimensions}
    # Only complete lines: a mean over what happens to be there is another metric.
    totals = suite.totals(
        {
            name: line.score
            for name, line in lines.items()
            if line.score is not None and (line.is_complete or allow_incomplete)
        }
    )
    groups = {c.name: [lines[d.name] for d in c.dimensions] for c in suite.categories}
    groups["Total"] = list(lines.values())
    categories = {
        name: _category_line(name, totals.get(name), members, interval)
        for name, members in groups.items()
    }
    return Scores(
        suite=suite, dimensions=lines, categories=categories, problems=tuple(found.problems)
    )


def planned_results(found: ResultSet, plan: Plan | None) -> dict[str, DimensionResults]:
    """Copies in which videos without a result are unscored, and unplanned ones are left out."""
    return {name: _planned(results, plan) for name, results in found.dimensions.items()}


def _planned(results: DimensionResults, plan: Plan | None) -> DimensionResults:
    dimension = results.dimension
    if not results.videos and not results.unscored:
        return results  # only a score is known, as for published models
    videos, unscored = dict(results.videos), dict(results.unscored)
    problems = list(results.problems)
    if plan is None:
        expected = dimension.prompts * dimension.results_per_prompt
        num_absent = expected - len(videos) - len(unscored)
        absent = [f"{num_absent} more"]
        if num_absent < 0:
            problems.append(f"{-num_absent} results more than the official suite's {expected}")
    else:
        planned = dict.fromkeys(plan.results_of(dimension.name))
        absent = [name for name in planned if name not in videos and name not in unscored]
        num_absent = len(absent)
        # Left over from another plan in the same folder, most often.
        if strange := sorted(set(videos) - set(planned)):
            problems.append(f"{len(strange)} results are not planned and not used: {strange[0]}...")
            videos = {name: result for name, result in videos.items() if name in planned}
    # A video without any object and one that was never scored look the same here.
    if num_absent > 0 and dimension.leaves_out:
        problems.append(f"upstream left out {num_absent} videos: no object found, or no video")
    elif num_absent > 0:
        unscored |= dict.fromkeys(absent, "missing: no result")
    return replace(results, videos=videos, unscored=unscored, problems=problems)


def _dimension_line(name: str, results: DimensionResults | None, interval: _Interval) -> ScoreLine:
    if results is None:
        return ScoreLine(name=name, score=None, interval=None, notes=("no result",))
    counted = results.applicable
    return ScoreLine(
        name=name,
        score=results.score,
        interval=interval(name, results.score),
        videos=len(counted),
        prompts=len({prompt_of(video) for video in counted}),
        not_applicable=len(results.videos) - len(counted),
        unscored=dict(results.unscored),
        origin=results.origin,
        notes=tuple(results.notes()),
    )


def _category_line(
    name: str,
    score: float | None,
    members: list[ScoreLine],
    interval: _Interval,
) -> ScoreLine:
    """A category or the total, with the reason where it has no score."""
    missing = [line.name for line in members if line.score is None]
    partial = [line.name for line in members if line.score is not None and line.unscored]
    notes = []
    if missing:
        notes.append(f"no score without {', '.join(missing)}")
    if partial:
        word = "incomplete" if score is not None else "no score while videos are missing"
        notes.append(f"{word}: {', '.join(partial)}")
    return ScoreLine(
        name=name,
        score=score,
        interval=interval(name, score),
        videos=sum(line.videos for line in members),
        notes=tuple(notes),
    )


def prompt_moves(results: Mapping[str, DimensionResults]) -> pd.DataFrame:
    """How far each prompt moves each dimension, [prompts, dimensions]: z_p before the a_d.

    NaN where no video of a prompt counts in a dimension.
    """
    columns: dict[str, pd.Series] = {}
    for name, own in results.items():
        mean = own.recomputed
        if not own.applicable or mean is None:
            continue
        sums: dict[str, float] = defaultdict(float)
        for video, result in own.applicable.items():
            # A score that upstream's rule forces to 0 does not move with its prompts.
            move = 0.0 if own.forced_to_zero else result.value / own.dimension.unit - mean
            sums[prompt_of(video)] += result.frames * move
        columns[name] = pd.Series(sums) / sum(v.frames for v in own.applicable.values())
    return pd.DataFrame(columns)


def standard_error(
    suite: Suite, line: str, moves: pd.DataFrame, prompts: pd.Series
) -> tuple[float, float] | None:
    """Standard error of a line and its degrees of freedom; see the head of this file.

    ``moves`` are of one model, or of the first minus the second; ``prompts`` is n_d by dimension.
    None when one of the line's dimensions has fewer than two prompts.
    """
    shares = suite.shares(line)
    n = np.array([prompts.get(name, 0) for name in shares])
    if (n < 2).any():
        return None
    parts = np.nan_to_num(moves[list(shares)].to_numpy()) * np.array(list(shares.values()))
    plain = (parts**2).sum(axis=0)
    corrected = plain * n / (n - 1)
    if not plain.sum():
        return 0.0, math.inf
    # The squares of the sums hold the covariances of dimensions that share prompts.
    variance = (parts.sum(axis=1) ** 2).sum() * corrected.sum() / plain.sum()
    freedom = corrected.sum() ** 2 / (corrected**2 / (n - 1)).sum()
    return math.sqrt(variance), float(freedom)


def _half_width(error: tuple[float, float], confidence: float) -> float:
    width, freedom = error
    return float(student_t.ppf((1 + confidence) / 2, freedom)) * width if width else 0.0


@dataclass(frozen=True, kw_only=True)
class PublishedModel:
    """One row of a published table, such as Table 8 of the report."""

    name: str
    source: str
    evaluated: str
    """Year and month of the evaluation."""
    categories: Mapping[str, float]
    """Categories and `Total`, in [0, 1]."""
    dimensions: Mapping[str, float]
    """In [0, 1]; empty where only categories were published."""


def published_models(suite: Suite, folder: Path = PUBLISHED) -> dict[str, PublishedModel]:
    """All published rows of a suite by name; empty where none are shipped."""
    path = folder / f"{suite.name}.json"
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    unit = {"percent": 100.0, "fraction": 1.0}[content["unit"]]
    assert find_suite(content["suite"]) is suite, path
    return {
        row["model"]: PublishedModel(
            name=row["model"],
            source=row["source"],
            evaluated=row["evaluated"],
            categories={k: float(v) / unit for k, v in row["categories"].items()},
            dimensions={k: float(v) / unit for k, v in row.get("dimensions", {}).items()},
        )
        for row in content["models"]
    }


def rough_errors(suite: Suite, categories: Mapping[str, float]) -> dict[str, float]:
    """Rough standard error of published scores, which come without results of videos.

    Each dimension counts as a share p of its prompts, with p the score of its category; then
    p (1 - p) / prompts is the variance if all videos of a prompt agree and every result is 0 or 1.
    Graded results and videos that disagree have less; prompts that two dimensions share and videos
    to which a dimension does not apply add to it. By category that is given, and for `Total` when
    all are.
    """
    variances = {
        d.name: categories[c.name] * (1 - categories[c.name]) / d.prompts
        for c in suite.categories
        if c.name in categories
        for d in c.dimensions
    }
    return {
        line: math.sqrt(sum(a**2 * variances[name] for name, a in suite.shares(line).items()))
        for line in (*(c.name for c in suite.categories), "Total")
        if suite.shares(line).keys() <= variances.keys()
    }


class Difference(NamedTuple):
    """One line of a comparison; None where a score or a basis for its noise is missing."""

    name: str
    first: float | None
    second: float | None
    difference: float | None
    """First minus second."""
    half_width: float | None
    """Of the interval of the difference."""
    basis: str
    """`paired prompts`, `rough bound`, or why two scores have no interval."""

    @property
    def verdict(self) -> str:
        """In words."""
        if self.difference is None:
            return "no score"
        if self.half_width is None:
            return "not known"
        if abs(self.difference) <= self.half_width:
            return "not separable"
        return "first is better" if self.difference > 0 else "second is better"


class Comparison(NamedTuple):
    """Differences by dimension, category and in total."""

    lines: list[Difference]
    """`Total` last."""
    family: int
    """Lines beside the total; their intervals hold together with 95 % (Bonferroni)."""
    remarks: list[str]


def read_side(suite: Suite, name: str) -> ResultSet | PublishedModel:
    """One side of a comparison: a folder, zip or file of results, or a published model."""
    if Path(name).exists():
        return read_results(suite, Path(name))
    rows = published_models(suite)
    if name not in rows:
        raise UserError(
            f"no published {suite.title} results of this model, and no folder of results",
            received=name,
            expected=f"a folder or zip, or one of: {', '.join(rows) or 'none shipped'}",
        )
    return rows[name]


class _Side:
    """Scores of one side and what is known about their noise."""

    def __init__(self, suite: Suite, side: ResultSet | PublishedModel, plan: Plan | None) -> None:
        self.errors: dict[str, float] = {}
        self.results: dict[str, DimensionResults] = {}
        self.remarks: list[str] = []
        if isinstance(side, PublishedModel):
            self.scores = {**side.dimensions, **side.categories}
            self.errors = rough_errors(suite, side.categories)
            self.remarks.append(
                f"{side.name}: {side.source}, evaluated {side.evaluated}; no results of videos, so "
                "its noise is a rough bound from the number of prompts"
            )
        else:
            self.results = planned_results(side, plan)
            own = {n: r.score for n, r in self.results.items() if r.score is not None}
            self.scores = {**own, **suite.totals(own)}
            self.remarks += side.problems
        for name, results in self.results.items():
            if results.unscored:
                self.remarks.append(f"{side.source}: {name} lacks {len(results.unscored)} results")
            if not results.applicable:
                self.remarks.append(f"{side.source}: {name} has no results of videos")
        self.moves = prompt_moves(self.results)

    def error(self, suite: Suite, line: str) -> tuple[float, float] | None:
        """Standard error of a score and its degrees of freedom; None when unknown."""
        if line in self.errors:
            return self.errors[line], math.inf
        return standard_error(suite, line, self.moves, self.moves.count())


def compare(
    suite: Suite,
    first: ResultSet | PublishedModel,
    second: ResultSet | PublishedModel,
    plan: Plan | None = None,
) -> Comparison:
    """Which of two models is better, and is that more than the noise of the prompts?

    Two sets of results are compared prompt by prompt. Published scores have no results of videos:
    there, a rough standard error stands in, and the comparison says so.
    """
    sides = [_Side(suite, side, plan) for side in (first, second)]
    order = (*suite.dimensions, *(c.name for c in suite.categories), "Total")
    names = [name for name in order if any(name in side.scores for side in sides)]
    # The total is the question; the other lines are looked at together, after it.
    family = sum(n != "Total" and all(n in side.scores for side in sides) for n in names)
    moves = sides[0].moves.sub(sides[1].moves, fill_value=0.0)
    prompts = pd.concat([side.moves.count() for side in sides], axis=1).min(axis=1)
    # A published row has no videos, so nothing can be paired with it.
    paired = all(side.results for side in sides)
    lines = []
    for name in names:
        level = CONFIDENCE if name == "Total" else 1 - (1 - CONFIDENCE) / max(1, family)
        scores = [side.scores.get(name) for side in sides]
        difference, half_width, basis = None, None, ""
        if scores[0] is not None and scores[1] is not None:
            difference, basis = scores[0] - scores[1], PAIRED if paired else ROUGH
            if paired:
                error = standard_error(suite, name, moves, prompts)
            else:
                error = _apart(sides[0].error(suite, name), sides[1].error(suite, name))
            if error is None:
                basis = "no results of videos"
            else:
                half_width = _half_width(error, level)
        lines.append(Difference(name, scores[0], scores[1], difference, half_width, basis))
    remarks = [remark for side in sides for remark in side.remarks]
    for key in ("upstream_commit", "suite_sha256"):  # of other code or prompts: another metric
        own = (results for side in sides for results in side.results.values())
        values = {str(r.provenance[key]) for r in own if key in r.provenance}
        if len(values) > 1:
            remarks.append(f"not the same {key}: {', '.join(sorted(values))}")
    return Comparison(lines, family, remarks)


def _apart(
    first: tuple[float, float] | None, second: tuple[float, float] | None
) -> tuple[float, float] | None:
    """Standard error of the difference of two scores that share nothing."""
    if first is None or second is None:
        return None
    return math.hypot(first[0], second[0]), math.inf


def submit(suite: Suite, source: Path, out: Path, plan: Plan | None = None) -> Scores:
    """Check the results of a model and pack them for the public leaderboard.

    The public aggregator looks one level deep only and takes a missing dimension for 0, so results
    in the layout of the public `evaluate.sh` (two levels) get a total of 0. Here they are found at
    any depth and packed so that it finds them; incomplete ones are refused. Returns the scores that
    the leaderboard will compute.
    """
    found = read_results(suite, source)
    scores = aggregate(found, plan)
    lacking = []
    for name, line in scores.dimensions.items():
        if line.score is None or not line.videos:
            lacking.append(f"{name}: {'; '.join(line.notes) or 'no results of videos'}")
        elif line.unscored:
            video, why = next(iter(line.unscored.items()))
            lacking.append(f"{name}: {len(line.unscored)} videos unscored, {video}: {why}")
    if lacking or scores.problems:
        raise UserError(
            "the results are not complete, so nothing was packed",
            received="\n    ".join([str(source), *scores.problems, *lacking]),
            expected=f"all {len(suite.dimensions)} dimensions with every video scored",
            remedy="run what is missing with `eval vbench run`; it continues where it stopped",
        )
    with (
        explained("write the zip", out),
        replacing(out) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name, results in planned_results(found, plan).items():
            # One folder deep: the public aggregator looks no deeper.
            info = zipfile.ZipInfo(f"{name}/{name}{RESULTS_ENDING}", _ZIP_TIME)
            info.compress_type = zipfile.ZIP_DEFLATED
            text = json.dumps(public_content(results), indent=4, ensure_ascii=False)
            archive.writestr(info, text)
    return scores
