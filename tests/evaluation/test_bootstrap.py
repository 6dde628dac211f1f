"""Resampled means against explicit resampling, and their edges."""

import numpy as np
import pytest

from longtake.evaluation import bootstrap
from longtake.evaluation.bootstrap import (
    cluster_sums,
    draw_counts,
    percentile_interval,
    resampled_means,
)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_means_equal_those_of_the_drawn_values(seed):
    rng = np.random.default_rng(seed)
    cluster = rng.integers(0, 7, size=40)
    values = rng.normal(size=40)
    sums = cluster_sums(values[:, None], cluster, 7)
    counts = cluster_sums(np.ones((40, 1)), cluster, 7)
    means = resampled_means(sums, counts, resamples=120, seed=seed)[:, 0]
    drawn = np.concatenate(list(draw_counts(7, 120, seed))).astype(int)
    for mean, row in zip(means, drawn, strict=True):
        chosen = np.concatenate([values[cluster == c] for c in np.repeat(np.arange(7), row)])
        assert mean == pytest.approx(chosen.mean(), abs=1e-12)


def test_every_resample_draws_as_many_clusters_as_there_are():
    drawn = np.concatenate(list(draw_counts(13, 500, 0)))
    assert drawn.shape == (500, 13) and (drawn.sum(axis=1) == 13).all()
    # Multinomial: variance of a count is (C - 1) / C.
    assert drawn.var() == pytest.approx(12 / 13, rel=0.1)


def test_columns_share_the_draws():
    rng = np.random.default_rng(3)
    sums = rng.normal(size=(20, 1))
    both = resampled_means(np.hstack([sums, sums + 2.0]), np.ones((20, 2)), resamples=200, seed=4)
    assert both[:, 1] - both[:, 0] == pytest.approx(np.full(200, 2.0))


def test_chunks_change_nothing(monkeypatch):
    sums, counts = np.random.default_rng(0).normal(size=(30, 3)), np.ones((30, 3))
    whole = resampled_means(sums, counts, resamples=400, seed=1)
    monkeypatch.setattr(bootstrap, "CHUNK", 100)
    assert resampled_means(sums, counts, resamples=400, seed=1) == pytest.approx(whole, abs=1e-14)


def test_a_column_that_a_resample_misses_is_nan_and_left_out_of_the_interval():
    sums, counts = np.array([[1.0, 5.0], [2.0, 0.0]]), np.array([[1.0, 1.0], [1.0, 0.0]])
    means = resampled_means(sums, counts, resamples=400, seed=0)
    missed = np.isnan(means[:, 1])
    assert 0.15 < missed.mean() < 0.35  # both draws take the second cluster: 1/4
    low, high = percentile_interval(means, 0.95)
    assert (low[1], high[1]) == (5.0, 5.0)
    assert (low[0], high[0]) == (1.0, 2.0)


def test_absent_values_add_nothing():
    values = np.array([[1.0, np.nan], [2.0, 4.0]])
    assert cluster_sums(values, np.array([0, 0]), 2).tolist() == [[3.0, 4.0], [0.0, 0.0]]


def test_a_column_without_any_value_has_no_interval():
    low, high = percentile_interval(np.full((10, 1), np.nan), 0.9)
    assert np.isnan([low[0], high[0]]).all()
