"""Alpha against the textbook and evalica; rater biases against the example of ITU-T P.910."""

import json
from pathlib import Path

import evalica
import numpy as np
import pandas as pd
import pytest

from longtake.evaluation.agreement import (
    alternating_projection,
    krippendorff_alpha,
    rest_correlations,
)

NONE = np.nan
TEXTBOOK = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NONE, NONE, NONE],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NONE, 3],
        [NONE, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NONE],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NONE],
    ]
)


def long(matrix):
    rater, sample = np.nonzero(~np.isnan(matrix))
    return matrix[rater, sample], rater, sample


def test_the_textbook_matrix():
    scores, _, samples = long(TEXTBOOK)
    found = krippendorff_alpha(scores, samples)
    assert found.alpha == pytest.approx(0.8154, abs=5e-5)
    assert (found.n_samples, found.n_ratings) == (11, 40)


def test_equals_evalica_with_missing_ratings():
    rng = np.random.default_rng(0)
    quality = rng.normal(3, 1, size=80)
    matrix = np.clip(np.round(quality + rng.normal(0, 0.8, size=(6, 80))), 1, 5)
    matrix[rng.random(matrix.shape) < 0.5] = np.nan
    scores, _, samples = long(matrix)
    wanted = evalica.alpha(pd.DataFrame(matrix), distance="ordinal").alpha
    found = krippendorff_alpha(scores, samples, resamples=100)
    assert found.alpha == pytest.approx(wanted, abs=1e-12)


def test_the_interval_covers_the_truth_when_disputed_videos_get_more_raters():
    # The bootstrap of single pairs fails here: it gives intervals below alpha itself.
    rng = np.random.default_rng(0)
    quality = np.repeat(rng.normal(3, 1, size=200), 2)  # two videos to a prompt
    matrix = np.clip(np.round(quality + rng.normal(0, 0.7, size=(5, 400))), 1, 5)
    first = matrix[:3]
    matrix[3:, np.ptp(first, axis=0) < 2] = np.nan
    scores, _, samples = long(matrix)
    found = krippendorff_alpha(scores, samples, samples // 2)
    assert found.ci_low < found.alpha < found.ci_high
    assert found.ci_high - found.ci_low < 0.2
    by_pairs = evalica.alpha_bootstrap(
        pd.DataFrame(matrix), distance="ordinal", n_resamples=1000, random_state=0
    )
    assert by_pairs.high < by_pairs.alpha


def test_interval_is_that_of_explicit_resampling():
    rng = np.random.default_rng(1)
    matrix = np.clip(np.round(rng.normal(3, 1, 60) + rng.normal(0, 0.7, (3, 60))), 1, 5)
    scores, _, samples = long(matrix)
    found = krippendorff_alpha(scores, samples, resamples=2000, seed=3)
    drawn = [
        evalica.alpha(pd.DataFrame(matrix[:, rng.integers(0, 60, 60)]), distance="ordinal").alpha
        for _ in range(150)
    ]
    assert found.ci_low == pytest.approx(np.quantile(drawn, 0.025), abs=0.05)
    assert found.ci_high == pytest.approx(np.quantile(drawn, 0.975), abs=0.04)


@pytest.mark.parametrize(
    ("scores", "samples", "reason"),
    [
        ([1.0, 2.0], [0, 1], "no sample has two ratings"),
        ([3.0, 3.0, 3.0], [0, 0, 1], "all ratings are the same"),
    ],
)
def test_undefined_alpha_has_a_reason(scores, samples, reason):
    found = krippendorff_alpha(np.array(scores), np.array(samples))
    assert np.isnan([found.alpha, found.ci_low, found.ci_high]).all()
    assert found.reason == reason


def test_rest_correlations_by_definition():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=30) + rng.normal(0, 0.8, size=(5, 30))
    matrix[rng.random(matrix.shape) < 0.3] = np.nan
    scores, raters, samples = long(matrix)
    wanted = []
    for i in range(5):
        others = np.delete(matrix, i, axis=0)
        shared = ~np.isnan(matrix[i]) & (~np.isnan(others)).any(axis=0)
        rest = np.nanmean(others[:, shared], axis=0)
        wanted.append(np.corrcoef(matrix[i, shared], rest)[0, 1])
    assert rest_correlations(scores, raters, samples) == pytest.approx(wanted, abs=1e-12)


EXAMPLE = json.loads(
    (Path(__file__).parents[1] / "data" / "p910_example.json").read_text(encoding="utf-8")
)


def example():
    rows = [[np.nan if c == "." else float(c) for c in row] for row in EXAMPLE["scores"]]
    matrix = np.array(rows)
    sample, rater = np.nonzero(~np.isnan(matrix))
    return matrix, matrix[sample, rater], rater, sample


def test_the_worked_example_exactly():
    matrix, scores, raters, samples = example()
    assert matrix.shape == (79, 26) and np.isnan(matrix).sum() == 1
    assert np.nanmean(matrix[0]) == pytest.approx(4.769230769, abs=1e-9)
    found = alternating_projection(scores, raters, samples)
    assert found.converged
    assert found.quality[0] == pytest.approx(4.926232195563247, abs=1e-12)
    np.testing.assert_allclose(found.quality, EXAMPLE["quality"], atol=1e-12)
    np.testing.assert_allclose(found.bias, EXAMPLE["bias"], atol=1e-12)
    np.testing.assert_allclose(found.inconsistency, EXAMPLE["inconsistency"], atol=1e-12)
    assert not alternating_projection(scores, raters, samples, max_iterations=2).converged


def test_known_biases_and_inconsistencies_return_with_few_raters_per_video():
    rng = np.random.default_rng(0)
    bias = np.array([-0.6, -0.3, 0.0, 0.0, 0.2, 0.7])
    noise = np.array([0.3, 0.4, 0.5, 0.6, 0.9, 0.3])
    quality = rng.normal(3, 0.8, size=2000)
    raters = np.argsort(rng.random((2000, 6)), axis=1)[:, :3].ravel()
    samples = np.repeat(np.arange(2000), 3)
    scores = quality[samples] + bias[raters] + noise[raters] * rng.normal(size=6000)
    found = alternating_projection(scores, raters, samples)
    assert found.converged
    np.testing.assert_allclose(found.bias, bias - bias.mean(), atol=0.07)
    assert np.argmax(found.inconsistency) == 4
    truth = quality + bias.mean()
    plain = np.bincount(samples, weights=scores) / 3
    assert np.abs(found.quality - truth).mean() < 0.85 * np.abs(plain - truth).mean()


def test_a_perfect_rater_and_a_constant_one_are_no_trouble():
    rng = np.random.default_rng(0)
    quality = rng.integers(1, 6, size=50).astype(float)
    scores = np.concatenate([quality, np.full(50, 3.0), quality + 1])
    found = alternating_projection(scores, np.repeat([0, 1, 2], 50), np.tile(np.arange(50), 3))
    assert np.isfinite(found.quality).all() and np.isfinite(found.inconsistency).all()
    assert found.inconsistency[1] > 10 * found.inconsistency[0]
    assert found.bias[2] - found.bias[0] == pytest.approx(1.0, abs=1e-3)
    assert np.corrcoef(found.quality, quality)[0, 1] > 0.999
