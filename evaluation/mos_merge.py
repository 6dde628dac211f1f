"""The merged score of a model: raters and judge, 2:1, for each model and dimension.

Report section 5.1: the final score is the weighted (2:1) average of human and automatic evaluation.
Raters and judge see different prompts (500 and 728), so the merge is one of means of models, never
of videos; and it needs a judge that speaks the raters' scale. Where there is no judge there is no
merged score: falling back to the human score alone would change its weight silently.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from pydantic import Field

from longtake.evaluation.comparison import ComparisonSettings, mean_draws
from longtake.evaluation.ratings import Finding, Findings, Rating
from longtake.evaluation.tables import Table, interval_text, rows_of, table_of_rows
from longtake.runtime.config import Config
from longtake.runtime.errors import UserError
from longtake.runtime.statistics import percentile_interval

MERGED_COLUMNS = (
    *("dimension", "model", "human", "automatic", "merged", "ci_low", "ci_high", "n_human"),
    *("n_automatic", "refused"),
)
"""``refused`` says why there is no merged score; empty otherwise."""


class MergeWeights(Config):
    """Weights of the two sources (report section 5.1: 2:1)."""

    human: float = Field(default=2.0, gt=0)
    automatic: float = Field(default=1.0, gt=0)


def check_judge(ratings: Sequence[Rating]) -> None:
    """Refuse automatic ratings that do not come from one judge calibrated to the raters' scale."""
    raters = ", ".join(sorted({rating.rater for rating in ratings})[:5]) or "no record"
    if {rating.kind for rating in ratings} != {"automatic"} or "," in raters:
        raise UserError(
            "the automatic scores are not those of one judge",
            received=raters,
            expected="records of kind `automatic` of one judge in one version",
        )
    if not all(rating.provenance.get("calibration") for rating in ratings):
        raise UserError(
            "the judge is not calibrated to the raters' scale",
            received=f"records of {raters} that name no calibration",
            expected="`calibration` in the provenance of every record",
            remedy="calibrate the judge on rated videos first, then score again",
        )


def merge_scores(
    human: pd.DataFrame,
    automatic: pd.DataFrame,
    models: Sequence[str],
    dimensions: Sequence[str],
    weights: MergeWeights,
    settings: ComparisonSettings,
) -> tuple[pd.DataFrame, tuple[Finding, ...]]:
    """The merged score of every model and dimension; refusals are rows with a reason.

    Both tables are of :func:`longtake.evaluation.mos.video_scores`, on one scale. The interval
    draws the prompts of raters and judge separately.
    """
    rows: list[tuple[object, ...]] = []
    total = weights.human + weights.automatic
    for dimension in dimensions:
        people = human[human["dimension"] == dimension]
        judge = automatic[(automatic["dimension"] == dimension) & automatic["model"].isin(models)]
        low, high = np.full((2, len(models)), np.nan)
        if len(people) and len(judge):
            draws_h = mean_draws(people, models, settings, seed=settings.seed)
            # Another seed: the same draws would tie two independent sets of prompts together.
            draws_a = mean_draws(judge, models, settings, seed=settings.seed + 1)
            draws = (weights.human * draws_h + weights.automatic * draws_a) / total
            low, high = percentile_interval(draws, settings.confidence)
        for m, model in enumerate(models):
            own_h, own_a = people[people["model"] == model], judge[judge["model"] == model]
            refused = ""
            if own_h.empty:
                refused = "no human ratings"
            elif own_a.empty:
                silent = "no judge for this dimension" if judge.empty else ""
                refused = silent or "the judge has not scored this model"
            mean_h, mean_a = own_h["score"].mean(), own_a["score"].mean()  # NaN when empty
            merged = (weights.human * mean_h + weights.automatic * mean_a) / total
            # One prompt on either side has no spread, and the sum would seem surer than it is.
            spread = min(own_h["cluster"].nunique(), own_a["cluster"].nunique()) >= 2
            ends = (low[m], high[m]) if spread else (math.nan, math.nan)
            scores = (float(mean_h), float(mean_a), math.nan if refused else float(merged))
            rows.append((dimension, model, *scores, *ends, len(own_h), len(own_a), refused))
    findings = Findings()
    unrated = sorted(set(automatic["model"]) - set(models))
    findings.add("model that only the judge scored", "not in the result", unrated)
    effect = "the interval of the merged score takes the two sets for independent"
    both = sorted(set(human["prompt"]) & set(automatic["prompt"]))
    findings.add("prompt of both raters and judge", effect, both)
    return pd.DataFrame(rows, columns=list(MERGED_COLUMNS)), tuple(findings)


def merged_table(merged: pd.DataFrame, weights: MergeWeights) -> Table:
    """The merged scores, short enough for a terminal."""
    rows = [
        (
            m.dimension,
            m.model,
            f"{m.human:.2f}",
            m.n_human,
            "-" if math.isnan(m.automatic) else f"{m.automatic:.2f}",
            m.n_automatic,
            interval_text(m.merged, m.ci_low, m.ci_high),
            m.refused,
        )
        for m in rows_of(merged)
    ]
    return table_of_rows(
        "merged_overview",
        f"Human and automatic, {weights.human:g}:{weights.automatic:g}",
        ("dimension", "model", "human", "n", "automatic", "n auto", "merged", "remark"),
        rows,
        note="Report section 5.1. No merged score where there is no judge.",
    )
