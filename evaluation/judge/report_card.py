"""The report card of a judge: agreement, human ceiling, controls, failures, leakage.

It is computed from records alone: ratings, the log of scores and the log of controls. Any judge
whose scores are in such a log can have one.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from longtake.evaluation.judge.control_results import ControlResult, control_results, reasons
from longtake.evaluation.judge.human_ceiling import HumanCeiling, human_ceiling
from longtake.evaluation.judge.leakage import Leakage, TrainingRecord, check_leakage
from longtake.evaluation.judge.levels import Judged, LevelSettings, Measurement, measure_levels
from longtake.evaluation.judge.rated_clips import RatedClips
from longtake.evaluation.judge.score_log import find_judge, latest_scores
from longtake.evaluation.ratings import Finding, Findings, Rating
from longtake.runtime.errors import UserError
from longtake.runtime.statistics import FloatArray, IntArray, check_resampling, resampled

_NEEDS_POINTS = "the scores are not calibrated to the raters' scale"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """How many rated videos the judge scored in one dimension."""

    dimension: str
    """Which."""
    rated: int
    """Videos with ratings."""
    scored: int
    """Of these, with a score: the n of everything at sample level."""
    unscored: int
    """Of these, with a record that has no score."""
    missing: int
    """Of these, without a record."""
    reasons: dict[str, int]
    """Why there is no score -> number; an answer that could not be parsed is one of them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportCard:
    """How far a judge can be trusted."""

    judge: str
    """Name, with digest and calibration."""
    calibrated: bool
    """Whether every score names its calibration; otherwise there is no RMSE."""
    coverage: tuple[Coverage, ...]
    """By dimension."""
    measurements: tuple[Measurement, ...]
    """Dimension x level x measure."""
    ceilings: tuple[HumanCeiling, ...]
    """By dimension."""
    controls: tuple[ControlResult, ...]
    """Control x dimension, of those that were run."""
    leakage: Leakage
    """Training against benchmark."""
    num_prompts: int
    """Prompts of the rated videos."""
    models: tuple[str, ...]
    """Models of the rated videos."""
    settings: LevelSettings
    """How pairs and intervals were made."""
    findings: tuple[Finding, ...]
    """Everything irregular."""

    def value(self, dimension: str, level: str, measure: str) -> Measurement:
        """One measurement.

        Raises:
            KeyError: there is none of these names.
        """
        for item in self.measurements:
            if (item.dimension, item.level, item.measure) == (dimension, level, measure):
                return item
        raise KeyError((dimension, level, measure))

    def as_record(self) -> dict[str, Any]:
        """JSON-ready but for NaN."""
        names = [field.name for field in dataclasses.fields(self) if field.name != "findings"]
        record: dict[str, Any] = {}
        for name in names:
            value = getattr(self, name)
            if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
                value = [dataclasses.asdict(item) for item in value]
            elif dataclasses.is_dataclass(value) and not isinstance(value, type):
                value = dataclasses.asdict(value)
            record[name] = value
        record["leakage"]["verdict"] = self.leakage.verdict
        return {**record, "findings": [finding.as_record() for finding in self.findings]}


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
    """Compare the scores of a judge with the ratings of people.

    Args:
        clips: rated videos that the judge was neither trained nor calibrated on.
        scores: records of the judge.
        controls: records of the controls.
        training: what the judge was trained on, for the leakage check.
        judge: name of the judge, where the records hold several.
        settings: pairs, intervals.
        earlier: findings of reading the logs.

    Raises:
        UserError: no judge in the records, or no video with both a rating and a score.
    """
    settings = settings or LevelSettings()
    check_resampling(settings.confidence, settings.resamples)
    name = find_judge(scores, judge)
    answers = latest_scores(scores, name)
    records = [item for item in scores if item.rater == name and item.score is not None]
    calibrated = all(item.provenance.get("calibration") for item in records)
    findings = Findings([*clips.findings, *earlier])
    known = {item.sample for item in clips.samples.samples}
    strange = sorted({sample for sample, _ in answers} - known)
    findings.add("scored sample without ratings", "not used", strange)
    frame = _Frame(clips, answers, settings)
    coverage, measurements, ceilings, results = [], [], [], []
    for column, dimension in enumerate(clips.dimensions):
        coverage.append(frame.coverage(column, dimension, answers))
        data, used = frame.judged(column)
        if not used.any():
            continue
        found = measure_levels(dimension, data, frame.counts, settings)
        measurements += found if calibrated else [_without_points(item) for item in found]
        ceilings.append(frame.ceiling(dimension, settings.confidence))
        results += control_results(
            controls,
            name,
            dimension,
            [item.sample for item, use in zip(clips.samples.samples, used, strict=True) if use],
            data.human,
            data.judge,
            data.clusters,
            frame.counts,
            settings.confidence,
        )
    if not measurements:
        raise UserError(
            "no video has both a rating and a score of the judge",
            received=f"{len(known)} rated videos, {len(records)} scores of {name}",
            expected="scores of the rated samples",
            remedy="score the list of samples that was rated",
        )
    leakage = check_leakage(clips.samples.samples, training)
    findings.add("prompt that the judge was trained on", "used", leakage.same_prompts)
    findings.add("prompt near one that the judge was trained on", "used", leakage.near_prompts)
    return ReportCard(
        judge=name,
        calibrated=calibrated,
        coverage=tuple(coverage),
        measurements=tuple(measurements),
        ceilings=tuple(ceilings),
        controls=tuple(results),
        leakage=leakage,
        num_prompts=len(frame.prompt_names),
        models=clips.samples.models,
        settings=settings,
        findings=findings.all(),
    )


