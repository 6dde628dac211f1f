"""Mean opinion scores: from checked ratings to models, differences, raters and agreement.

Report section 5.1 and Figures 14 and 16: a video's score is the mean of all of its ratings, a
model's score the mean over its videos.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from longtake.evaluation.agreement import Agreement, krippendorff_alpha, rest_correlations
from longtake.evaluation.findings import Finding, Findings
from longtake.evaluation.model_comparison import (
    ComparisonSettings,
    ModelComparison,
    compare_models,
)
from longtake.evaluation.mos_merge import MergedScore, MergeWeights, merge_scores
from longtake.evaluation.mos_protocol import ProtocolConfig, State, Unit, assess, budget_factor
from longtake.evaluation.options import OpenOption, open_options
from longtake.evaluation.rating_checks import RatingTable
from longtake.evaluation.samples import SampleList
from longtake.evaluation.subject_bias import SubjectBias, alternating_projection
from longtake.runtime.statistics import FloatArray


@dataclass(frozen=True, kw_only=True, slots=True)
class MosSettings:
    """How ratings become scores."""

    dimensions: tuple[str, ...]
    """The dimensions of the study, in the order of the result."""
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    """How many raters a video needs."""
    comparison: ComparisonSettings = field(default_factory=ComparisonSettings)
    """Intervals and tests."""
    weights: MergeWeights = field(default_factory=MergeWeights)
    """Of raters and judge."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RaterProfile:
    """One rater in one dimension: diagnostics, which do not change the scores."""

    rater: str
    """Who."""
    dimension: str
    """What was rated."""
    n_ratings: int
    """Ratings that count."""
    mean: float
    """Their mean."""
    bias: float
    """ITU-T P.910: points above the average rater on the same videos."""
    inconsistency: float
    """ITU-T P.910: standard deviation around quality plus bias."""
    rest_correlation: float
    """Correlation with the mean of the other raters of the same videos; NaN where undefined."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProtocolStatus:
    """How far the study is."""

    states: Mapping[str, int]
    """Units by state."""
    decided: int
    """Units whose first raters are complete."""
    escalated: int
    """Units that called for more raters."""
    still_needed: int
    """Complete ratings of a unit that are missing."""
    budget_factor: float | None
    """Ratings over those of the first round, at the rate so far; None before any is decided."""


@dataclass(frozen=True, kw_only=True)
class MosResult:
    """Everything a report of a MOS study needs; plain data."""

    comparison: ModelComparison
    """Means, differences, groups of ties."""
    bias_free: Mapping[tuple[str, str], float]
    """(dimension, model) -> mean of the ITU-T P.910 quality of its videos: a diagnostic."""
    agreement: Mapping[str, Agreement]
    """Krippendorff's alpha by dimension."""
    raters: tuple[RaterProfile, ...]
    """By dimension, then by rater."""
    protocol: ProtocolStatus
    """Progress."""
    merged: tuple[MergedScore, ...]
    """Human and automatic scores together; empty without automatic scores."""
    findings: tuple[Finding, ...]
    """Everything irregular in the input."""
    options: tuple[OpenOption, ...]
    """Choices that the report leaves open."""
    settings: MosSettings
    """How it was computed."""
    models: tuple[str, ...]
    """In the order of the list of samples; without one by name."""
    n_ratings: int
    """Ratings used."""
    set_aside: int
    """Ratings received and not used; the findings say why."""

    def as_record(self) -> dict[str, object]:
        """JSON-ready but for NaN, which stands for missing."""
        return {
            "kind": "mos",
            "models": self.models,
            "n_ratings": self.n_ratings,
            "set_aside": self.set_aside,
            "means": [
                {**dataclasses.asdict(c), "bias_free": self.bias_free.get((c.dimension, c.model))}
                for c in self.comparison.means
            ],
            "differences": [dataclasses.asdict(d) for d in self.comparison.differences],
            "tie_groups": self.comparison.tie_groups,
            "merged": [dataclasses.asdict(item) for item in self.merged],
            "agreement": {n: dataclasses.asdict(a) for n, a in self.agreement.items()},
            "raters": [dataclasses.asdict(item) for item in self.raters],
            "protocol": dataclasses.asdict(self.protocol),
            "options": [dataclasses.asdict(item) for item in self.options],
            "settings": dataclasses.asdict(self.settings),
            "findings": [finding.as_record() for finding in self.findings],
        }


def video_scores(ratings: pd.DataFrame) -> pd.DataFrame:
    """One row for each video and dimension: the mean of all of its ratings.

    Args:
        ratings: the table of :class:`longtake.evaluation.rating_checks.RatingTable`.

    Returns:
        Columns dimension, model, prompt, cluster, sample, score, n_ratings.
    """
    keys = ["dimension", "model", "prompt", "cluster", "sample"]
    grouped = ratings.groupby(keys, sort=False)["score"]
    return grouped.agg(score="mean", n_ratings="size").reset_index()


