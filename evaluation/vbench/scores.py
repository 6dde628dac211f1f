"""From results of videos to dimensions, categories and the total: one model, two models, a zip.

A missing dimension is never 0: what depends on it has no score, and the table says why.

Intervals. Videos of a prompt are not independent, and one prompt may test several dimensions with
the same videos, so prompts are the units. A line L is linear in its dimensions, L = sum_d a_d x_d,
and x_d is a ratio of sums over prompts; to first order prompt p moves L by

    z_p = sum_d a_d (sum of p's values - x_d * p's weight) / W_d,     Var L = sum_p z_p^2,

where W_d is the weight of all prompts (docs/vbench.md). No draws are needed, and percentiles of
resamples of ten prompts (Diversity) would end where the prompts end.
"""

import json
import math
import zipfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
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
from longtake.evaluation.vbench.suites import Suite
from longtake.runtime.errors import UserError
from longtake.runtime.files import explained, replacing

PUBLISHED = Path(__file__).resolve().parents[2] / "benchmarks_data" / "published"
CONFIDENCE = 0.95
PAIRED, ROUGH = "paired prompts", "rough bound"
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the bytes of the zip depend on the results only


def prompt_of(video: str) -> str:
    """The part of a file name that stands for the prompt: `{prompt[:180]}-{index}.mp4`."""
    return video.rpartition("-")[0]


@dataclass(frozen=True, kw_only=True)
class ScoreLine:
    """One line of the table."""

    name: str
    score: float | None = None
    """In [0, 1]; None when it cannot be given."""
    interval: tuple[float, float] | None = None
    """95 % over prompts; None without results of videos, or from one prompt."""
    videos: int = 0
    """Videos in the mean (Diversity: prompts)."""
    prompts: int = 0
    not_applicable: int = 0
    """Videos that left the mean because their result is -1."""
    unscored: Mapping[str, str] = field(default_factory=dict)
    """Reason by video, for videos that should count and do not."""
    origin: str = ""
    notes: tuple[str, ...] = ()
    """Why there is no score, and what to know about the one there is."""

    def as_record(self) -> dict[str, Any]:
        """The line in JSON; a score that is missing is null."""
        record = asdict(self) | {"ci95": self.interval}
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


