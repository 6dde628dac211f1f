"""Bradley-Terry with ties against the likelihood itself, known strengths, and unsolvable data."""

import itertools

import numpy as np
import pytest
from scipy.optimize import minimize

from longtake.evaluation.ranking import rank_models


def simulate(strengths, nu, per_pair, seed):
    rng = np.random.default_rng(seed)
    rows = []
    for a, b in itertools.combinations(strengths, 2):
        pa, pb = np.exp(strengths[a]), np.exp(strengths[b])
        tie = 2 * nu * np.sqrt(pa * pb)
        chances = np.array([pa, tie, pb]) / (pa + pb + tie)
        for i, outcome in enumerate(rng.choice([1, 0, -1], size=per_pair, p=chances)):
            first, second = (a, b) if i % 2 else (b, a)
            rows.append((first, second, outcome if i % 2 else -outcome, f"q{i}"))
    return tuple(map(list, zip(*rows, strict=True)))


def maximum_likelihood(first, second, outcome):
    names = sorted({*first, *second})
    index = {name: i for i, name in enumerate(names)}
    a, b = np.array([index[n] for n in first]), np.array([index[n] for n in second])
    y = np.array(outcome)

    def negative(x):
        s = x[:-1] - x[:-1].mean()
        tie = np.log(2) + x[-1] + (s[a] + s[b]) / 2
        total = np.logaddexp(np.logaddexp(s[a], s[b]), tie)
        return -np.sum(np.where(y > 0, s[a], np.where(y < 0, s[b], tie)) - total)

    found = minimize(negative, np.zeros(len(names) + 1), method="BFGS", options={"gtol": 1e-8}).x
    return dict(zip(names, found[:-1] - found[:-1].mean(), strict=True)), np.exp(found[-1])


@pytest.mark.parametrize("seed", range(2))
def test_equals_the_maximum_of_the_likelihood(seed):
    data = simulate({"A": 0.8, "B": 0.1, "C": -0.2, "D": -0.7}, 0.4, 40, seed)
    found = rank_models(*data, resamples=0)
    wanted, nu = maximum_likelihood(*data[:3])
    for strength in found.strengths:
        assert strength.log_strength == pytest.approx(wanted[strength.model], abs=2e-4)
    assert found.tie_parameter == pytest.approx(nu, rel=1e-3)
    assert found.n_pairs == 240 and all(s.n_pairs == 120 for s in found.strengths)


def test_published_counts_give_their_odds():
    outcome = [1] * 242 + [0] * 12 + [-1] * 246
    found = rank_models(["L"] * 500, ["P"] * 500, outcome, [str(i) for i in range(500)])
    by_model = {s.model: s for s in found.strengths}
    assert [s.model for s in found.strengths] == ["P", "L"]
    # Two models: the odds of the strengths are those of the wins.
    odds = by_model["L"].log_strength - by_model["P"].log_strength
    assert odds == pytest.approx(np.log(242 / 246), abs=1e-6)
    # nu follows from the share of ties; standard error of half the log odds: sqrt(1/242 + 1/246)/2.
    error = np.sqrt(1 / 242 + 1 / 246) / 2
    width = by_model["L"].ci_high - by_model["L"].ci_low
    assert width == pytest.approx(2 * 1.96 * error, rel=0.2)


def test_clusters_widen_the_interval():
    # Every answer five times over, as five pairs of one prompt.
    first, second, outcome, cluster = simulate({"A": 0.4, "B": 0.0}, 0.2, 60, 1)
    many = [[*column] * 5 for column in (first, second, outcome, cluster)]
    single = [str(i) for i in range(len(many[0]))]
    clustered = rank_models(*many).strengths[0]
    naive = rank_models(*many[:3], single).strengths[0]
    ratio = (clustered.ci_high - clustered.ci_low) / (naive.ci_high - naive.ci_low)
    assert ratio == pytest.approx(np.sqrt(5), rel=0.25)


@pytest.mark.parametrize(
    ("first", "second", "outcome"),
    [
        (["A", "A"], ["B", "B"], [1, 1]),  # A never loses
        (["A", "B", "C", "D"], ["B", "A", "D", "C"], [1, 1, 1, 1]),  # two islands
        (["A", "A"], ["B", "B"], [0, 0]),  # only ties: any nu will do
        (["A", "B", "A", "C"], ["B", "A", "C", "A"], [1, 1, 1, -1]),  # C never wins
    ],
)
def test_data_without_a_finite_solution_are_refused_with_a_reason(first, second, outcome):
    found = rank_models(first, second, outcome, list("wxyz")[: len(first)])
    assert found.strengths == () and np.isnan(found.tie_parameter)
    assert "no finite strengths" in found.reason


def test_a_tie_connects_models():
    found = rank_models(["A", "B", "C"], ["B", "A", "A"], [1, 1, 0], list("xyz"), resamples=0)
    assert {s.model for s in found.strengths} == {"A", "B", "C"}


def test_no_interval_where_resamples_fail():
    found = rank_models(["A"] * 6, ["B"] * 6, [1, 1, 1, 1, 1, -1], list("uvwxyz"))
    assert np.isfinite(found.strengths[0].log_strength)
    assert np.isnan(found.strengths[0].ci_low) and "resamples have no finite fit" in found.reason
