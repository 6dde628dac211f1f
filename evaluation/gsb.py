"""Good-Same-Bad: which of two models people prefer, from answers to blind pairs.

Report section 5.1 and Figure 15. G counts the pairs in which the reference is better, B those in
which the rival is, S the rest. Two formulas are in use and both are given:
net (G - B) / (G + S + B) and ratio (G + S) / (B + S).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from longtake.evaluation.agreement import Agreement, krippendorff_alpha
from longtake.evaluation.findings import Finding
from longtake.evaluation.gsb_plan import Pair
from longtake.evaluation.model_comparison import ComparisonSettings
from longtake.evaluation.options import OpenOption, open_options
from longtake.evaluation.pairwise import PairwiseRanking, rank_models
from longtake.evaluation.rating_checks import RatingTable
from longtake.evaluation.records import UNSCORED_WORDS
from longtake.evaluation.samples import Sample, SampleList
from longtake.runtime.statistics import holm, percentile_interval, resampled_means, sign_flip_test

ANSWER_LOG = "answers.jsonl"
"""Log of the answers in the folder of a plan."""

ANSWERS = {"left": 1.0, "same": 0.0, "right": -1.0}
"""What a rater says about a pair, and how it is recorded as a score."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GsbCount:
    """One reference against one rival in one dimension."""

    dimension: str
    """What was compared."""
    reference: str
    """The model whose wins are G."""
    rival: str
    """The model whose wins are B."""
    good: int
    """G: pairs in which the majority of raters prefers the reference."""
    same: int
    """S: pairs that most raters call the same, or without a majority."""
    bad: int
    """B: pairs in which the majority prefers the rival."""
    n_prompts: int
    """Prompts of these pairs."""
    net: float
    """(G - B) / (G + S + B), in [-1, 1]."""
    net_low: float
    """Lower end of its bootstrap interval, clustered by prompt; NaN with fewer than two."""
    net_high: float
    """Upper end."""
    ratio: float
    """(G + S) / (B + S); NaN where B + S = 0."""
    win_share: float
    """G / (G + B); NaN without a preference."""
    share_low: float
    """Lower end of its Wilson interval."""
    share_high: float
    """Upper end."""
    p: float
    """Two-sided p-value of "no preference" by the test ``test``."""
    test: str
    """``sign test`` (exact), or ``sign flips`` where prompts have several pairs."""
    p_holm: float = math.nan
    """Corrected for all rivals and dimensions of the study."""
    different: bool = False
    """Whether p_holm is below 1 - confidence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PositionBias:
    """How often raters chose the left video. Sides are balanced, so models do not explain it."""

    dimension: str
    """What was compared."""
    left: int
    """Answers "left"."""
    same: int
    """Answers "same"."""
    right: int
    """Answers "right"."""
    left_share: float
    """Left over left and right; NaN without a preference."""
    low: float
    """Lower end of its bootstrap interval, clustered by pair; NaN without one."""
    high: float
    """Upper end."""
    p: float
    """Two-sided p-value of one half, by flipping the sides of whole pairs, as the plan drew."""


@dataclass(frozen=True, kw_only=True)
class GsbResult:
    """Everything a report of a GSB study needs; plain data."""

    counts: tuple[GsbCount, ...]
    """By dimension, then by rival."""
    rankings: Mapping[str, PairwiseRanking]
    """Bradley-Terry with ties by dimension."""
    position: tuple[PositionBias, ...]
    """By dimension."""
    agreement: Mapping[str, Agreement]
    """Krippendorff's alpha of the answers by dimension."""
    findings: tuple[Finding, ...]
    """Everything irregular in the input."""
    options: tuple[OpenOption, ...]
    """Choices that the report leaves open."""
    settings: ComparisonSettings
    """How it was computed."""
    dimensions: tuple[str, ...]
    """In the order of the result."""
    n_answers: int
    """Answers used."""
    set_aside: int
    """Answers received and not used; the findings say why."""

    def as_record(self) -> dict[str, object]:
        """JSON-ready but for NaN, which stands for missing."""
        return {
            "kind": "gsb",
            "dimensions": self.dimensions,
            "n_answers": self.n_answers,
            "set_aside": self.set_aside,
            "counts": [dataclasses.asdict(item) for item in self.counts],
            "rankings": {n: dataclasses.asdict(r) for n, r in self.rankings.items()},
            "position": [dataclasses.asdict(item) for item in self.position],
            "agreement": {n: dataclasses.asdict(a) for n, a in self.agreement.items()},
            "options": [dataclasses.asdict(item) for item in self.options],
            "settings": dataclasses.asdict(self.settings),
            "findings": [finding.as_record() for finding in self.findings],
        }


