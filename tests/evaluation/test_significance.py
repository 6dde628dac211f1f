"""Sign flips, Holm and groups of ties against brute force, SciPy and their stated level."""

import itertools

import numpy as np
import pytest
from scipy import stats

from longtake.evaluation import significance
from longtake.evaluation.significance import holm, sign_flip_test, tie_groups


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("clusters", [2, 5, 9])
def test_few_clusters_are_enumerated(seed, clusters):
    sums = np.random.default_rng(seed).normal(size=clusters)
    signs = np.array(list(itertools.product((-1, 1), repeat=clusters)))
    wanted = (np.abs(signs @ sums) >= abs(sums.sum()) - 1e-12).mean()
    assert sign_flip_test(sums[:, None])[0] == pytest.approx(wanted)


def test_many_clusters_agree_with_scipy():
    diff = np.random.default_rng(0).normal(0.25, 1.0, size=60)
    theirs = stats.permutation_test(
        (diff, np.zeros(60)), lambda a, b, axis: (a - b).mean(axis), permutation_type="samples",
        vectorized=True, n_resamples=20_000, rng=np.random.default_rng(1),
    ).pvalue  # fmt: skip
    ours = sign_flip_test(diff[:, None], flips=20_000)[0]
    assert ours == pytest.approx(theirs, abs=0.012)


def test_one_pair_per_cluster_is_the_sign_test():
    sums = np.array([1.0] * 30 + [-1.0] * 15 + [0.0] * 20)
    exact = stats.binomtest(30, 45).pvalue
    assert sign_flip_test(sums[:, None], flips=40_000)[0] == pytest.approx(exact, abs=0.005)


@pytest.mark.parametrize("clusters", [6, 40])
def test_equal_models_are_called_different_at_the_stated_rate(clusters):
    # 4,000 studies at once, with differences far from normal and of unequal size.
    rng = np.random.default_rng(clusters)
    scale = rng.exponential(size=(clusters, 1))
    sums = scale * rng.standard_t(3, size=(clusters, 4000))
    rate = (sign_flip_test(sums, flips=2000) <= 0.05).mean()
    assert rate <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 4000)
    assert rate > 0.02  # a test that never fires would pass the line above


def test_p_is_never_zero_and_one_without_differences():
    sums = np.stack([np.ones(50), np.zeros(50)], axis=1)
    assert sign_flip_test(sums, flips=500).tolist() == [pytest.approx(1 / 501), 1.0]


def test_rounding_does_not_hide_equal_patterns():
    # 0.1 + 0.2 - 0.3 is not 0 in floating point; all patterns of this set tie in pairs.
    sums = np.array([0.1, 0.2, 0.3])
    assert sign_flip_test(sums[:, None])[0] == pytest.approx(0.25)
    assert sign_flip_test(-sums[:, None])[0] == pytest.approx(0.25)


def test_chunks_change_nothing(monkeypatch):
    sums = np.random.default_rng(0).normal(size=(30, 2))
    whole = sign_flip_test(sums, flips=1000)
    monkeypatch.setattr(significance, "CHUNK", 320)  # ten rows at a time
    assert sign_flip_test(sums, flips=1000) == pytest.approx(whole, abs=0.05)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []


@pytest.mark.parametrize("seed", range(5))
def test_holm_rejects_what_the_step_down_procedure_rejects(seed):
    p = np.random.default_rng(seed).beta(0.3, 2.0, size=12)
    rejected = set()
    for rank, index in enumerate(np.argsort(p)):
        if p[index] > 0.05 / (12 - rank):
            break
        rejected.add(int(index))
    assert set(np.flatnonzero(holm(p) <= 0.05).tolist()) == rejected


def test_holm_skips_missing_p_values():
    assert holm([0.02, np.nan, 0.5]) == pytest.approx([0.04, np.nan, 0.5], nan_ok=True)


def maximal_sets(models, different):
    compatible = [
        set(group)
        for size in range(1, len(models) + 1)
        for group in itertools.combinations(models, size)
        if not any(frozenset(pair) in different for pair in itertools.combinations(group, 2))
    ]
    return {frozenset(g) for g in compatible if not any(g < other for other in compatible)}


@pytest.mark.parametrize("seed", range(8))
def test_tie_groups_are_the_maximal_sets(seed):
    rng = np.random.default_rng(seed)
    models = [f"m{i}" for i in range(6)]
    pairs = [frozenset(pair) for pair in itertools.combinations(models, 2)]
    different = {pair for pair in pairs if rng.random() < 0.4}
    found = tie_groups(models, different)
    assert {frozenset(group) for group in found} == maximal_sets(models, different)
    assert all(list(group) == sorted(group) for group in found)
    assert [models.index(group[0]) for group in found] == sorted(
        models.index(group[0]) for group in found
    )


def test_tie_groups_overlap():
    assert tie_groups(["a", "b", "c"], {frozenset("ac")}) == (("a", "b"), ("b", "c"))
    assert tie_groups(["a"], set()) == (("a",),)
    assert tie_groups([], set()) == ()
