"""From the scale of a judge to the scale of the raters, per dimension: a rising curve.

Two curves are fitted on rated videos that the report card never sees: isotonic regression (any
rising curve) and the four-parameter logistic of video quality assessment (VQEG 2000),

    f(x) = low + (high - low) / (1 + exp(-(x - centre) / width)),   width > 0.

The curve with the lower error in a cross-validation by prompt is taken, and both errors are
recorded. A calibration names the weights it was fitted for.
"""

import dataclasses
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from scipy.optimize import OptimizeWarning, curve_fit, isotonic_regression
from scipy.special import expit

from longtake.evaluation.bootstrap import FloatArray, IntArray
from longtake.evaluation.csv_rows import write_text
from longtake.evaluation.dimensions import SCALE
from longtake.evaluation.judge.coefficients import pearson, rmse
from longtake.runtime.errors import CheckpointError, ConfigError, UserError
from longtake.runtime.provenance import text_digest

Method = Literal["isotonic", "logistic"]
METHODS: tuple[Method, ...] = get_args(Method)
FORMAT = 1
"""Version of the file."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationSettings:
    """How a curve is chosen."""

    method: str = "auto"
    """auto | isotonic | logistic; auto takes the lower cross-validated error."""
    folds: int = 5
    """Of the cross-validation, >= 2; a prompt is in one fold."""
    min_points: int = 50
    """Fewer rated videos are refused, >= 10."""
    min_prompts: int = 10
    """Fewer prompts are refused, >= ``folds``."""
    seed: int = 0
    """Names the folds."""

    def __post_init__(self) -> None:
        usable = self.method in ("auto", *METHODS) and self.folds >= 2
        if not (usable and self.min_points >= 10 and self.min_prompts >= self.folds):
            raise ConfigError(
                "settings of the calibration cannot be used",
                received=f"method {self.method}, folds {self.folds}, min_points {self.min_points}, "
                f"min_prompts {self.min_prompts}",
                expected=f"method auto, {' or '.join(METHODS)}; folds >= 2; min_points >= 10; "
                "min_prompts >= folds",
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """The map of one dimension."""

    method: Method
    """What was taken."""
    parameters: Mapping[str, tuple[float, ...]]
    """isotonic: ``scores`` and ``ratings`` of the knots; logistic: ``low``, ``high``, ``centre``
    and ``width``, one number each."""
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
