"""Two to one: the formula, its interval, and every reason to refuse."""

import numpy as np
import pandas as pd
import pytest

from longtake.evaluation.model_comparison import ComparisonSettings
from longtake.evaluation.mos_merge import MergeWeights, check_judge, merge_scores
from longtake.evaluation.records import Rating
from longtake.runtime.errors import ConfigError, UserError

SETTINGS = ComparisonSettings(resamples=4000)


def scores(model, dimension, mean, sd, n, prefix, seed=0):
    noise = np.random.default_rng(seed).normal(size=n)
    noise = (noise - noise.mean()) / noise.std()
    prompts = [f"{prefix}{i}" for i in range(n)]
    return pd.DataFrame(
        {
            "model": model, "dimension": dimension, "prompt": prompts, "cluster": prompts,
            "sample": prompts, "score": mean + sd * noise,
        }
    )  # fmt: skip


def merge(human, automatic, models=("A",), dimensions=("ta",), weights=None):
    return merge_scores(human, automatic, models, dimensions, weights or MergeWeights(), SETTINGS)


def test_formula_and_interval():
    human, automatic = (
        scores("A", "ta", 3.6, 0.8, 500, "h"),
        scores("A", "ta", 3.0, 0.6, 728, "a", 1),
    )
    (cell,), findings = merge(human, automatic)
    assert cell.merged == pytest.approx((2 * 3.6 + 3.0) / 3)
    # Independent prompts: the variances of the weighted means add up.
    error = np.sqrt((2 / 3) ** 2 * 0.8**2 / 500 + (1 / 3) ** 2 * 0.6**2 / 728)
    assert cell.ci_high - cell.ci_low == pytest.approx(2 * 1.96 * error, rel=0.06)
    assert (cell.n_human, cell.n_automatic, cell.refused, findings) == (500, 728, "", ())


def test_the_same_size_and_seed_do_not_tie_the_two_sources_together():
    # Identical noise in both: with shared draws the errors would add up linearly.
    human, automatic = scores("A", "ta", 3.6, 0.8, 400, "h"), scores("A", "ta", 3.0, 0.8, 400, "a")
    (cell,), _ = merge(human, automatic)
    error = np.sqrt((2 / 3) ** 2 + (1 / 3) ** 2) * 0.8 / 20
    assert cell.ci_high - cell.ci_low == pytest.approx(2 * 1.96 * error, rel=0.07)


def test_other_weights():
    human, automatic = scores("A", "ta", 4.0, 0.5, 30, "h"), scores("A", "ta", 2.0, 0.5, 30, "a")
    (cell,), _ = merge(human, automatic, weights=MergeWeights(human=1, automatic=3))
    assert cell.merged == pytest.approx(2.5)
    for wrong in ({"human": 0}, {"automatic": -1}, {"human": float("nan")}):
        with pytest.raises(ConfigError):
            MergeWeights(**wrong)


def test_refusals_have_reasons_and_no_number():
    human = pd.concat([scores(m, d, 3.5, 0.5, 20, "h") for m in "AB" for d in ("ta", "overall")])
    automatic = pd.concat(
        [scores("A", "ta", 3.0, 0.5, 20, "a"), scores("C", "ta", 3.0, 0.5, 20, "a")]
    )
    cells, findings = merge(human, automatic, ("A", "B", "D"), ("ta", "overall"))
    reasons = {(c.dimension, c.model): c.refused for c in cells}
    assert reasons == {
        ("ta", "A"): "",
        ("ta", "B"): "the judge has not scored this model",
        ("ta", "D"): "no human ratings",
        ("overall", "A"): "no judge for this dimension",
        ("overall", "B"): "no judge for this dimension",
        ("overall", "D"): "no human ratings",
    }
    for cell in cells:
        assert np.isnan([cell.merged, cell.ci_low, cell.ci_high]).any() == bool(cell.refused)
    assert {f.kind: f.items for f in findings} == {"model that only the judge scored": ("C",)}


def test_common_prompts_are_reported():
    human, automatic = scores("A", "ta", 3.6, 0.8, 4, "p"), scores("A", "ta", 3.0, 0.6, 3, "p")
    _, (finding,) = merge(human, automatic)
    assert finding.items == ("p0", "p1", "p2")


def judged(**fields):
    named = {"rater": "judge@1", "kind": "automatic", "provenance": {"calibration": "iso"}}
    return Rating(sample="s", dimension="ta", score=3.2, **(named | fields))


def test_one_calibrated_judge_is_accepted():
    assert check_judge([judged(), judged()]) == "judge@1"


@pytest.mark.parametrize(
    ("ratings", "message"),
    [
        ([judged(), judged(provenance={})], "not calibrated"),
        ([judged(), judged(rater="judge@2")], "one judge"),
        ([judged(), judged(kind="human", rater="ann")], "human ratings"),
        ([], "one judge"),
    ],
)
def test_other_automatic_scores_are_refused(ratings, message):
    with pytest.raises(UserError, match=message):
        check_judge(ratings)