def read_answer(value: object) -> tuple[float | None, str]:
    """(score, why there is none) of a cell with left, same or right.

    Raises:
        ValueError: another word.
    """
    word = str(value).strip().lower()
    if word in UNSCORED_WORDS:
        return None, f"rater wrote {word}"
    if word not in ANSWERS:
        raise ValueError(f"{value!r} is none of {', '.join(ANSWERS)}")
    return ANSWERS[word], ""


def pairs_as_samples(pairs: Sequence[Pair], folder: Path) -> SampleList:
    """The pairs as the list of samples that the checks of ratings look ids up in."""
    return SampleList(
        samples=tuple(
            Sample(
                sample=pair.pair,
                model=f"{pair.reference} vs {pair.rival}",
                prompt=pair.prompt,
                cluster=pair.cluster,
            )
            for pair in pairs
        ),
        folder=folder,
    )


def net_gsb(good: float, same: float, bad: float) -> float:
    """(G - B) / (G + S + B); NaN without pairs."""
    total = good + same + bad
    return (good - bad) / total if total else math.nan


def gsb_ratio(good: float, same: float, bad: float) -> float:
    """(G + S) / (B + S); NaN where B + S = 0."""
    return (good + same) / (bad + same) if bad + same else math.nan


def win_share(good: int, bad: int, confidence: float = 0.95) -> tuple[float, float, float, float]:
    """G / (G + B), its Wilson interval, and the p-value of the exact two-sided sign test."""
    if good + bad == 0:
        return math.nan, math.nan, math.nan, 1.0
    test = binomtest(good, good + bad)
    ends = test.proportion_ci(confidence, method="wilson")
    return good / (good + bad), float(ends.low), float(ends.high), float(test.pvalue)


def aggregate_gsb(
    answers: RatingTable,
    pairs: Sequence[Pair],
    dimensions: Sequence[str],
    settings: ComparisonSettings,
    *,
    ranking_resamples: int = 200,
) -> GsbResult:
    """Aggregate a study.

    Args:
        answers: checked answers (scores 1 left, 0 same, -1 right), ids of pairs as samples.
        pairs: the key of the plan.
        dimensions: in the order of the result.
        settings: confidence and resampling.
        ranking_resamples: bootstrap resamples of the Bradley-Terry strengths.

    Raises:
        UserError: evalica is not installed.
    """
    labels = pair_labels(answers.table, pairs)
    counts: list[GsbCount] = []
    rankings, agreement, position = {}, {}, []
    for dimension in dimensions:
        part = labels[labels["dimension"] == dimension]
        raw = answers.table[answers.table["dimension"] == dimension]
        if part.empty:
            continue
        for (reference, rival), rows in part.groupby(["reference", "rival"]):
            counts.append(_count(dimension, str(reference), str(rival), rows, settings))
        rankings[dimension] = rank_models(
            part["reference"].tolist(),
            part["rival"].tolist(),
            part["label"].to_numpy(dtype=np.float64),
            part["cluster"].tolist(),
            confidence=settings.confidence,
            resamples=ranking_resamples,
            seed=settings.seed,
        )
        agreement[dimension] = krippendorff_alpha(
            raw["score"].to_numpy(dtype=np.float64),
            pd.factorize(raw["sample"])[0],
            pd.factorize(raw["cluster"])[0],
            confidence=settings.confidence,
            seed=settings.seed,
        )
        position.append(_position(dimension, raw, settings))
    adjusted = holm([item.p for item in counts])
    alpha = 1.0 - settings.confidence
    return GsbResult(
        counts=tuple(
            dataclasses.replace(item, p_holm=float(p), different=bool(p < alpha))
            for item, p in zip(counts, adjusted, strict=True)
        ),
        rankings=rankings,
        position=tuple(position),
        agreement=agreement,
        findings=answers.findings,
        options=open_options(),
        settings=settings,
        dimensions=tuple(dimensions),
        n_answers=len(answers.table),
        set_aside=answers.set_aside,
    )


