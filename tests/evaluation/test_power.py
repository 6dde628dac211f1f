"""The planning numbers, against published ones and against simulation."""

import numpy as np
import pytest
from scipy import stats

from longtake.evaluation.power import (
    PowerSettings,
    correlation_interval,
    detectable_difference,
    detectable_win_share,
    pairs_for_win_share,
    power_statement,
    prompts_for_difference,
)
from longtake.runtime.errors import UserError


@pytest.mark.parametrize(("share", "pairs"), [(0.55, 783), (0.56, 543), (0.57, 399), (0.60, 194)])
def test_pairs_for_a_win_share(share, pairs):
    assert pairs_for_win_share(share) == pairs


@pytest.mark.parametrize(("pairs", "share"), [(500, "56.2"), (300, "58.1")])
def test_the_win_share_that_pairs_detect(pairs, share):
    assert f"{100 * detectable_win_share(pairs):.1f}" == share
    assert abs(pairs_for_win_share(detectable_win_share(pairs)) - pairs) <= 1


@pytest.mark.parametrize(("sd", "diff"), [(0.8, "0.10"), (1.0, "0.125")])
def test_the_difference_that_500_prompts_detect(sd, diff):
    found = detectable_difference(500, PowerSettings(sd=sd))
    assert f"{found:.{len(diff) - 2}f}" == diff
    assert prompts_for_difference(found, PowerSettings(sd=sd)) in (500, 501)


@pytest.mark.parametrize(
    ("n", "low", "high"),
    [(4, "-0.35", "0.998"), (8, "0.61", "0.99"), (100, "0.88", "0.95"), (500, "0.905", "0.932")],
)
def test_interval_of_a_correlation_of_092(n, low, high):
    found = correlation_interval(0.92, n)
    for value, text in zip(found, (low, high), strict=True):
        digits = len(text.split(".")[1])
        assert f"{value:.{digits}f}" == text


def test_the_promised_power_is_kept_in_simulation():
    rng = np.random.default_rng(0)
    n = pairs_for_win_share(0.60)
    wins = rng.binomial(n, 0.60, size=4000)
    p = np.array([stats.binomtest(int(w), n).pvalue for w in np.unique(wins)])
    hits = np.isin(wins, np.unique(wins)[p < 0.05]).mean()
    assert hits == pytest.approx(0.8, abs=0.04)
    n = prompts_for_difference(0.2)
    diffs = rng.normal(0.2, 0.8, size=(2000, n))
    found = stats.ttest_1samp(diffs, 0.0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.035)


@pytest.mark.parametrize(
    ("kind", "question"),
    [
        ("mos", {}),
        ("correlation", {"n": 3, "effect": 0.9}),
        ("gsb", {"effect": 0.5}),
        ("mos", {"effect": 0.1, "sd": -1.0}),
    ],
)
def test_questions_without_an_answer_are_refused(kind, question):
    question = dict(question)
    with pytest.raises(UserError):
        size = {name: question.pop(name, None) for name in ("n", "effect")}
        power_statement(kind, **size, settings=PowerSettings(**question))
