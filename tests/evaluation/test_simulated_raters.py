"""The simulation itself: its truth, its raters, its files."""

from pathlib import Path

import numpy as np
import pytest

from longtake.evaluation.gsb_plan import plan_pairs
from longtake.evaluation.mos_protocol import ProtocolConfig
from longtake.evaluation.records import read_log
from longtake.evaluation.samples import SampleList, read_samples
from longtake.evaluation.simulated_raters import (
    SimulatedRater,
    SimulatedStudy,
    latent_quality,
    parse_qualities,
    rater_pool,
    simulate_answers,
    simulate_ratings,
    simulated_samples,
    write_study,
)
from longtake.runtime.errors import UserError


def make(raters=None, quality=(3.6, 3.0), **fields):
    names = ("A", "B")
    return SimulatedStudy(
        quality={m: {"overall": q} for m, q in zip(names, quality, strict=True)},
        raters=raters or rater_pool(6),
        **({"num_prompts": 300} | fields),
    )


def test_latent_quality_has_the_stated_mean_and_spread():
    study = make(num_prompts=4000, prompt_sd=0.5, video_sd=0.6)
    quality = latent_quality(study, 0)
    values = np.array([quality[s.sample, "overall"] for s in simulated_samples(study)])
    by_model = values.reshape(4000, 2)
    assert by_model.mean(axis=0) == pytest.approx([3.6, 3.0], abs=0.05)
    assert by_model.std(axis=0) == pytest.approx(np.hypot(0.5, 0.6) * np.ones(2), rel=0.05)
    # Prompts are shared by the models, videos are not.
    assert np.cov(by_model.T)[0, 1] == pytest.approx(0.25, rel=0.15)


def test_ratings_follow_bias_noise_and_constants():
    raters = (
        SimulatedRater(name="kind", bias=1.0, noise=0.0),
        SimulatedRater(name="strict", bias=-1.0, noise=0.0),
        SimulatedRater(name="three", constant=3),
    )
    rule = ProtocolConfig(first_raters=3, extra_raters=0)
    ratings = simulate_ratings(make(raters), rule)
    assert len(ratings) == 3 * 600
    quality = latent_quality(make(raters), 0)
    for rating in ratings:
        q = quality[rating.sample, "overall"]
        shift = {"kind": 1.0, "strict": -1.0}.get(rating.rater)
        wanted = 3 if shift is None else min(max(round(q + shift), 1), 5)
        assert rating.score == wanted


def test_disputed_videos_get_two_more_raters_and_the_seed_fixes_all():
    study = make(num_prompts=60)
    ratings = simulate_ratings(study, seed=5)
    assert simulate_ratings(study, seed=5) == ratings
    assert simulate_ratings(study, seed=6) != ratings
    scores = {}
    for rating in ratings:
        scores.setdefault(rating.sample, []).append(rating.score)
    assert {len(given) for given in scores.values()} == {3, 5}
    for given in scores.values():
        assert (len(given) == 5) == (max(given[:3]) - min(given[:3]) >= 2)


def test_too_small_a_pool_is_refused():
    with pytest.raises(UserError, match="too few simulated raters"):
        simulate_ratings(make(rater_pool(4)))


def test_answers_prefer_the_better_video_and_the_left_side():
    study = make((SimulatedRater(name="r", noise=0.0, left_bias=0.3, tie_threshold=0.5),))
    listed = SampleList(samples=tuple(simulated_samples(study)), folder=Path())
    pairs, _ = plan_pairs(listed)
    quality = latent_quality(study, 2)
    for pair, answer in zip(pairs, simulate_answers(study, pairs, seed=2), strict=True):
        seen = quality[pair.left, "overall"] - quality[pair.right, "overall"] + 0.3
        assert answer.score == (0 if abs(seen) <= 0.5 else np.sign(seen))
        assert answer.sample == pair.pair


def test_raters_of_a_pair_differ():
    study = make()
    listed = SampleList(samples=tuple(simulated_samples(study)), folder=Path())
    pairs, _ = plan_pairs(listed)
    answers = simulate_answers(study, pairs, raters_per_pair=3)
    assert len({(a.sample, a.rater) for a in answers}) == len(answers) == 900


def test_a_study_on_disk_is_blind(tmp_path):
    listed, log = write_study(make(num_prompts=5), tmp_path)
    ratings, findings = read_log(log)
    assert findings == () and all(r.model == r.prompt == "" for r in ratings)
    assert {r.sample for r in ratings} == set(read_samples(listed).by_id)
    with pytest.raises(UserError, match="holds ratings"):
        write_study(make(num_prompts=5), tmp_path)


@pytest.mark.parametrize("texts", [["A"], ["A=6", "B=3"], ["A=x", "B=3"], ["A=3"], ["=3", "B=3"]])
def test_wrong_models_are_refused(texts):
    with pytest.raises(UserError):
        parse_qualities(texts, ("overall",))


def test_models_are_read():
    assert parse_qualities(["A=3.5", "B b=2"], ("x", "y")) == {
        "A": {"x": 3.5, "y": 3.5}, "B b": {"x": 2.0, "y": 2.0},
    }  # fmt: skip
