"""Calibration curves: known shapes are recovered, files are checked, too little data is refused."""

import json

import numpy as np
import pytest

from longtake.evaluation.judge.calibration import (
    Calibration,
    CalibrationSettings,
    fit_curve,
    read_calibration,
)
from longtake.runtime.errors import CheckpointError, ConfigError, UserError
from longtake.runtime.files import write_json


def data(seed=0, n=400, noise=0.1, shape="logistic"):
    rng = np.random.default_rng(seed)
    scores = rng.uniform(-4, 4, size=n)
    if shape == "logistic":
        truth = 1.2 + 3.5 / (1 + np.exp(-(scores - 0.5) / 0.7))
    else:
        truth = np.select([scores < -2, scores < 1.5], [1.2, 3.0], 4.8)
    return scores, truth + noise * rng.normal(size=n), np.arange(n) // 4, truth


def fit(scores, ratings, prompts, settings):
    return fit_curve(scores, ratings, prompts, settings, np.ones(len(scores)))


@pytest.mark.parametrize("seed", range(3))
def test_logistic_recovers_its_parameters(seed):
    scores, ratings, prompts, truth = data(seed)
    curve = fit(scores, ratings, prompts, CalibrationSettings(method="logistic"))
    found = [curve.parameters[name][0] for name in ("low", "high", "centre", "width")]
    assert found == pytest.approx([1.2, 4.7, 0.5, 0.7], abs=0.12)
    assert np.abs(curve(scores) - truth).max() < 0.1


@pytest.mark.parametrize(("shape", "expected"), [("logistic", "logistic"), ("step", "isotonic")])
def test_the_better_curve_is_taken_and_both_errors_recorded(shape, expected):
    scores, ratings, prompts, truth = data(shape=shape)
    curve = fit(scores, ratings, prompts, CalibrationSettings())
    assert curve.method == expected
    errors = dict(curve.errors)
    assert min(errors, key=errors.get) == expected and curve.n == 400 and curve.n_prompts == 100
    assert np.sqrt(np.mean((curve(scores) - truth) ** 2)) < 0.15


def test_isotonic_is_the_least_squares_rising_curve():
    rng = np.random.default_rng(1)
    scores, prompts = np.repeat(np.arange(60.0), 2), np.arange(120)
    ratings = np.clip(1 + scores / 15 + rng.normal(size=120), 1, 5)
    curve = fit(scores, ratings, prompts, CalibrationSettings(method="isotonic"))
    x = np.linspace(-5, 70, 300)
    assert (np.diff(curve(x)) >= 0).all()
    # The solution by its min-max formula: of all means of intervals around a score.
    mean = ratings.reshape(60, 2).mean(1)
    solution = [
        max(min(mean[i : j + 1].mean() for j in range(k, 60)) for i in range(k + 1))
        for k in range(60)
    ]
    assert curve(np.arange(60.0)) == pytest.approx(solution)
    slope = np.polyfit(scores, ratings, 1)[0]
    assert curve(np.array([-2.0, 61.0])) == pytest.approx(
        np.clip([solution[0] - 2 * slope, solution[-1] + 2 * slope], 1, 5)
    )


def test_weights_count_like_repetitions():
    scores, ratings, prompts, _ = data(n=80, noise=0.8)
    weights = np.random.default_rng(0).integers(1, 4, size=80)
    settings = CalibrationSettings(method="isotonic", min_points=10)
    a = fit_curve(scores, ratings, prompts, settings, weights.astype(float))
    b = fit(scores.repeat(weights), ratings.repeat(weights), prompts.repeat(weights), settings)
    x = np.linspace(-4, 4, 50)
    assert a(x) == pytest.approx(b(x))


def test_scores_stay_on_the_scale_and_nan_stays_nan():
    scores, ratings, prompts, _ = data()
    for method in ("isotonic", "logistic"):
        curve = fit(scores, ratings * 1.4, prompts, CalibrationSettings(method=method))
        found = curve(np.array([-1e3, np.nan, 1e3]))
        assert np.isnan(found[1]) and 1 <= found[0] < found[2] <= 5


def test_refusals():
    scores, ratings, prompts, _ = data()
    with pytest.raises(UserError, match="too few rated videos"):
        fit(scores[:40], ratings[:40], prompts[:40], CalibrationSettings())
    with pytest.raises(UserError, match="too few rated videos"):
        fit(scores, ratings, prompts // 20, CalibrationSettings())
    with pytest.raises(UserError, match="do not rise"):
        fit(-scores, ratings, prompts, CalibrationSettings())
    with pytest.raises(UserError, match="no variation"):
        fit(np.ones(400), ratings, prompts, CalibrationSettings())
    for wrong in ({"method": "spline"}, {"folds": 1}, {"min_points": 3}, {"min_prompts": 2}):
        with pytest.raises(ConfigError):
            CalibrationSettings(**wrong)


def test_files(tmp_path):
    scores, ratings, prompts, _ = data()
    curves = {
        method: fit(scores, ratings, prompts, CalibrationSettings(method=method))
        for method in ("isotonic", "logistic")
    }
    calibration = Calibration(judge="abc", curves=curves)
    path = write_json(tmp_path / "calibration.json", calibration.model_dump())
    again = read_calibration(path)
    assert again == calibration and again.digest == calibration.digest
    assert again.curves["isotonic"](scores).tolist() == curves["isotonic"](scores).tolist()
    text = path.read_text()
    for broken in (text[:-20], text.replace('"format": 1', '"format": 2'), "[]", '{"format": 1}'):
        path.write_text(broken)
        with pytest.raises(CheckpointError, match="calibration"):
            read_calibration(path)
    record = json.loads(text)
    record["curves"]["isotonic"]["parameters"]["ratings"].reverse()
    path.write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="calibration cannot be read"):
        read_calibration(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_calibration(tmp_path / "missing.json")
