"""The report card of a judge: agreement, human ceiling, controls, failures, leakage.

It is computed from records alone: ratings, the log of scores and the log of controls. Any judge
whose scores are in such a log can have one, and none of it needs torch.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from longtake.evaluation.judge.data import (
    JUDGED,
    Leakage,
    RatedClips,
    TrainingRecord,
    check_leakage,
    read_rated_clips,
)
from longtake.evaluation.judge.levels import (
    MEASURES,
    Judged,
    LevelSettings,
    Measurement,
    measure_levels,
    pearson,
    share,
    with_interval,
)
from longtake.evaluation.judge.prompt import PARSE_FAILURE
from longtake.evaluation.ratings import Finding, Findings, Rating, read_ratings
from longtake.evaluation.tables import (
    Table,
    findings_table,
    interval_text,
    record_of,
    table_of,
    table_of_rows,
)
from longtake.runtime.errors import UserError
from longtake.runtime.statistics import FloatArray, IntArray

CONTROLS = ("shuffled_prompt", "blank", "frozen", "reversed", "repeat")
"""Inputs made wrong on purpose: see :mod:`longtake.evaluation.judge.score`."""
CONTROL_MARK = "+"
"""Between the name of a judge and that of a control in the rater of a record."""
SAME_WITHIN = 0.05
"""A repeated score may differ by this much on average (root mean square), points."""
Expected = Literal["falls", "same", ""]
Verdict = Literal["as expected", "not as expected", "undecided", ""]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """How many rated videos the judge scored in one dimension."""

    dimension: str
    rated: int
    scored: int
    """The n of everything at sample level."""
    unscored: int
    """With a record that has no score."""
    missing: int
    """Without a record."""
    reasons: dict[str, int]
    """Why there is no score -> number; an answer that could not be parsed is one of them."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ControlResult:
    """What one control did in one dimension, over the videos scored with and without it."""

    control: str
    dimension: str
    expected: Expected
    verdict: Verdict
    before: float
    """Mean score without the control."""
    after: float
    change: float
    ci_low: float
    """Of ``change``, by a bootstrap over prompts."""
    ci_high: float
    spread: float
    """Root mean square change of a video; for ``repeat`` the deviation of one score is this
    divided by the square root of 2."""
    plcc_after: float
    """Correlation with the raters under the control."""
    n: int
    unscored: int
    """Videos scored without and not with the control."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportCard:
    """How far a judge can be trusted."""

    judge: str
    """Name, with digest and calibration."""
    calibrated: bool
    """Whether every score names its calibration; otherwise there is no RMSE."""
    coverage: tuple[Coverage, ...]
    measurements: tuple[Measurement, ...]
    ceilings: tuple[Measurement, ...]
    """How well one rater predicts the others, by dimension; n counts ratings."""
    controls: tuple[ControlResult, ...]
    leakage: Leakage
    num_prompts: int
    models: tuple[str, ...]
    settings: LevelSettings
    findings: tuple[Finding, ...]

    def value(self, dimension: str, level: str, measure: str) -> Measurement:
        """One measurement."""
        key = (dimension, level, measure)
        return next(m for m in self.measurements if (m.dimension, m.level, m.measure) == key)

    def as_record(self) -> dict[str, Any]:
        """JSON-ready but for NaN."""
        record: dict[str, Any] = record_of(self)
        record["leakage"]["verdict"] = self.leakage.verdict
        return record


def report_card_from_files(
    ratings: Sequence[Path],
    samples: Path,
    scores: Path,
    *,
    controls: Path | None = None,
    judge: Path | None = None,
    judge_name: str = "",
    dimensions: Sequence[str] = JUDGED,
    settings: LevelSettings | None = None,
) -> ReportCard:
    """The report card of a study: ``judge`` is its directory, for the leakage check."""
    training = None
    if judge is not None:
        from longtake.evaluation.judge.directory import read_judge  # with torch

        training = read_judge(judge).training
    clips = read_rated_clips(ratings, samples, dimensions)
    records, irregular = read_ratings([scores])
    others, more = read_ratings([] if controls is None else [controls])
    return make_report_card(
        clips,
        records,
        others,
        training=training,
        judge=judge_name,
        settings=settings,
        earlier=(*irregular, *more),
    )


def make_report_card(
    clips: RatedClips,
    scores: Sequence[Rating],
    controls: Sequence[Rating] = (),
    *,
    training: TrainingRecord | None = None,
    judge: str = "",
    settings: LevelSettings | None = None,
    earlier: Sequence[Finding] = (),
) -> ReportCard:
    """Compare the scores of a judge with ratings that it was neither trained nor calibrated on.

    ``judge`` names one where the records hold several; ``earlier`` are findings of reading them.
    """
    settings = settings or LevelSettings()
    name = find_judge(scores, judge)
    answers = latest_records(scores, name)
    findings = Findings([*clips.findings, *earlier])
    rated = {item.sample for item in clips.samples.samples}
    strange = sorted({sample for sample, _ in answers} - rated)
    findings.add("scored sample without ratings", "not used", strange)
    # One uncalibrated score is enough: an error in points would mix two scales.
    calibrated = all(
        item.provenance.get("calibration")
        for item in scores
        if item.rater == name and item.score is not None
    )
    study = _Study(clips, score_table(scores, name, clips), settings)
    measurements, ceilings, results = [], [], []
    for column, dimension in enumerate(clips.dimensions):
        if study.used(column).any():
            measurements += study.measurements(column, calibrated=calibrated)
            ceilings.append(study.ceiling(dimension))
            results += study.controls(column, controls, name)
    if not measurements:
        raise UserError(
            "no video has both a rating and a score of the judge",
            received=f"{len(rated)} rated videos, {len(answers)} records of {name}",
            expected="scores of the rated samples",
            remedy="score the list of samples that was rated",
        )
    leakage = check_leakage(clips.samples.samples, training)
    findings.add("prompt that the judge was trained on", "used", leakage.same_prompts)
    findings.add("prompt near one that the judge was trained on", "used", leakage.near_prompts)
    return ReportCard(
        judge=name,
        calibrated=calibrated,
        coverage=tuple(_coverage(clips, c, answers) for c in range(len(clips.dimensions))),
        measurements=tuple(measurements),
        ceilings=tuple(ceilings),
        controls=tuple(results),
        leakage=leakage,
        num_prompts=len({item.prompt for item in clips.samples.samples}),
        models=clips.samples.models,
        settings=settings,
        findings=tuple(findings),
    )


def find_judge(records: Sequence[Rating], name: str = "") -> str:
    """Name of the judge of a log: the given one, or without one the only one."""
    automatic = (item for item in records if item.kind == "automatic")
    names = sorted({item.rater.partition(CONTROL_MARK)[0] for item in automatic})
    if name in names:
        return name
    if name or len(names) != 1:
        raise UserError(
            "the judge is not in the log" if name else "the log does not hold one judge",
            received=name or ", ".join(names) or "no record of kind automatic",
            expected=f"one of: {', '.join(names)}" if names else "the log of `eval judge score`",
            remedy="name the judge with --judge-name" if names else "score the samples first",
        )
    return names[0]


def latest_records(records: Iterable[Rating], rater: str) -> dict[tuple[str, str], Rating]:
    """(sample, dimension) -> the last record of one judge (or of one of its controls)."""
    # A video that failed is scored again, and both records stay in the log.
    return {(item.sample, item.dimension): item for item in records if item.rater == rater}


def score_table(records: Iterable[Rating], rater: str, clips: RatedClips) -> FloatArray:
    """The latest scores [n, D] of one judge for rated clips; NaN where there is none."""
    answers = latest_records(records, rater)
    cells = [[answers.get((s.sample, d)) for d in clips.dimensions] for s in clips.samples.samples]
    return np.array(
        [[math.nan if a is None or a.score is None else a.score for a in row] for row in cells],
        dtype=np.float64,
    )


def reasons(records: Iterable[Rating]) -> dict[str, int]:
    """Why records have no score -> number, most frequent first.

    Answers that cannot be parsed are one reason; each is quoted in the log of scores.
    """
    whys = (item.reason or "no reason given" for item in records if item.score is None)
    tally = Counter(PARSE_FAILURE if why.startswith(PARSE_FAILURE) else why for why in whys)
    return dict(tally.most_common())


def _coverage(clips: RatedClips, column: int, answers: dict[tuple[str, str], Rating]) -> Coverage:
    dimension = clips.dimensions[column]
    rated = [s for s, n in zip(clips.samples.samples, clips.count[:, column], strict=True) if n]
    given = [answers[key] for s in rated if (key := (s.sample, dimension)) in answers]
    unscored = sum(item.score is None for item in given)
    return Coverage(
        dimension=dimension,
        rated=len(rated),
        scored=len(given) - unscored,
        unscored=unscored,
        missing=len(rated) - len(given),
        reasons=reasons(given),
    )


class _Study:
    """Ratings and scores [n, D] as numbers."""

    def __init__(self, clips: RatedClips, scores: FloatArray, settings: LevelSettings) -> None:
        self._clips, self._scores, self._settings = clips, scores, settings
        samples = clips.samples.samples
        self._row = {item.sample: row for row, item in enumerate(samples)}
        first: dict[str, str] = {}  # all videos of a prompt are in the cluster of its first one
        clusters = [first.setdefault(s.prompt, s.cluster or s.prompt) for s in samples]
        self._prompts, _ = pd.factorize(np.array([s.prompt for s in samples]))
        self._models, _ = pd.factorize(np.array([s.model for s in samples]))
        self._clusters, names = pd.factorize(np.array(clusters))
        self._num_clusters = len(names)

    def used(self, column: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which videos have both a rating and a score."""
        return (self._clips.count[:, column] > 0) & np.isfinite(self._scores[:, column])

    def measurements(self, column: int, *, calibrated: bool) -> list[Measurement]:
        """Every measure of a dimension; without a calibration there is no error in points."""
        used = self.used(column)
        data = Judged(
            human=self._clips.mean[used, column],
            judge=self._scores[used, column],
            prompts=self._prompts[used],
            # Numbered without gaps: a model without a score has no mean.
            models=np.unique(self._models[used], return_inverse=True)[1],
            clusters=self._clusters[used],
        )
        name = self._clips.dimensions[column]
        measured = measure_levels(name, data, self._num_clusters, self._settings)
        if calibrated:
            return measured
        reason, nan = "the scores are not calibrated to the raters' scale", math.nan
        return [
            dataclasses.replace(m, value=nan, ci_low=nan, ci_high=nan, reason=reason)
            if m.measure == "rmse"
            else m
            for m in measured
        ]

    def ceiling(self, dimension: str) -> Measurement:
        """The mean over raters of the correlation of a rater with the mean of the others.

        A judge that does better has reached what these ratings can show; it may, because it is
        compared with the mean of all raters, a rater with the mean of one fewer.
        """
        part = self._clips.ratings
        part = part[part["dimension"] == dimension]
        own = part["score"].to_numpy(dtype=np.float64)
        rows = np.array([self._row[name] for name in part["sample"]], dtype=np.int64)
        raters, _ = pd.factorize(part["rater"])
        others = np.bincount(rows)[rows] - 1
        shared = others > 0
        # Without the rater's own score: it would correlate with itself.
        rest = (np.bincount(rows, weights=own)[rows] - own)[shared] / others[shared]
        own, raters, clusters = own[shared], raters[shared], self._clusters[rows[shared]]
        # Two points always lie on a line.
        each = [np.flatnonzero(raters == who) for who in np.unique(raters)]
        each = [mine for mine in each if len(mine) >= 3]

        def statistic(counts: IntArray) -> FloatArray:
            drawn = [np.repeat(mine, counts[clusters[mine]]) for mine in each]
            values = np.array([pearson(own[i], rest[i]) for i in drawn])
            # A resample may lack a rater.
            return share(np.nansum(values), np.isfinite(values).sum())[None]

        (value,), (low,), (high,) = with_interval(statistic, self._num_clusters, self._settings)
        return Measurement(
            dimension=dimension,
            level="one rater",
            measure="plcc",
            value=value,
            ci_low=low,
            ci_high=high,
            n=int(shared.sum()),
            reason="no rater has three shared videos" if math.isnan(value) else "",
        )

    def controls(self, column: int, records: Sequence[Rating], judge: str) -> list[ControlResult]:
        """Every control that was run, in one dimension."""
        dimension, used, results = self._clips.dimensions[column], self.used(column), []
        for control in CONTROLS:
            rater = f"{judge}{CONTROL_MARK}{control}"
            answers = latest_records(records, rater)
            run = np.array([(sample, dimension) in answers for sample in self._row])
            if run.any():
                scores = score_table(records, rater, self._clips)[:, column]
                unscored = int((used & run & ~np.isfinite(scores)).sum())
                results.append(self._control(control, column, scores, unscored))
        return results

    def _control(
        self, control: str, column: int, scores: FloatArray, unscored: int
    ) -> ControlResult:
        both = self.used(column) & np.isfinite(scores)
        before, after, n = self._scores[both, column], scores[both], int(both.sum())
        change, clusters = after - before, self._clusters[both]

        def statistic(counts: IntArray) -> FloatArray:
            weights = counts[clusters]
            return share(weights @ change, weights.sum())[None]

        (mean,), (low,), (high,) = with_interval(statistic, self._num_clusters, self._settings)
        spread = math.sqrt(share((change**2).sum(), n))
        expected = expected_change(control, self._clips.dimensions[column])
        return ControlResult(
            control=control,
            dimension=self._clips.dimensions[column],
            expected=expected,
            verdict=_verdict(expected, high, spread),
            before=float(share(before.sum(), n)),
            after=float(share(after.sum(), n)),
            change=mean,
            ci_low=low,
            ci_high=high,
            spread=spread,
            plcc_after=pearson(after, self._clips.mean[both, column]),
            n=n,
            unscored=unscored,
        )