def aggregate(found: ResultSet, plan: Plan | None = None) -> Scores:
    """Score a model from its results.

    ``plan`` says which videos should be there; None compares numbers with the official suite.
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

    lines = {name: ScoreLine(name=name, notes=("no result",)) for name in suite.dimensions}
    for name, own in results.items():
        counted = own.applicable
        lines[name] = ScoreLine(
            name=name,
            score=own.score,
            interval=interval(name, own.score),
            videos=len(counted),
            prompts=len({prompt_of(video) for video in counted}),
            not_applicable=len(own.videos) - len(counted),
            unscored=own.unscored,
            origin=own.origin,
            notes=tuple(own.notes()),
        )
    # Only complete lines: a mean over what happens to be there is another metric.
    complete = {n: v.score for n, v in lines.items() if v.score is not None and not v.unscored}
    totals = suite.totals(complete)
    groups = {c.name: [lines[d.name] for d in c.dimensions] for c in suite.categories}
    categories = {}
    for name, members in {**groups, "Total": list(lines.values())}.items():
        notes = []
        if missing := [line.name for line in members if line.score is None]:
            notes.append(f"no score without {', '.join(missing)}")
        if partial := [line.name for line in members if line.score is not None and line.unscored]:
            notes.append(f"no score while videos are missing: {', '.join(partial)}")
        categories[name] = ScoreLine(
            name=name,
            score=totals.get(name),
            interval=interval(name, totals.get(name)),
            videos=sum(line.videos for line in members),
            notes=tuple(notes),
        )
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
    Each dimension's part gets n_d / (n_d - 1); degrees of freedom by Welch and Satterthwaite. None
    when one of the line's dimensions has fewer than two prompts.
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
    """One row of a published table, such as Table 8 of the report; scores in [0, 1]."""

    name: str
    source: str
    evaluated: str
    """Year and month of the evaluation."""
    categories: Mapping[str, float]
    """Categories and `Total`."""
    dimensions: Mapping[str, float]
    """Empty where only categories were published."""


def published_models(suite: Suite) -> dict[str, PublishedModel]:
    """All published rows of a suite by name; empty where none are shipped."""
    path = PUBLISHED / f"{suite.name}.json"
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    unit = {"percent": 100.0, "fraction": 1.0}[content["unit"]]
    return {
        row["model"]: PublishedModel(
            name=row["model"],
            source=row["source"],
            evaluated=row["evaluated"],
            categories={k: v / unit for k, v in row["categories"].items()},
            dimensions={k: v / unit for k, v in row.get("dimensions", {}).items()},
        )
        for row in content["models"]
    }


def rough_errors(suite: Suite, categories: Mapping[str, float]) -> dict[str, float]:
    """Rough standard error of published scores: categories that are given, `Total` when all are.

    Each dimension counts as a share p of its prompts, with p the score of its category; then
    p (1 - p) / prompts is the variance if all videos of a prompt agree and every result is 0 or 1.
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
    sides = (first, second)
    results = [{} if isinstance(s, PublishedModel) else planned_results(s, plan) for s in sides]
    scores = [_scores(suite, *side) for side in zip(sides, results, strict=True)]
    order = (*suite.dimensions, *(c.name for c in suite.categories), "Total")
    names = [name for name in order if any(name in own for own in scores)]
    # The total is the question; the other lines are looked at together, after it.
    family = sum(n != "Total" and all(n in own for own in scores) for n in names)
    moves = [prompt_moves(own) for own in results]
    both = moves[0].sub(moves[1], fill_value=0.0)
    prompts = pd.concat([own.count() for own in moves], axis=1).min(axis=1)
    # A published row has no videos, so nothing can be paired with it.
    paired = all(results)
    rough = [
        rough_errors(suite, s.categories) if isinstance(s, PublishedModel) else {} for s in sides
    ]
    lines = []
    for name in names:
        level = CONFIDENCE if name == "Total" else 1 - (1 - CONFIDENCE) / max(1, family)
        one, other = (own.get(name) for own in scores)
        difference, half_width, basis = None, None, ""
        if one is not None and other is not None:
            difference, basis = one - other, PAIRED if paired else ROUGH
            if paired:
                error = standard_error(suite, name, both, prompts)
            else:  # two scores that share nothing
                errors = [
                    (known[name], math.inf)
                    if name in known
                    else standard_error(suite, name, own, own.count())
                    for known, own in zip(rough, moves, strict=True)
                ]
                given = [error[0] for error in errors if error is not None]
                error = (math.hypot(*given), math.inf) if len(given) == len(errors) else None
            if error is None:
                basis = "no results of videos"
            else:
                half_width = _half_width(error, level)
        lines.append(Difference(name, one, other, difference, half_width, basis))
    remarks = [r for side in zip(sides, results, strict=True) for r in _remarks(*side)]
    for key in ("upstream_commit", "suite_sha256"):  # of other code or prompts: another metric
        every = (own for side in results for own in side.values())
        values = {str(own.provenance[key]) for own in every if key in own.provenance}
        if len(values) > 1:
            remarks.append(f"not the same {key}: {', '.join(sorted(values))}")
    return Comparison(lines, family, remarks)


def _scores(
    suite: Suite, side: ResultSet | PublishedModel, results: Mapping[str, DimensionResults]
) -> dict[str, float]:
    """Score of every dimension, category and `Total` that there is."""
    if isinstance(side, PublishedModel):
        return {**side.dimensions, **side.categories}
    own = {name: r.score for name, r in results.items() if r.score is not None}
    return {**own, **suite.totals(own)}


def _remarks(
    side: ResultSet | PublishedModel, results: Mapping[str, DimensionResults]
) -> list[str]:
    """What a reader of a comparison must know about one side."""
    if isinstance(side, PublishedModel):
        return [
            f"{side.name}: {side.source}, evaluated {side.evaluated}; no results of videos, so its "
            "noise is a rough bound from the number of prompts"
        ]
    remarks = list(side.problems)
    for name, own in results.items():
        if own.unscored:
            remarks.append(f"{side.source}: {name} lacks {len(own.unscored)} results")
        if not own.applicable:
            remarks.append(f"{side.source}: {name} has no results of videos")
    return remarks


def submit(suite: Suite, source: Path, out: Path, plan: Plan | None = None) -> Scores:
    """Pack the results of a model for the public leaderboard; returns the scores it will compute.

    The public aggregator looks one level deep only and takes a missing dimension for 0, so results
    in the layout of the public `evaluate.sh` (two levels) get a total of 0. Here they are packed so
    that it finds them; incomplete ones are refused.
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