def pair_labels(answers: pd.DataFrame, pairs: Sequence[Pair]) -> pd.DataFrame:
    """One label for each pair and dimension: what more than half of its raters say, else same.

    Returns:
        Columns dimension, pair, reference, rival, cluster, label (1 reference better, 0, -1).
    """
    by_id = {pair.pair: pair for pair in pairs}
    sign = {k: 1.0 if p.left_model == p.reference else -1.0 for k, p in by_id.items()}
    for_reference = answers["score"] * answers["sample"].map(sign)
    keys = [answers["dimension"], answers["sample"]]
    shares = pd.DataFrame({"good": for_reference > 0, "bad": for_reference < 0})
    label = shares.groupby(keys, sort=False).mean().reset_index()
    label["label"] = (label["good"] > 0.5).astype(float) - (label["bad"] > 0.5).astype(float)
    for name in ("reference", "rival", "cluster"):
        label[name] = label["sample"].map({k: getattr(p, name) for k, p in by_id.items()})
    label = label.rename(columns={"sample": "pair"})
    return label[["dimension", "pair", "reference", "rival", "cluster", "label"]]


def _count(
    dimension: str, reference: str, rival: str, rows: pd.DataFrame, settings: ComparisonSettings
) -> GsbCount:
    label = rows["label"].to_numpy(dtype=np.float64)
    good, bad = int((label > 0).sum()), int((label < 0).sum())
    same = len(label) - good - bad
    cluster, names = pd.factorize(rows["cluster"])
    sums = np.bincount(cluster, weights=label).astype(np.float64)[:, None]
    sizes = np.bincount(cluster).astype(np.float64)[:, None]
    low, high = math.nan, math.nan
    if len(names) >= 2:
        draws = resampled_means(sums, sizes, resamples=settings.resamples, seed=settings.seed)
        (low,), (high,) = percentile_interval(draws, settings.confidence)
    share, share_low, share_high, p = win_share(good, bad, settings.confidence)
    test = "sign test"
    if len(names) < len(label):  # pairs of one prompt are not independent coin tosses
        test = "sign flips"
        p = float(sign_flip_test(sums, flips=settings.resamples, seed=settings.seed)[0])
    return GsbCount(
        dimension=dimension,
        reference=reference,
        rival=rival,
        good=good,
        same=same,
        bad=bad,
        n_prompts=len(names),
        net=net_gsb(good, same, bad),
        net_low=float(low),
        net_high=float(high),
        ratio=gsb_ratio(good, same, bad),
        win_share=share,
        share_low=share_low,
        share_high=share_high,
        p=p,
        test=test,
    )


def _position(dimension: str, raw: pd.DataFrame, settings: ComparisonSettings) -> PositionBias:
    scores = raw["score"].to_numpy(dtype=np.float64)
    pair, names = pd.factorize(raw["sample"])
    left = np.bincount(pair, weights=scores > 0).astype(np.float64)
    right = np.bincount(pair, weights=scores < 0).astype(np.float64)
    share, low, high = math.nan, math.nan, math.nan
    preferences = float((left + right).sum())
    if preferences:
        share = float(left.sum()) / preferences
    if preferences and len(names) >= 2:
        draws = resampled_means(
            left[:, None],
            (left + right)[:, None],
            resamples=settings.resamples,
            seed=settings.seed,
        )
        (low,), (high,) = percentile_interval(draws, settings.confidence)
    p = sign_flip_test((left - right)[:, None], flips=settings.resamples, seed=settings.seed)
    return PositionBias(
        dimension=dimension,
        left=int(left.sum()),
        same=int((scores == 0).sum()),
        right=int(right.sum()),
        left_share=share,
        low=float(low),
        high=float(high),
        p=float(p[0]),
    )
