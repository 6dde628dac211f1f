"""Alternating projection: the worked example of ITU-T P.910, known biases, edges."""

import json
from pathlib import Path

import numpy as np
import pytest

from longtake.evaluation.subject_bias import alternating_projection

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


def test_the_order_of_the_ratings_does_not_matter():
    _, scores, raters, samples = example()
    order = np.random.default_rng(0).permutation(len(scores))
    found = alternating_projection(scores[order], raters[order], samples[order])
    np.testing.assert_allclose(found.quality, EXAMPLE["quality"], atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_known_biases_and_inconsistencies_return_with_few_raters_per_video(seed):
    rng = np.random.default_rng(seed)
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


def test_too_few_rounds_are_admitted():
    _, scores, raters, samples = example()
    found = alternating_projection(scores, raters, samples, max_iterations=2)
    assert (found.converged, found.iterations) == (False, 2)
