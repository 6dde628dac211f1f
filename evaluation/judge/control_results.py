"""What the controls did to a judge: change of the mean score, and agreement that is left."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from longtake.evaluation.judge.answer import PARSE_FAILURE
from longtake.evaluation.judge.coefficients import pearson
from longtake.evaluation.judge.controls import CONTROLS, expected_change
from longtake.evaluation.judge.score_log import CONTROL_MARK, latest_scores
from longtake.evaluation.ratings import Rating
from longtake.runtime.statistics import FloatArray, IntArray, percentile_interval

SAME_WITHIN = 0.05
"""A repeated score may differ by this much on average (root mean square), points."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlResult:
    """One control in one dimension."""

    control: str
    """Name."""
    dimension: str
    """What was judged."""
    expected: str
    """falls | same | empty: no expectation."""
    verdict: str
    """as expected | not as expected | undecided; empty without an expectation."""
    before: float
    """Mean score without the control."""
    after: float
    """Mean score with it, over the same videos."""
    change: float
    """after - before."""
    ci_low: float
    """Lower end of the bootstrap interval of ``change`` over prompts."""
    ci_high: float
    """Upper end."""
    spread: float
    """Root mean square change of a video; for ``repeat`` the deviation of one score is this
    divided by the square root of 2."""
    plcc_before: float
    """Correlation with the raters over these videos."""
    plcc_after: float
    """The same under the control."""
    n: int
    """Videos scored with and without."""
    unscored: int
    """Videos scored without and not with the control."""


def control_results(
    records: Sequence[Rating],
    judge: str,
    dimension: str,
    samples: Sequence[str],
    human: FloatArray,
    scores: FloatArray,
    clusters: IntArray,
    counts: FloatArray,
    confidence: float,
) -> list[ControlResult]:
    """Every control that was run, in one dimension.

    Args:
        records: the log of the controls.
        judge: name of the judge.
        dimension: which.
        samples: [n] ids of videos that the raters and the judge scored.
        human: [n] mean ratings.
        scores: [n] scores of the judge without a control.
        clusters: [n] number of the cluster.
        counts: [B, C], how often each resample draws each cluster.
        confidence: coverage of the interval.
    """
    found = []
    for control in CONTROLS:
        answers = latest_scores(records, f"{judge}{CONTROL_MARK}{control}")
        present = {sample for sample, name in answers if name == dimension}
        if not present:
            continue
        after = np.array([answers.get((s, dimension), (math.nan, ""))[0] for s in samples])
        used = np.isfinite(after)
        result = _compare(
            control,
            dimension,
            (human[used], scores[used], after[used]),
            counts[:, clusters[used]],
            confidence,
            unscored=sum(s in present for s in samples) - int(used.sum()),
        )
        found.append(result)
    return found


def _compare(
    control: str,
    dimension: str,
    values: tuple[FloatArray, FloatArray, FloatArray],
    weights: FloatArray,
    confidence: float,
    *,
    unscored: int,
) -> ControlResult:
    human, before, after = values
    change = after - before
    n = len(change)
    low = high = math.nan
    if n:
        total = weights.sum(axis=1)
        means = np.where(total > 0, weights @ change / np.maximum(total, 1), np.nan)
        (low,), (high,) = percentile_interval(means[:, None], confidence)
    spread = math.sqrt(float(np.mean(change**2))) if n else math.nan
    expected = expected_change(control, dimension)
    return ControlResult(
        control=control,
        dimension=dimension,
        expected=expected,
        verdict=_verdict(expected, float(low), float(high), spread),
        before=float(before.mean()) if n else math.nan,
        after=float(after.mean()) if n else math.nan,
        change=float(change.mean()) if n else math.nan,
        ci_low=float(low),
        ci_high=float(high),
        spread=spread,
        plcc_before=pearson(before, human),
        plcc_after=pearson(after, human),
        n=n,
        unscored=unscored,
    )


def _verdict(expected: str, low: float, high: float, spread: float) -> str:
    if not expected:
        return ""
    if expected == "same":
        if math.isnan(spread):
            return "undecided"
        return "as expected" if spread <= SAME_WITHIN else "not as expected"
    if math.isnan(high):
        return "undecided"
    return "as expected" if high < 0 else "not as expected"


def reasons(answers: Mapping[tuple[str, str], tuple[float, str]], dimension: str) -> dict[str, int]:
    """Why clips have no score in a dimension -> number of clips, most frequent first.

    Answers that cannot be parsed are one reason; each is quoted in the log of scores.
    """
    tally: dict[str, int] = {}
    for (_, name), (score, reason) in answers.items():
        if name == dimension and math.isnan(score):
            why = PARSE_FAILURE if reason.startswith(PARSE_FAILURE) else reason or "no reason given"
            tally[why] = tally.get(why, 0) + 1
    return dict(sorted(tally.items(), key=lambda item: -item[1]))
