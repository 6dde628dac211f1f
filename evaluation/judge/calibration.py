"""From the scale of a judge to the scale of the raters, per dimension: a rising curve.

Two curves are fitted on rated videos that the report card never sees: isotonic regression (any
rising curve) and the four-parameter logistic of video quality assessment (VQEG 2000),

    f(x) = low + (high - low) / (1 + exp(-(x - centre) / width)),   width > 0.

A cross-validation by prompt gives both errors, which are recorded. The logistic curve is taken
unless isotonic regression is better by more than 1 %: its steps make equal scores of different
ones. A calibration names the weights it was fitted for.
"""

import dataclasses
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
from pydantic import Field, model_validator
from scipy.optimize import OptimizeWarning, curve_fit, isotonic_regression
from scipy.special import expit

from longtake.evaluation.dimensions import SCALE
from longtake.evaluation.judge.coefficients import pearson, rmse
from longtake.rewards.template import text_digest
from longtake.runtime.config import Config
from longtake.runtime.errors import CheckpointError, ConfigError, UserError
from longtake.runtime.files import write_text
from longtake.runtime.statistics import FloatArray, IntArray

Method = Literal["isotonic", "logistic"]
METHODS: tuple[Method, ...] = get_args(Method)
FORMAT = 1
"""Version of the file."""
_NEEDED_GAIN = 0.01  # of isotonic regression over the logistic curve, share of its error


class CalibrationSettings(Config):
    """How a curve is chosen."""

    method: Literal["auto", "isotonic", "logistic"] = "auto"
    """auto | isotonic | logistic; auto decides by cross-validated error."""
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


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """The map of one dimension."""

    method: Method
    """What was taken."""
    parameters: Mapping[str, tuple[float, ...]]
    """isotonic: ``scores`` and ``ratings`` of the knots, and the ``slope`` beyond them; logistic:
    ``low``, ``high``, ``centre`` and ``width``, one number each."""
    n: int
    """Videos it was fitted on."""
    n_prompts: int
    """Their prompts."""
    errors: Mapping[str, float | None]
    """Method -> cross-validated RMSE in points; None where the fit did not converge."""
    plcc: float
    """Linear correlation of the scores with the ratings before calibration."""

    def __call__(self, scores: FloatArray) -> FloatArray:
        """Scores [n] on the raters' scale; NaN stays NaN."""
        return _apply(self.method, self.parameters, np.asarray(scores, dtype=np.float64))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """The curves of a judge."""

    judge: str
    """Digest of the weights and settings that it was fitted for."""
    curves: Mapping[str, Curve]
    """Dimension -> curve."""

    def as_record(self) -> dict[str, Any]:
        """JSON-ready."""
        curves = {name: dataclasses.asdict(curve) for name, curve in self.curves.items()}
        return {"format": FORMAT, "judge": self.judge, "curves": curves}

    @property
    def digest(self) -> str:
        """sha256 of the record."""
        return text_digest(json.dumps(self.as_record(), sort_keys=True))


