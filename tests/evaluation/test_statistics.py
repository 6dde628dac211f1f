"""The bootstrap against normal theory, SciPy, and hand-made cases."""

import math

import numpy as np
import pytest
from scipy import stats

from longtake.evaluation.statistics import paired_bootstrap
from longtake.runtime.errors import UserError


def test_means_and_counts():
    result = paired_bootstrap([0.0, 1.0, 2.0], [1.0, 1.0, 4.0], ["a", "a", "b"], resamples=200)
    assert result.before == 1.0 and result.after == 2.0 and result.diff == 1.0
    assert (result.n, result.n_clusters, result.dropped) == (3, 2, 0)


def test_two_clusters_enumerate_exactly():
    # Resamples of {a: 0, b: 1} are aa, ab, ba, bb: means 0, 1/2, 1/2, 1.
    result = paired_bootstrap([0, 0], [0, 1], ["a", "b"], confidence=0.4, resamples=4000)
    assert (result.ci_low, result.ci_high) == (0.5, 0.5)
    result = paired_bootstrap([0, 0], [0, 1], ["a", "b"], confidence=0.9, resamples=4000)
    assert (result.ci_low, result.ci_high) == (0.0, 1.0)


def test_large_clusters_weigh_as_in_the_plain_mean():
    before, after = np.zeros(6), np.array([1.0, 1.0, 1.0, 1.0, 1.0, 7.0])
    result = paired_bootstrap(before, after, ["a"] * 5 + ["b"], confidence=0.4, resamples=4000)
    assert result.diff == 2.0 == result.ci_low == result.ci_high


def test_matches_scipy_without_clusters():
    rng = np.random.default_rng(5)
    before = rng.normal(size=60)
    after = before + rng.exponential(size=60)
    ours = paired_bootstrap(before, after, resamples=40_000, seed=1)
    theirs = stats.bootstrap(
        (after - before,), np.mean, n_resamples=40_000, method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    # Monte Carlo error of a 2.5 % quantile of 40,000 resamples is about 0.014 standard errors.
    tolerance = 0.06 * (after - before).std() / math.sqrt(60)
    assert ours.ci_low == pytest.approx(theirs.low, abs=tolerance)
    assert ours.ci_high == pytest.approx(theirs.high, abs=tolerance)


def clustered(rng, num_clusters, per_cluster, between, within):
    labels = np.repeat(np.arange(num_clusters), per_cluster)
    effect = rng.normal(scale=between, size=num_clusters)[labels]
    return effect + rng.normal(scale=within, size=len(labels)), labels


def test_width_follows_normal_theory():
    rng = np.random.default_rng(0)
    between, within, clusters, members = 1.0, 0.5, 400, 4
    diff, labels = clustered(rng, clusters, members, between, within)
    standard_error = math.sqrt((between**2 + within**2 / members) / clusters)
    result = paired_bootstrap(np.zeros_like(diff), diff, labels, resamples=4000)
    wanted = 2 * stats.norm.ppf(0.975) * standard_error
    assert result.ci_high - result.ci_low == pytest.approx(wanted, rel=0.12)
    naive = paired_bootstrap(np.zeros_like(diff), diff, resamples=4000)
    # Unclustered, the same data looks like 1600 independent pairs.
    wanted_naive = 2 * stats.norm.ppf(0.975) * math.sqrt((between**2 + within**2) / len(diff))
    assert naive.ci_high - naive.ci_low == pytest.approx(wanted_naive, rel=0.12)


def test_coverage_holds_with_clusters_and_fails_without():
    rng = np.random.default_rng(3)
    trials, covered, covered_naive = 300, 0, 0
    for trial in range(trials):
        diff, labels = clustered(rng, 40, 5, 1.0, 0.5)
        zeros = np.zeros_like(diff)
        result = paired_bootstrap(zeros, diff, labels, confidence=0.9, resamples=400, seed=trial)
        naive = paired_bootstrap(zeros, diff, confidence=0.9, resamples=400, seed=trial)
        covered += not result.excludes_zero
        covered_naive += not naive.excludes_zero
    # Binomial standard error at 0.9 is 0.017; the percentile interval is slightly too short.
    assert 0.84 < covered / trials < 0.95
    assert covered_naive / trials < 0.75


def test_missing_pairs_are_dropped_and_counted():
    before = [0.0, math.nan, 2.0, 3.0, 1.0]
    after = [1.0, 5.0, math.nan, 3.5, 2.0]
    labels = ["a", "b", "b", "c", "a"]
    result = paired_bootstrap(before, after, labels, resamples=300, seed=4)
    assert (result.n, result.n_clusters, result.dropped) == (3, 2, 2)
    clean = paired_bootstrap([0, 3, 1], [1, 3.5, 2], ["a", "c", "a"], resamples=300, seed=4)
    assert (result.diff, result.ci_low, result.ci_high) == (
        clean.diff, clean.ci_low, clean.ci_high,
    )  # fmt: skip


def test_seed_fixes_the_interval():
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=(2, 30))
    first, again, other = (paired_bootstrap(before, after, seed=s) for s in (1, 1, 2))
    assert first == again
    assert (first.ci_low, first.ci_high) != (other.ci_low, other.ci_high)


def test_chunks_do_not_change_the_result(monkeypatch):
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=(2, 50))
    whole = paired_bootstrap(before, after, resamples=1000)
    monkeypatch.setattr("longtake.evaluation.bootstrap.CHUNK", 333)
    assert paired_bootstrap(before, after, resamples=1000) == whole


def test_record_names_the_confidence():
    record = paired_bootstrap([0, 0, 0], [1, 2, 3], resamples=200).as_record()
    assert set(record) == {"before", "after", "diff", "ci95", "n", "n_clusters", "dropped"}
    assert record["ci95"][0] <= record["diff"] <= record["ci95"][1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired_bootstrap([0, 1], [1, 2], ["a", "a"]), "more prompts"),
        (lambda: paired_bootstrap([math.nan], [1.0]), "no complete pair"),
        (lambda: paired_bootstrap([], []), "no complete pair"),
        (lambda: paired_bootstrap([0, 1], [1.0]), "pair up"),
        (lambda: paired_bootstrap([0, 1], [1, 2], ["a"]), "labels"),
        (lambda: paired_bootstrap([0, math.inf], [1, 2]), "infinite"),
        (lambda: paired_bootstrap([0, 1], [1, 2], confidence=95), "confidence"),
        (lambda: paired_bootstrap([0, 1], [1, 2], resamples=1), "resamples"),
    ],
)
def test_degenerate_input_is_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()