def expected_change(control: str, dimension: str) -> Expected:
    """What a good judge does under a control: its mean score falls, stays the same, or either."""
    if control == "repeat":
        return "same"
    target = {"shuffled_prompt": "text_alignment", "frozen": "motion_quality"}.get(control)
    return "falls" if control == "blank" or target == dimension else ""


def _verdict(expected: Expected, high: float, spread: float) -> Verdict:
    if not expected:
        return ""
    if math.isnan(spread if expected == "same" else high):
        return "undecided"
    # A fall must hold for other prompts too, so its whole interval has to be below 0.
    good = spread <= SAME_WITHIN if expected == "same" else high < 0
    return "as expected" if good else "not as expected"


def report_tables(card: ReportCard) -> tuple[Table, ...]:
    """All tables: the record has every number of the controls, ``measurements`` those of people."""
    coverage = [
        (
            *(c.dimension, c.rated, c.scored, c.unscored, c.missing),
            "; ".join(f"{reason} ({n})" for reason, n in c.reasons.items()),
        )
        for c in card.coverage
    ]
    controls = [
        (
            *(c.control, c.dimension, c.n),
            interval_text(c.change, c.ci_low, c.ci_high),
            *(c.plcc_after, c.expected or "-", c.verdict or "-"),
        )
        for c in card.controls
    ]
    return (
        _agreement(card),
        table_of("measurements", "Every measure", card.measurements),
        table_of("ceiling", "One rater against the others", card.ceilings),
        table_of_rows(
            "coverage",
            "Rated videos that the judge scored",
            ("dimension", "rated", "scored", "unscored", "no record", "reasons"),
            coverage,
            "A video without a score is left out of every number, never counted as 0.",
        ),
        table_of_rows(
            "controls",
            "Controls: inputs made wrong on purpose",
            ("control", "dimension", "n", "change", "PLCC", "expected", "found"),
            controls,
            "Change of the mean score, and the correlation with the raters that is left.",
        ),
        findings_table(card.findings),
    )


