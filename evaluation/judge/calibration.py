"""From the scale of a judge to the scale of the raters, per dimension: a rising curve.

Two curves are fitted on rated videos that the report card never sees: isotonic regression (any
rising curve) and the four-parameter logistic of video quality assessment (VQEG 2000),

    f(x) = low + (high - low) / (1 + exp(-(x - centre) / width)),   width > 0.

A cross-validation by prompt gives both errors, which are recorded. The logistic curve is taken
unless isotonic regression is better by more than 1 %: its steps make equal scores of different
ones. A calibration names the weights it was fitted for.
"""

import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self, get_args

import numpy as np
from pydantic import Field, model_validator
from scipy import stats
from scipy.optimize import OptimizeWarning, curve_fit, isotonic_regression
from scipy.special import expit

from longtake.evaluation.dimensions import SCALE
from longtake.evaluation.judge.data import RatedClips
from longtake.runtime.config import Config
from longtake.runtime.errors import CheckpointError, ConfigError, UserError
from longtake.runtime.files import prompt_key, text_digest
from longtake.runtime.statistics import FloatArray, IntArray

Method = Literal["isotonic", "logistic"]
METHODS: tuple[Method, ...] = get_args(Method)
_NEEDED_GAIN = 0.01  # of isotonic regression over the logistic curve, share of its error
LOGISTIC = ("low", "high", "centre", "width")
"""Parameters of the logistic curve."""


class CalibrationSettings(Config):
    """How a curve is chosen."""

    method: Literal["auto", "isotonic", "logistic"] = "auto"
    """auto decides by cross-validated error."""
    folds: int = Field(5, ge=2)
    """Of the cross-validation, >= 2; a prompt is in one fold."""
    min_points: int = Field(50, ge=10)
    """Fewer rated videos are refused, >= 10."""
    min_prompts: int = 10
    """Fewer prompts are refused, >= ``folds``."""
    seed: int = 0
    """Names the folds."""

    @model_validator(mode="after")
    def _every_fold_has_a_prompt(self) -> Self:
        if self.min_prompts < self.folds:
            raise ConfigError(
                "a fold of the calibration has no prompt",
                received=f"folds {self.folds}, min_prompts {self.min_prompts}",
                expected="min_prompts >= folds",
            )
        return self


Parameters = Mapping[str, tuple[float, ...]]
"""isotonic: ``scores`` and ``ratings`` of the knots, and the ``slope`` beyond them; logistic:
``low``, ``high``, ``centre`` and ``width``, one number each."""


class Curve(Config):
    """The map of one dimension."""

    method: Method
    parameters: Parameters
    n: int
    n_prompts: int
    errors: Mapping[str, float | None]
    """Method -> cross-validated RMSE in points; None where the fit did not converge."""
    plcc: float
    """Linear correlation of the scores with the ratings before calibration."""

    @model_validator(mode="after")
    def _is_a_curve(self) -> Self:
        names = ("scores", "ratings", "slope") if self.method == "isotonic" else LOGISTIC
        assert set(self.parameters) == set(names), f"parameters {sorted(self.parameters)}"
        if self.method == "isotonic":
            x, y = self.parameters["scores"], self.parameters["ratings"]
            rising = len(x) == len(y) and (np.diff(x) > 0).all() and (np.diff(y) >= 0).all()
            assert rising, "knots do not rise"
        return self

    def __call__(self, scores: FloatArray) -> FloatArray:
        """Scores [n] on the raters' scale; NaN stays NaN."""
        return _apply(self.method, self.parameters, np.asarray(scores, dtype=np.float64))


class Calibration(Config):
    """The curves of a judge."""

    format: Literal[1] = 1
    """Version of the file."""
    judge: str
    """Digest of the weights and settings that it was fitted for."""
    curves: Mapping[str, Curve]
    """Dimension -> curve."""

    @property
    def digest(self) -> str:
        """sha256 of the record."""
        return text_digest(json.dumps(self.model_dump(), sort_keys=True))


def read_calibration(path: Path) -> Calibration:
    """Read the curves; another version, or numbers that are no curves, is a CheckpointError."""
    try:
        return Calibration(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, ConfigError) as error:
        raise CheckpointError(
            f"the calibration cannot be read: {error}",
            received=str(path),
            expected="the file that `eval judge calibrate` writes",
            remedy="calibrate the judge again",
        ) from error


def fit_curves(
    clips: RatedClips, scores: FloatArray, settings: CalibrationSettings
) -> dict[str, Curve]:
    """A curve for each dimension of n rated clips with raw scores [n, D]; NaN: unscored, left out.

    A dimension that cannot be calibrated is a UserError that names it.
    """
    captions = [prompt_key(item.caption) for item in clips.samples.samples]
    _, prompts = np.unique(np.array(captions), return_inverse=True)
    curves = {}
    for column, name in enumerate(clips.dimensions):
        used = (clips.count[:, column] > 0) & np.isfinite(scores[:, column])
        curves[name] = fit_curve(
            scores[used, column],
            clips.mean[used, column],
            prompts[used],
            settings,
            clips.count[used, column],
            name,
        )
    return curves


