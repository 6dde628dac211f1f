"""Calibrate a judge on rated clips: score them raw, fit a curve for each dimension, store it."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from longtake.evaluation.judge.calibration import (
    Calibration,
    CalibrationSettings,
    Curve,
    fit_curve,
)
from longtake.evaluation.judge.judge_directory import JudgeDirectory, set_calibration
from longtake.evaluation.judge.rated_clips import RatedClips
from longtake.evaluation.judge.score_log import latest_scores
from longtake.evaluation.judge.scorer import score_samples
from longtake.evaluation.ratings import read_ratings
from longtake.rewards.template import prompt_key
from longtake.runtime.errors import UserError
from longtake.runtime.statistics import FloatArray


def fit_curves(
    clips: RatedClips, scores: FloatArray, settings: CalibrationSettings
) -> dict[str, Curve]:
    """A curve for each dimension of rated clips.

    Args:
        clips: n rated clips.
        scores: [n, D] raw scores; NaN = unscored, left out.
        settings: of the fit.

    Raises:
        UserError: a dimension that cannot be calibrated; the message names it.
    """
    captions = [prompt_key(item.caption) for item in clips.samples.samples]
    _, prompts = np.unique(np.array(captions), return_inverse=True)
    curves = {}
    for column, name in enumerate(clips.dimensions):
        used = (clips.count[:, column] > 0) & np.isfinite(scores[:, column])
        try:
            curves[name] = fit_curve(
                scores[used, column],
                clips.mean[used, column],
                prompts[used],
                settings,
                clips.count[used, column],
            )
        except UserError as error:
            raise UserError(
                f"{name}: {error.what}",
                received=error.received,
                expected=error.expected,
                remedy=error.remedy,
            ) from error
    return curves


def calibrate_judge(
    judge: JudgeDirectory,
    clips: RatedClips,
    folder: Path,
    settings: CalibrationSettings,
    *,
    device: torch.device,
    on_progress: Callable[[int], None] = lambda _: None,
) -> JudgeDirectory:
    """Score rated clips raw, fit and store the calibration.

    Args:
        judge: an earlier calibration is replaced.
        clips: rated on all dimensions of the judge, and not used for the report card.
        folder: gets the raw scores, ``scores.jsonl``; those that it has are kept.
        settings: of the fit.
        device: of the model.
        on_progress: called with the number of scored clips.

    Returns:
        The judge with its calibration.

    Raises:
        UserError: too few clips, or scores that do not rise with the ratings.
    """
    table = raw_scores(judge, clips, folder, device=device, on_progress=on_progress)
    curves = fit_curves(clips, table, settings)
    return set_calibration(judge, Calibration(judge=judge.digest, curves=curves))


def raw_scores(
    judge: JudgeDirectory,
    clips: RatedClips,
    folder: Path,
    *,
    device: torch.device,
    on_progress: Callable[[int], None] = lambda _: None,
) -> FloatArray:
    """Score rated clips without calibration.

    Args:
        judge: the judge.
        clips: n rated clips.
        folder: gets ``scores.jsonl``; scores that it has are kept.
        device: of the model.
        on_progress: called with the number of scored clips.

    Returns:
        [n, D]; NaN = unscored.

    Raises:
        UserError: the log cannot be written.
    """
    score_samples(
        clips.samples,
        judge,
        folder,
        device=device,
        calibrated=False,
        on_progress=lambda _, done: on_progress(done),
    )
    found, _ = read_ratings([folder / "scores.jsonl"])
    known = latest_scores(found, judge.name)
    return np.array(
        [
            [known.get((item.sample, name), (math.nan, ""))[0] for name in clips.dimensions]
            for item in clips.samples.samples
        ],
        dtype=np.float64,
    )