def _agreement(card: ReportCard) -> Table:
    rows = []
    for c in card.ceilings:
        human = interval_text(c.value, c.ci_low, c.ci_high)
        for level, title in (
            ("sample", "videos"),
            ("prompt", "within prompts"),
            ("model", "models"),
        ):
            measured = [card.value(c.dimension, level, name) for name in MEASURES]
            cells = [interval_text(m.value, m.ci_low, m.ci_high) for m in measured]
            rows.append((c.dimension, title, measured[0].n, *cells, human))
            human = "-"  # a ceiling of single videos
    shared = ", ".join(card.leakage.shared_models) or "none"
    return table_of_rows(
        "agreement",
        f"Agreement of {card.judge} with the raters",
        ("dimension", "over", "n", "PLCC", "SRCC", "KRCC", "RMSE", "pairs", "one rater (PLCC)"),
        rows,
        f"{card.settings.confidence * 100:g} % bootstrap intervals over {card.num_prompts} "
        f"prompts; the {len(card.models)} models are taken as given. PLCC and RMSE "
        + ("after" if card.calibrated else "WITHOUT")
        + " calibration; pairs: share ordered as by the raters, "
        f"equal within {card.settings.tie_margin:g} points "
        f"(models: {card.settings.model_tie_margin:g}). Training of the judge: "
        f"{card.leakage.verdict}; models of the training among those judged: {shared}.",
    )