def fit_curve(
    scores: FloatArray,
    ratings: FloatArray,
    prompts: IntArray,
    settings: CalibrationSettings,
    weights: FloatArray,
    name: str = "the judge",
) -> Curve:
    """Fit n raw scores to n mean ratings, ``weights`` [n] ratings behind each.

    ``prompts`` [n] numbers the prompts; ``name`` stands in errors.
    """
    n_prompts = len(np.unique(prompts))
    if len(scores) < settings.min_points or n_prompts < settings.min_prompts:
        raise UserError(
            f"{name}: too few rated videos to calibrate a judge",
            received=f"{len(scores)} videos of {n_prompts} prompts",
            expected=f">= {settings.min_points} videos of >= {settings.min_prompts} prompts",
            remedy="rate more videos that the report card does not use",
        )
    varied = np.ptp(scores) > 0 and np.ptp(ratings) > 0
    relation = float(stats.pearsonr(scores, ratings).statistic) if varied else math.nan
    if not relation > 0:
        raise UserError(
            f"{name}: the scores of the judge do not rise with the ratings",
            received=f"correlation {relation:.3f}" if varied else "no variation",
            expected="a correlation above 0",
            remedy="train the judge longer or on other ratings; a curve cannot mend it",
        )
    # Both, whichever is asked for: the record says what the choice cost.
    errors: dict[str, float | None] = {
        method: _cross_validated(method, scores, ratings, prompts, weights, settings)
        for method in METHODS
    }
    isotonic, logistic = errors["isotonic"], errors["logistic"]
    assert isotonic is not None  # it always has a solution
    smooth = logistic is not None and isotonic >= (1 - _NEEDED_GAIN) * logistic
    better: Method = "logistic" if smooth else "isotonic"
    method = better if settings.method == "auto" else settings.method
    parameters = _fit(method, scores, ratings, weights)
    if parameters is None:
        raise UserError(
            f"{name}: the calibration curve does not converge",
            received=method,
            remedy="use the method isotonic, which always has a solution",
        )
    return Curve(
        method=method,
        parameters=parameters,
        n=len(scores),
        n_prompts=n_prompts,
        errors=errors,
        plcc=relation,
    )


def _cross_validated(
    method: Method,
    scores: FloatArray,
    ratings: FloatArray,
    prompts: IntArray,
    weights: FloatArray,
    settings: CalibrationSettings,
) -> float | None:
    """RMSE on prompts that the curve was not fitted on; None when a fit does not converge."""
    # Folds of prompts: videos of one prompt share its difficulty, which a fit would know.
    names, prompt = np.unique(prompts, return_inverse=True)
    rng = np.random.default_rng(settings.seed)
    fold = (rng.permutation(len(names)) % settings.folds)[prompt]
    predicted = np.empty(len(scores))
    for number in range(settings.folds):
        held = fold == number
        parameters = _fit(method, scores[~held], ratings[~held], weights[~held])
        if parameters is None:
            return None
        predicted[held] = _apply(method, parameters, scores[held])
    return float(np.sqrt(np.mean((predicted - ratings) ** 2)))


def _fit(
    method: Method, scores: FloatArray, ratings: FloatArray, weights: FloatArray
) -> Parameters | None:
    fit = _fit_isotonic if method == "isotonic" else _fit_logistic
    return fit(scores, ratings, weights)


def _fit_isotonic(scores: FloatArray, ratings: FloatArray, weights: FloatArray) -> Parameters:
    """Knots at both ends of each block of equal values, as the regression defines the curve.

    Beyond the outermost knots it goes on with the slope of the straight fit: a flat end would call
    every video of a generator better than all that were rated equally good.
    """
    # Equal scores are one point: the regression would rank them by their place in the list.
    unique, row = np.unique(scores, return_inverse=True)
    weight = np.bincount(row, weights=weights)
    mean = np.bincount(row, weights=weights * ratings) / weight
    solution = isotonic_regression(mean, weights=weight)
    ends = np.unique(np.concatenate([solution.blocks[:-1], solution.blocks[1:] - 1]))
    centred = scores - np.average(scores, weights=weights)
    slope = float((weights * centred) @ ratings / ((weights * centred) @ centred))
    return {
        "scores": tuple(unique[ends].tolist()),
        "ratings": tuple(solution.x[ends].tolist()),
        "slope": (max(slope, 0.0),),
    }


def _fit_logistic(
    scores: FloatArray, ratings: FloatArray, weights: FloatArray
) -> Parameters | None:
    # From the straight middle of the data: elsewhere the gradient of a logistic is flat.
    spread = float(np.std(scores))
    start = (float(ratings.min()), float(ratings.max()), float(np.mean(scores)), spread)
    if spread == 0:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("error", OptimizeWarning)
        try:
            fitted, _ = curve_fit(
                _logistic, scores, ratings, p0=start, sigma=weights**-0.5, maxfev=4000
            )
        except (RuntimeError, OptimizeWarning):
            return None
    low, high, centre, width = fitted.tolist()
    if width < 0:  # the same curve, written the other way
        low, high, width = high, low, -width
    if high <= low or not np.isfinite(fitted).all():
        return None
    return {name: (x,) for name, x in zip(LOGISTIC, (low, high, centre, width), strict=True)}


def _logistic(x: FloatArray, low: float, high: float, centre: float, width: float) -> FloatArray:
    return np.asarray(low + (high - low) * expit((x - centre) / width), dtype=np.float64)


def _apply(method: Method, parameters: Parameters, scores: FloatArray) -> FloatArray:
    if method == "isotonic":
        x, slope = parameters["scores"], parameters["slope"][0]
        beyond = np.minimum(scores - x[0], 0.0) + np.maximum(scores - x[-1], 0.0)
        points = np.interp(scores, x, parameters["ratings"]) + slope * beyond
    else:
        points = _logistic(scores, *(parameters[name][0] for name in LOGISTIC))
    return np.clip(np.where(np.isnan(scores), np.nan, points), *SCALE)