def fit_curve(
    scores: FloatArray,
    ratings: FloatArray,
    prompts: IntArray,
    settings: CalibrationSettings,
    weights: FloatArray | None = None,
) -> Curve:
    """Fit one dimension.

    Args:
        scores: [n] raw scores of the judge, finite.
        ratings: [n] mean ratings.
        prompts: [n] number of the prompt of each video.
        settings: method and limits.
        weights: [n] number of ratings behind each mean; None: equal.

    Raises:
        UserError: too few points or prompts, no variation, or scores that fall with the ratings.
    """
    weight = np.ones(len(scores)) if weights is None else np.asarray(weights, dtype=np.float64)
    n_prompts = len(np.unique(prompts))
    if len(scores) < settings.min_points or n_prompts < settings.min_prompts:
        raise UserError(
            "too few rated videos to calibrate a judge",
            received=f"{len(scores)} videos of {n_prompts} prompts",
            expected=f">= {settings.min_points} videos of >= {settings.min_prompts} prompts",
            remedy="rate more videos that the report card does not use",
        )
    relation = pearson(scores, ratings)
    if not relation > 0:
        raise UserError(
            "the scores of the judge do not rise with the ratings",
            received="no variation" if math.isnan(relation) else f"correlation {relation:.3f}",
            expected="a correlation above 0",
            remedy="train the judge longer or on other ratings; a curve cannot mend it",
        )
    errors: dict[str, float | None] = {
        name: _cross_validated(name, scores, ratings, prompts, weight, settings) for name in METHODS
    }
    method = _choose(errors, settings.method)
    parameters = _fit(method, scores, ratings, weight)
    if parameters is None:
        raise UserError(
            "the calibration curve does not converge",
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


def _choose(errors: Mapping[str, float | None], wanted: str) -> Method:
    for name in METHODS:
        if name == wanted:
            return name
    isotonic, logistic = errors["isotonic"], errors["logistic"]
    if isotonic is None or logistic is None:
        return "isotonic" if logistic is None else "logistic"
    return "isotonic" if isotonic < (1 - _NEEDED_GAIN) * logistic else "logistic"


def _cross_validated(
    method: Method,
    scores: FloatArray,
    ratings: FloatArray,
    prompts: IntArray,
    weights: FloatArray,
    settings: CalibrationSettings,
) -> float | None:
    """RMSE on prompts that the curve was not fitted on; None when a fit does not converge."""
    names, prompt = np.unique(prompts, return_inverse=True)
    rng = np.random.default_rng(settings.seed)
    fold = (rng.permutation(len(names)) % settings.folds)[prompt]
    predicted = np.empty(len(scores))
    for number in range(settings.folds):
        held = fold == number
        found = _fit(method, scores[~held], ratings[~held], weights[~held])
        if found is None:
            return None
        predicted[held] = _apply(method, found, scores[held])
    return rmse(predicted, ratings)


def _fit(
    method: Method, scores: FloatArray, ratings: FloatArray, weights: FloatArray
) -> dict[str, tuple[float, ...]] | None:
    if method == "isotonic":
        return _fit_isotonic(scores, ratings, weights)
    return _fit_logistic(scores, ratings, weights)


def _fit_isotonic(
    scores: FloatArray, ratings: FloatArray, weights: FloatArray
) -> dict[str, tuple[float, ...]]:
    """Knots at both ends of each block of equal values, as the regression defines the curve.

    Beyond the outermost knots it goes on with the slope of the straight fit: a flat end would call
    every video of a generator better than all that were rated equally good.
    """
    unique, place = np.unique(scores, return_inverse=True)
    weight = np.bincount(place, weights=weights)
    mean = np.bincount(place, weights=weights * ratings) / weight
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
) -> dict[str, tuple[float, ...]] | None:
    spread = float(np.std(scores))
    start = (float(ratings.min()), float(ratings.max()), float(np.mean(scores)), spread)
    if spread == 0:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("error", OptimizeWarning)
        try:
            found, _ = curve_fit(
                _logistic, scores, ratings, p0=start, sigma=weights**-0.5, maxfev=4000
            )
        except (RuntimeError, OptimizeWarning):
            return None
    low, high, centre, width = (float(value) for value in found)
    if width < 0:  # the same curve, written the other way
        low, high, width = high, low, -width
    if high <= low or not np.isfinite(found).all():
        return None
    return {"low": (low,), "high": (high,), "centre": (centre,), "width": (width,)}


def _logistic(x: FloatArray, low: float, high: float, centre: float, width: float) -> FloatArray:
    return np.asarray(low + (high - low) * expit((x - centre) / width), dtype=np.float64)


def _apply(
    method: Method, parameters: Mapping[str, Sequence[float]], scores: FloatArray
) -> FloatArray:
    if method == "isotonic":
        x, slope = parameters["scores"], parameters["slope"][0]
        beyond = np.minimum(scores - x[0], 0.0) + np.maximum(scores - x[-1], 0.0)
        found = np.interp(scores, x, parameters["ratings"]) + slope * beyond
    else:
        values = (parameters[name][0] for name in ("low", "high", "centre", "width"))
        found = _logistic(scores, *values)
    return np.clip(np.where(np.isnan(scores), np.nan, found), *SCALE)


def write_calibration(path: Path, calibration: Calibration) -> Path:
    """Write the curves as JSON, atomically.

    Raises:
        UserError: the file cannot be written.
    """
    text = json.dumps(calibration.as_record(), indent=2, allow_nan=False) + "\n"
    return write_text(path, text)


def read_calibration(path: Path) -> Calibration:
    """Read the curves.

    Raises:
        CheckpointError: unreadable, of another version, or not curves.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise ValueError(f"format {record['format']!r}, expected {FORMAT}")
        curves = {str(name): _curve(fields) for name, fields in record["curves"].items()}
        return Calibration(judge=str(record["judge"]), curves=curves)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"the calibration cannot be read: {error}",
            received=str(path),
            expected="the file that `eval judge calibrate` writes",
            remedy="calibrate the judge again",
        ) from error


def _curve(fields: Mapping[str, Any]) -> Curve:
    curve = Curve(
        **{
            **fields,
            "parameters": {
                str(name): tuple(float(value) for value in values)
                for name, values in fields["parameters"].items()
            },
        }
    )
    wanted = {
        "isotonic": {"scores", "ratings", "slope"},
        "logistic": {"low", "high", "centre", "width"},
    }
    if set(curve.parameters) != wanted.get(curve.method, set()):
        raise ValueError(f"parameters {sorted(curve.parameters)} of method {curve.method!r}")
    if not all(values and np.isfinite(values).all() for values in curve.parameters.values()):
        raise ValueError("parameters that are not finite")
    if curve.method == "isotonic":
        x, y = (np.asarray(curve.parameters[name]) for name in ("scores", "ratings"))
        if len(x) != len(y) or (np.diff(x) <= 0).any() or (np.diff(y) < 0).any():
            raise ValueError("knots that do not rise")
    return curve