def _without_points(item: Measurement) -> Measurement:
    if item.measure != "rmse":
        return item
    nan = math.nan
    return dataclasses.replace(item, value=nan, ci_low=nan, ci_high=nan, reason=_NEEDS_POINTS)


class _Frame:
    """Ratings and scores as numbers."""

    def __init__(
        self,
        clips: RatedClips,
        answers: dict[tuple[str, str], tuple[float, str]],
        settings: LevelSettings,
    ) -> None:
        self.clips = clips
        samples = clips.samples.samples
        self.score: FloatArray = np.array(
            [
                [answers.get((item.sample, name), (math.nan, ""))[0] for name in clips.dimensions]
                for item in samples
            ],
            dtype=np.float64,
        )
        prompts, self.prompt_names = pd.factorize(np.array([s.prompt for s in samples]))
        models, _ = pd.factorize(np.array([s.model for s in samples]))
        first: dict[str, str] = {}  # all videos of a prompt are in the cluster of its first one
        of_sample = [first.setdefault(s.prompt, s.cluster or s.prompt) for s in samples]
        clusters, names = pd.factorize(np.array(of_sample))
        self.prompts, self.models, self.clusters = (
            np.asarray(codes, dtype=np.int64) for codes in (prompts, models, clusters)
        )
        self.counts: FloatArray = resampled(
            lambda drawn: drawn, len(names), resamples=settings.resamples, seed=settings.seed
        )
        self._row = {item.sample: row for row, item in enumerate(samples)}

    def judged(self, column: int) -> tuple[Judged, np.ndarray]:
        """The videos with rating and score, and where they are."""
        used = (self.clips.count[:, column] > 0) & np.isfinite(self.score[:, column])
        models = self.models[used]
        return Judged(
            human=self.clips.mean[used, column],
            judge=self.score[used, column],
            prompts=self.prompts[used],
            # Numbered without gaps: a model without a score has no mean.
            models=np.unique(models, return_inverse=True)[1].astype(np.int64),
            clusters=self.clusters[used],
        ), used

    def coverage(
        self, column: int, dimension: str, answers: dict[tuple[str, str], tuple[float, str]]
    ) -> Coverage:
        rated = self.clips.count[:, column] > 0
        scored = rated & np.isfinite(self.score[:, column])
        samples = self.clips.samples.samples
        wanted = {(item.sample, dimension) for item, use in zip(samples, rated, strict=True) if use}
        given = {key: answer for key, answer in answers.items() if key in wanted}
        why = reasons(given, dimension)
        return Coverage(
            dimension=dimension,
            rated=int(rated.sum()),
            scored=int(scored.sum()),
            unscored=sum(why.values()),
            missing=len(wanted) - len(given),
            reasons=why,
        )

    def ceiling(self, dimension: str, confidence: float) -> HumanCeiling:
        part = self.clips.ratings
        part = part[part["dimension"] == dimension]
        rows: IntArray = np.array([self._row[name] for name in part["sample"]], dtype=np.int64)
        raters, _ = pd.factorize(part["rater"])
        return human_ceiling(
            dimension,
            part["score"].to_numpy(dtype=np.float64),
            np.asarray(raters, dtype=np.int64),
            rows,
            self.clusters[rows],
            self.counts,
            confidence,
        )
