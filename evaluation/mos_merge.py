"""The merged score of a model: raters and judge, 2:1, for each model and dimension.

Report section 5.1: the final score is the weighted (2:1) average of human and automatic evaluation.
Raters and judge see different prompts (500 and 728), so the merge is one of means of models, never
of videos; and it needs a judge that speaks the raters' scale. Where there is no judge there is no
merged score: falling back to the human score alone would change its weight silently.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from longtake.evaluation.findings import Finding, Findings
from longtake.evaluation.model_comparison import ComparisonSettings, mean_draws
from longtake.evaluation.records import Rating
from longtake.runtime.errors import ConfigError, UserError
from longtake.runtime.statistics import percentile_interval


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeWeights:
    """Weights of the two sources."""

    human: float = 2.0
    """Weight of the raters, > 0 (report section 5.1: 2)."""
    automatic: float = 1.0
    """Weight of the judge, > 0 (report section 5.1: 1)."""

    def __post_init__(self) -> None:
        if not (0 < self.human < math.inf and 0 < self.automatic < math.inf):
            raise ConfigError(
                "the weights of the merge cannot be used",
                received=f"{self.human:g}:{self.automatic:g}",
                expected="two positive numbers, such as 2:1",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class MergedScore:
    """One model in one dimension."""

    dimension: str
    """What was scored."""
    model: str
    """Which model."""
    human: float
    """Mean of the raters; NaN without any."""
    automatic: float
    """Mean of the judge; NaN without any."""
    merged: float
    """Weighted mean; NaN where refused."""
    ci_low: float
    """Lower end of the interval of ``merged``."""
    ci_high: float
    """Upper end."""
    n_human: int
    """Videos that raters scored."""
    n_automatic: int
    """Videos that the judge scored."""
    refused: str = ""
    """Why there is no merged score; empty otherwise."""


def check_judge(ratings: Sequence[Rating]) -> str:
    """Make sure that automatic ratings come from one calibrated judge; returns its name.

    Raises:
        UserError: a rating is not automatic, more than one judge, or a judge whose records do not
            name the calibration that maps them to the raters' scale.
    """
    people = sorted({rating.rater for rating in ratings if rating.kind != "automatic"})
    if people:
        raise UserError(
            "the automatic scores hold human ratings",
            received=f"raters {', '.join(people[:3])}",
            expected="records of kind `automatic`",
        )
    judges = sorted({rating.rater for rating in ratings})
    if len(judges) != 1:
        raise UserError(
            "the automatic scores do not come from one judge",
            received=", ".join(judges[:5]) or "no record",
            expected="the records of one judge in one version",
            remedy="give one file for each judge and choose one",
        )
    bare = sum(1 for rating in ratings if not rating.provenance.get("calibration"))
    if bare:
        raise UserError(
            "the judge is not calibrated to the raters' scale",
            received=f"{bare} of {len(ratings)} records of {judges[0]} name no calibration",
            expected="`calibration` in the provenance of every record",
            remedy="calibrate the judge on rated videos first, then score again",
        )
    return judges[0]


def merge_scores(
    human: pd.DataFrame,
    automatic: pd.DataFrame,
    models: Sequence[str],
    dimensions: Sequence[str],
    weights: MergeWeights,
    settings: ComparisonSettings,
) -> tuple[tuple[MergedScore, ...], tuple[Finding, ...]]:
    """Merge for every model and dimension; refusals are rows with a reason.

    The interval draws the prompts of raters and judge separately.

    Args:
        human: video scores, columns as in :func:`model_comparison.compare_models`.
        automatic: the same for the judge, on the same scale.
        models: in the order of the result.
        dimensions: in the order of the result.
        weights: 2:1 in the report.
        settings: confidence and resampling.
    """
    merged = []
    for dimension in dimensions:
        rows_h = human[human["dimension"] == dimension]
        rows_a = automatic[automatic["dimension"] == dimension]
        merged += _dimension(dimension, rows_h, rows_a, models, weights, settings)
    findings = Findings()
    findings.add(
        "model that only the judge scored",
        "not in the result",
        sorted(set(automatic["model"]) - set(models)),
    )
    findings.add(
        "prompt of both raters and judge",
        "the interval of the merged score takes the two sets for independent",
        sorted(set(human["prompt"]) & set(automatic["prompt"])),
    )
    return tuple(merged), findings.all()


def _dimension(
    dimension: str,
    human: pd.DataFrame,
    automatic: pd.DataFrame,
    models: Sequence[str],
    weights: MergeWeights,
    settings: ComparisonSettings,
) -> list[MergedScore]:
    automatic = automatic[automatic["model"].isin(models)]
    low, high = np.full((2, len(models)), np.nan)
    total = weights.human + weights.automatic
    if len(human) and len(automatic):
        draws_h = mean_draws(human, models, settings, seed=settings.seed)
        # Another seed: the same draws would tie two independent sets of prompts together.
        draws_a = mean_draws(automatic, models, settings, seed=settings.seed + 1)
        draws = (weights.human * draws_h + weights.automatic * draws_a) / total
        low, high = percentile_interval(draws, settings.confidence)
    rows = []
    for m, model in enumerate(models):
        own_h = human[human["model"] == model]
        own_a = automatic[automatic["model"] == model]
        refused = ""
        if own_h.empty:
            refused = "no human ratings"
        elif automatic.empty:
            refused = "no judge for this dimension"
        elif own_a.empty:
            refused = "the judge has not scored this model"
        mean_h = float(own_h["score"].mean()) if len(own_h) else math.nan
        mean_a = float(own_a["score"].mean()) if len(own_a) else math.nan
        value = (weights.human * mean_h + weights.automatic * mean_a) / total
        spread = min(own_h["cluster"].nunique(), own_a["cluster"].nunique()) >= 2
        rows.append(
            MergedScore(
                dimension=dimension,
                model=model,
                human=mean_h,
                automatic=mean_a,
                merged=math.nan if refused else value,
                ci_low=float(low[m]) if spread and not refused else math.nan,
                ci_high=float(high[m]) if spread and not refused else math.nan,
                n_human=len(own_h),
                n_automatic=len(own_a),
                refused=refused,
            )
        )
    return rows
