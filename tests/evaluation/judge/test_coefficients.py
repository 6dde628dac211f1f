"""Correlations against scipy, pair counting by brute force, intervals against published values."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from longtake.evaluation.judge.coefficients import (
    COEFFICIENTS,
    kendall,
    pearson,
    random_points_interval,
    spearman,
)
from longtake.evaluation.judge.pair_agreement import Pairs, accuracies, choose_pairs, label_pairs
from longtake.rewards.losses import accuracy_with_ties, accuracy_without_ties


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rounding", [None, 0])  # without and with many ties
@pytest.mark.parametrize("n", [5, 70, 400])
def test_correlations_equal_scipy(seed, rounding, n):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    y = 0.6 * x + rng.normal(size=n)
    if rounding is not None:
        x, y = x.round(rounding), y.round(rounding)
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert kendall(x, y) == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-12)


def test_tau_b_counted_by_hand():
    # Pairs: (1,1)-(1,2) tied in x; (1,1)-(2,2), (1,1)-(3,1): concordant, tied in y;
    # (1,2)-(2,2) tied in y; (1,2)-(3,1), (2,2)-(3,1) discordant. C=1, D=2.
    x, y = np.array([1.0, 1.0, 2.0, 3.0]), np.array([1.0, 2.0, 2.0, 1.0])
    assert kendall(x, y) == pytest.approx((1 - 2) / math.sqrt((6 - 1) * (6 - 2)))


def test_undefined_is_nan():
    x = np.arange(5.0)
    for name in ("plcc", "srcc", "krcc"):
        assert math.isnan(COEFFICIENTS[name](x, np.ones(5)))
        assert math.isnan(COEFFICIENTS[name](x[:1], x[:1]))
    assert COEFFICIENTS["rmse"](x, x + 2) == pytest.approx(2)


@pytest.mark.parametrize(
    ("n", "low", "high"),
    [(4, -0.35, 0.998), (8, 0.61, 0.99), (100, 0.88, 0.95), (500, 0.905, 0.932)],
)
def test_interval_over_points_gives_the_known_values(n, low, high):
    found = random_points_interval("plcc", 0.92, n)
    assert found == pytest.approx((low, high), abs=0.006)


def test_interval_over_points_covers_the_truth_in_simulation():
    rng = np.random.default_rng(0)
    hits = {"plcc": 0, "srcc": 0, "krcc": 0}
    rho, n, trials = 0.7, 25, 400
    truth = {
        "plcc": rho,
        "srcc": 6 / math.pi * math.asin(rho / 2),
        "krcc": 2 / math.pi * math.asin(rho),
    }
    for _ in range(trials):
        x = rng.normal(size=n)
        y = rho * x + math.sqrt(1 - rho**2) * rng.normal(size=n)
        for name in hits:
            low, high = random_points_interval(name, COEFFICIENTS[name](x, y), n)
            hits[name] += low <= truth[name] <= high
    assert all(0.91 <= count / trials <= 0.985 for count in hits.values()), hits


def test_interval_needs_points():
    assert all(math.isnan(end) for end in random_points_interval("plcc", 0.9, 3))
    assert all(math.isnan(end) for end in random_points_interval("krcc", 0.9, 4))
    assert all(math.isnan(end) for end in random_points_interval("rmse", 0.9, 50))
    assert all(math.isnan(end) for end in random_points_interval("plcc", math.nan, 50))


@pytest.mark.parametrize("seed", range(5))
def test_accuracies_equal_those_of_the_reward_training(seed):
    rng = np.random.default_rng(seed)
    margins = rng.integers(-6, 7, size=60) / 2.0  # many margins of one size
    labels = rng.integers(-1, 2, size=60)
    plain, ties = accuracies(Pairs(margins=margins, labels=labels), np.ones((1, 60)))
    given = torch.from_numpy(margins), torch.from_numpy(labels)
    assert plain[0] == pytest.approx(accuracy_without_ties(*given).value)
    assert ties[0] == pytest.approx(accuracy_with_ties(*given).value)


@pytest.mark.parametrize("seed", range(3))
def test_weights_are_repetitions(seed):
    rng = np.random.default_rng(seed)
    margins, labels = rng.normal(size=30).round(1), rng.integers(-1, 2, size=30)
    weights = rng.integers(0, 4, size=(5, 30)).astype(float)
    plain, ties = accuracies(Pairs(margins=margins, labels=labels), weights)
    for row, weight in enumerate(weights.astype(int)):
        m, t = torch.tensor(margins.repeat(weight)), torch.tensor(labels.repeat(weight))
        assert plain[row] == pytest.approx(accuracy_without_ties(m, t).value)
        assert ties[row] == pytest.approx(accuracy_with_ties(m, t).value)


def test_no_pair_is_nan():
    none = Pairs(margins=np.zeros(0), labels=np.zeros(0, dtype=np.int64))
    assert all(np.isnan(column).all() for column in accuracies(none, np.ones((2, 0))))


def test_ties_of_the_raters():
    human, judge = np.array([3.0, 3 + 1 / 3, 4.0]), np.array([1.0, 2.0, 3.0])
    pairs = label_pairs(human, judge, np.array([0, 1, 0]), np.array([1, 2, 2]), 1 / 3)
    assert pairs.labels.tolist() == [0, -1, -1] and pairs.decided == 2
    assert pairs.margins.tolist() == [-1, -1, -2]


def test_chosen_pairs_are_different_pairs_of_different_points():
    rng = np.random.default_rng(0)
    first, second = choose_pairs(9, 100, rng)
    assert len(first) == 36 and (first < second).all()
    first, second = choose_pairs(4000, 5000, rng)
    assert len(set(zip(first.tolist(), second.tolist(), strict=True))) == 5000
    assert (first >= 0).all() and (first < second).all() and (second < 4000).all()
    # Every code is one pair: all of them, from the formula.
    first, second = choose_pairs(40, 779, rng)
    assert len(set(zip(first.tolist(), second.tolist(), strict=True))) == 779