def aggregate_mos(
    ratings: RatingTable,
    settings: MosSettings,
    *,
    samples: SampleList | None = None,
    automatic: RatingTable | None = None,
) -> MosResult:
    """Aggregate a study.

    Args:
        ratings: checked human ratings.
        settings: dimensions, protocol, intervals, weights.
        samples: the list of samples; it adds the videos that nobody rated to the progress.
        automatic: checked scores of one calibrated judge
            (:func:`longtake.evaluation.mos_merge.check_judge`); None merges nothing.
    """
    table = ratings.table
    scores = video_scores(table)
    findings = Findings(ratings.findings)
    findings.add(
        "model without a rated video of a prompt",
        "differences use the prompts that both models have",
        _unbalanced(scores),
    )
    comparison = compare_models(scores, settings.dimensions, settings.comparison)
    listed = samples.models if samples is not None else ()
    rated = set(scores["model"])
    models = tuple([m for m in listed if m in rated] + sorted(rated - set(listed)))
    agreement: dict[str, Agreement] = {}
    profiles: list[RaterProfile] = []
    bias_free: dict[tuple[str, str], float] = {}
    for dimension in settings.dimensions:
        part = table[table["dimension"] == dimension]
        if part.empty:
            findings.add("dimension without a rating", "no result", [dimension])
            continue
        numbers = _Numbers(part)
        agreement[dimension] = krippendorff_alpha(
            numbers.score,
            numbers.sample,
            numbers.cluster,
            confidence=settings.comparison.confidence,
            seed=settings.comparison.seed,
        )
        fit = alternating_projection(numbers.score, numbers.rater, numbers.sample)
        if not fit.converged:
            findings.add("rater biases that did not settle", "shown as they are", [dimension])
        profiles += numbers.profiles(dimension, fit)
        bias_free |= {(dimension, m): q for m, q in numbers.quality_by_model(fit).items()}
    merged: tuple[MergedScore, ...] = ()
    if automatic is not None:
        merged, remarks = merge_scores(
            scores, video_scores(automatic.table), models, settings.dimensions, settings.weights,
            settings.comparison,
        )  # fmt: skip
        findings = Findings((*findings.all(), *automatic.findings, *remarks))
    units = protocol_units(table, settings, samples)
    _report_protocol(units, settings.protocol, findings)
    return MosResult(
        comparison=comparison,
        bias_free=bias_free,
        agreement=agreement,
        raters=tuple(profiles),
        protocol=protocol_status(units, settings.protocol),
        merged=merged,
        findings=findings.all(),
        options=open_options(
            settings.protocol,
            human_weight=settings.weights.human,
            automatic_weight=settings.weights.automatic,
        ),
        settings=settings,
        models=models,
        n_ratings=len(table),
        set_aside=ratings.set_aside,
    )


def _unbalanced(scores: pd.DataFrame) -> list[str]:
    pairs = scores[["model", "prompt"]].drop_duplicates()
    models, prompts = list(pairs["model"].unique()), list(pairs["prompt"].unique())
    present = set(zip(pairs["model"], pairs["prompt"], strict=True))
    return [f"{m}: {p}" for m in models for p in prompts if (m, p) not in present]


def protocol_units(
    ratings: pd.DataFrame, settings: MosSettings, samples: SampleList | None = None
) -> tuple[Unit, ...]:
    """The state machine of every video over a table of checked ratings."""
    columns = (ratings[name].tolist() for name in ("sample", "rater", "dimension", "score"))
    listed = (item.sample for item in samples.samples) if samples is not None else ()
    return assess(zip(*columns, strict=True), settings.dimensions, settings.protocol, listed)


def protocol_status(units: Sequence[Unit], config: ProtocolConfig) -> ProtocolStatus:
    """Counts over the units."""
    states = Counter(unit.state for unit in units)
    escalated = states[State.ESCALATED] + states[State.RESOLVED]
    decided = escalated + states[State.AGREED]
    return ProtocolStatus(
        states={state.value: states[state] for state in State},
        decided=decided,
        escalated=escalated,
        still_needed=sum(unit.needed for unit in units),
        budget_factor=budget_factor(escalated / decided, config) if decided else None,
    )


def _report_protocol(units: Sequence[Unit], config: ProtocolConfig, findings: Findings) -> None:
    def name(unit: Unit) -> str:
        return unit.sample if config.scope == "video" else f"{unit.sample}, {unit.dimensions[0]}"

    findings.add(
        "video with fewer raters than the protocol asks",
        "the ratings it has are used",
        [
            f"{name(u)}: {len(u.complete)} complete, {len(u.partial)} partial, {u.needed} to come"
            for u in units
            if u.needed and (u.complete or u.partial)
        ],
    )
    findings.add(
        "video with more raters than the protocol asks",
        "all ratings are used",
        [f"{name(unit)}: {unit.surplus} more" for unit in units if unit.surplus],
    )


class _Numbers:
    """The ratings of one dimension as numbers."""

    def __init__(self, part: pd.DataFrame) -> None:
        self.score: FloatArray = part["score"].to_numpy(dtype=np.float64)
        self.rater, self.raters = pd.factorize(part["rater"])
        self.sample, _ = pd.factorize(part["sample"])
        self.cluster, _ = pd.factorize(part["cluster"])
        first = part.drop_duplicates("sample")
        self.sample_model = first["model"].to_numpy()

    def profiles(self, dimension: str, fit: SubjectBias) -> list[RaterProfile]:
        counts = np.bincount(self.rater)
        means = np.bincount(self.rater, weights=self.score) / counts
        rest = rest_correlations(self.score, self.rater, self.sample)
        return [
            RaterProfile(
                rater=str(name),
                dimension=dimension,
                n_ratings=int(counts[i]),
                mean=float(means[i]),
                bias=float(fit.bias[i]),
                inconsistency=float(fit.inconsistency[i]),
                rest_correlation=float(rest[i]),
            )
            for i, name in enumerate(self.raters)
        ]

    def quality_by_model(self, fit: SubjectBias) -> dict[str, float]:
        """Mean P.910 quality of the videos of each model."""
        return {
            str(m): float(fit.quality[self.sample_model == m].mean())
            for m in dict.fromkeys(self.sample_model)
        }
