"""Resampling and sign flips against explicit loops, closed forms, SciPy and their stated level."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from longtake.runtime import statistics
from longtake.runtime.errors import UserError
from longtake.runtime.statistics import (
    check_resampling,
    cluster_sums,
    holm,
    paired_bootstrap,
    percentile_interval,
    resampled,
    resampled_means,
    sign_flip_test,
)


def drawn_counts(num_clusters, resamples, seed, strata=None):
    return resampled(lambda n: n, num_clusters, resamples=resamples, seed=seed, strata=strata)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_means_equal_those_of_the_drawn_values(seed):
    # The reference: the values of every drawn cluster written out, and averaged.
    rng = np.random.default_rng(seed)
    cluster, values = rng.integers(0, 7, size=40), rng.normal(size=40)
    sums = cluster_sums(values[:, None], cluster, 7)
    counts = cluster_sums(np.ones((40, 1)), cluster, 7)
    means = resampled_means(sums, counts, resamples=120, seed=seed)[:, 0]
    for mean, row in zip(means, drawn_counts(7, 120, seed).astype(int), strict=True):
        written_out = [values[cluster == c] for c in np.repeat(np.arange(7), row)]
        assert mean == pytest.approx(np.concatenate(written_out).mean(), abs=1e-12)


def test_every_resample_draws_as_many_clusters_as_there_are():
    drawn = drawn_counts(13, 500, 0)
    assert drawn.shape == (500, 13) and (drawn.sum(axis=1) == 13).all()
    # Multinomial: variance of a count is (C - 1) / C.
    assert drawn.var() == pytest.approx(12 / 13, rel=0.1)


def test_strata_keep_their_size():
    strata = np.array([0, 1, 0, 2, 1, 0])
    drawn = drawn_counts(6, 300, 0, strata)
    for label, size in ((0, 3), (1, 2), (2, 1)):
        assert (drawn[:, strata == label].sum(axis=1) == size).all()
    assert drawn[:, 0].std() > 0 and drawn[:, 1].std() > 0
    assert (drawn_counts(2, 10, 0, np.array([0, 1])) == 1).all()


def test_columns_share_the_draws():
    sums = np.random.default_rng(3).normal(size=(20, 1))
    both = resampled_means(np.hstack([sums, sums + 2.0]), np.ones((20, 2)), resamples=200, seed=4)
    assert both[:, 1] - both[:, 0] == pytest.approx(np.full(200, 2.0))


def test_chunks_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    sums, counts = rng.normal(size=(30, 3)), np.ones((30, 3))

    def results():
        means = resampled_means(sums, counts, resamples=400, seed=1)
        return means, sign_flip_test(sums, flips=1000)

    whole = results()
    monkeypatch.setattr(statistics, "CHUNK", 330)
    parts = results()
    assert parts[0] == pytest.approx(whole[0], abs=1e-14)
    assert parts[1] == pytest.approx(whole[1], abs=0.05)  # signs are drawn in other rows


def test_a_column_that_a_resample_misses_is_nan_and_left_out_of_the_interval():
    sums, counts = np.array([[1.0, 5.0], [2.0, 0.0]]), np.array([[1.0, 1.0], [1.0, 0.0]])
    means = resampled_means(sums, counts, resamples=400, seed=0)
    assert 0.15 < np.isnan(means[:, 1]).mean() < 0.35  # both draws take the second cluster: 1/4
    low, high = percentile_interval(means, 0.95)
    assert (low.tolist(), high.tolist()) == ([1.0, 5.0], [2.0, 5.0])
    low, high = percentile_interval(np.full((10, 1), np.nan), 0.9)
    assert np.isnan([low[0], high[0]]).all()


def test_two_clusters_enumerate_exactly():
    # Resamples of {a: 0, b: 1} are aa, ab, ba, bb: means 0, 1/2, 1/2, 1.
    result = paired_bootstrap([0, 0], [0, 1], ["a", "b"], confidence=0.4, resamples=4000)
    assert (result.ci_low, result.ci_high) == (0.5, 0.5)
    result = paired_bootstrap([0, 0], [0, 1], ["a", "b"], confidence=0.9, resamples=4000)
    assert (result.ci_low, result.ci_high) == (0.0, 1.0)


def test_large_clusters_weigh_as_in_the_plain_mean():
    after = [1.0, 1.0, 1.0, 1.0, 1.0, 7.0]
    result = paired_bootstrap(np.zeros(6), after, ["a"] * 5 + ["b"], confidence=0.4)
    assert result.diff == 2.0 == result.ci_low == result.ci_high
    assert (result.before, result.after, result.n_clusters) == (0.0, 2.0, 2)


def clustered(rng, num_clusters, per_cluster, between, within):
    labels = np.repeat(np.arange(num_clusters), per_cluster)
    effect = rng.normal(scale=between, size=num_clusters)[labels]
    return effect + rng.normal(scale=within, size=len(labels)), labels


def test_width_follows_normal_theory():
    between, within, clusters, members = 1.0, 0.5, 400, 4
    diff, labels = clustered(np.random.default_rng(0), clusters, members, between, within)
    for label, variance in (
        (labels, (between**2 + within**2 / members) / clusters),
        (None, (between**2 + within**2) / len(diff)),  # taken for 1,600 independent pairs
    ):
        result = paired_bootstrap(np.zeros_like(diff), diff, label, resamples=4000)
        width = 2 * stats.norm.ppf(0.975) * math.sqrt(variance)
        assert result.ci_high - result.ci_low == pytest.approx(width, rel=0.12)


def test_coverage_holds_with_clusters_and_fails_without():
    rng = np.random.default_rng(3)
    trials, covered, covered_naive = 300, 0, 0
    for trial in range(trials):
        diff, labels = clustered(rng, 40, 5, 1.0, 0.5)
        zeros = np.zeros_like(diff)
        settings = {"confidence": 0.9, "resamples": 400, "seed": trial}
        covered += not paired_bootstrap(zeros, diff, labels, **settings).excludes_zero
        covered_naive += not paired_bootstrap(zeros, diff, **settings).excludes_zero
    # Binomial standard error at 0.9 is 0.017; the percentile interval is slightly too short.
    assert 0.84 < covered / trials < 0.95
    assert covered_naive / trials < 0.75


def test_missing_pairs_are_dropped_and_counted():
    before, after = [0.0, math.nan, 2.0, 3.0, 1.0], [1.0, 5.0, math.nan, 3.5, 2.0]
    result = paired_bootstrap(before, after, ["a", "b", "b", "c", "a"], resamples=300, seed=4)
    assert (result.n, result.n_clusters, result.dropped) == (3, 2, 2)
    clean = paired_bootstrap([0, 3, 1], [1, 3.5, 2], ["a", "c", "a"], resamples=300, seed=4)
    assert (result.diff, result.ci_low) == (clean.diff, clean.ci_low)
    record = result.as_record()
    assert set(record) == {"before", "after", "diff", "ci95", "n", "n_clusters", "dropped"}


@pytest.mark.parametrize(
    ("before", "after", "clusters", "diff"),
    [([0, 1], [1, 3], ["a", "a"], 1.5), ([math.nan], [1.0], None, math.nan)],
)  # fmt: skip
def test_without_two_clusters_there_is_no_interval(before, after, clusters, diff):
    result = paired_bootstrap(before, after, clusters)
    assert result.diff == pytest.approx(diff, nan_ok=True)
    assert math.isnan(result.ci_low) and math.isnan(result.ci_high) and not result.excludes_zero


@pytest.mark.parametrize(("confidence", "resamples"), [(95, 1000), (0.0, 1000), (0.95, 99)])
def test_settings_out_of_range_are_refused(confidence, resamples):
    with pytest.raises(UserError):
        check_resampling(confidence, resamples)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("clusters", [2, 5, 9])
def test_few_clusters_are_enumerated(seed, clusters):
    sums = np.random.default_rng(seed).normal(size=clusters)
    signs = np.array(list(itertools.product((-1, 1), repeat=clusters)))
    exact = (np.abs(signs @ sums) >= abs(sums.sum()) - 1e-12).mean()
    assert sign_flip_test(sums[:, None])[0] == pytest.approx(exact)


def test_many_clusters_agree_with_scipy():
    diff = np.random.default_rng(0).normal(0.25, 1.0, size=60)
    theirs = stats.permutation_test(
        (diff, np.zeros(60)), lambda a, b, axis: (a - b).mean(axis), permutation_type="samples",
        vectorized=True, n_resamples=20_000, rng=np.random.default_rng(1),
    ).pvalue  # fmt: skip
    assert sign_flip_test(diff[:, None], flips=20_000)[0] == pytest.approx(theirs, abs=0.012)


def test_one_pair_per_cluster_is_the_sign_test():
    sums = np.array([1.0] * 30 + [-1.0] * 15 + [0.0] * 20)
    exact = stats.binomtest(30, 45).pvalue
    assert sign_flip_test(sums[:, None], flips=40_000)[0] == pytest.approx(exact, abs=0.005)


@pytest.mark.parametrize("clusters", [6, 40])
def test_equal_models_are_called_different_at_the_stated_rate(clusters):
    # 4,000 studies at once, with differences far from normal and of unequal size.
    rng = np.random.default_rng(clusters)
    sums = rng.exponential(size=(clusters, 1)) * rng.standard_t(3, size=(clusters, 4000))
    rate = (sign_flip_test(sums, flips=2000) <= 0.05).mean()
    assert rate <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 4000)
    assert rate > 0.02  # a test that never fires would pass the line above


def test_p_is_never_zero_and_one_without_differences():
    sums = np.stack([np.ones(50), np.zeros(50)], axis=1)
    assert sign_flip_test(sums, flips=500).tolist() == [pytest.approx(1 / 501), 1.0]
    assert sign_flip_test(np.ones((1, 2))).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("sign", [1, -1])
def test_rounding_does_not_hide_equal_patterns(sign):
    # 0.1 + 0.2 - 0.3 is not 0 in floating point; all patterns of this set tie in pairs.
    assert sign_flip_test(sign * np.array([[0.1], [0.2], [0.3]]))[0] == pytest.approx(0.25)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []
    assert holm([0.02, np.nan, 0.5]) == pytest.approx([0.04, np.nan, 0.5], nan_ok=True)


@pytest.mark.parametrize("seed", range(3))
def test_holm_rejects_what_the_step_down_procedure_rejects(seed):
    p = np.random.default_rng(seed).beta(0.3, 2.0, size=12)
    rejected = set()
    for rank, index in enumerate(np.argsort(p)):
        if p[index] > 0.05 / (12 - rank):
            break
        rejected.add(int(index))
    assert set(np.flatnonzero(holm(p) <= 0.05).tolist()) == rejected
