"""The bootstrap over prompts against closed forms."""

import math

import numpy as np
import pytest

from longtake.evaluation.vbench.bootstrap import (
    prompt_of,
    resampled_scores,
    spread,
    standard_error,
)
from longtake.evaluation.vbench.results import DimensionResults, VideoResult
from longtake.evaluation.vbench.suites import VBENCH1, VBENCH2


def results(name: str, values: dict[str, list[float]]) -> DimensionResults:
    """One dimension: values of the samples by prompt."""
    videos = {
        f"{prompt}-{i}.mp4": VideoResult(value=value)
        for prompt, samples in values.items()
        for i, value in enumerate(samples)
    }
    return DimensionResults(dimension=VBENCH2.dimensions[name], stated=None, videos=videos)


def drawn(name: str, prompts: int, samples: int, seed: int, tag: str = "p") -> DimensionResults:
    rng = np.random.default_rng(seed)
    return results(
        name, {f"{tag}{i}": [float(v) for v in rng.random(samples)] for i in range(prompts)}
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_dimension_has_the_standard_error_of_its_prompts(seed: int) -> None:
    model = {"Material": drawn("Material", 50, 3, seed)}
    found = resampled_scores(VBENCH2, [model], seed=seed)[0]["Material"]
    means = np.array(
        [[model["Material"].videos[f"p{i}-{k}.mp4"].value for k in range(3)] for i in range(50)]
    ).mean(1)
    assert found.mean() == pytest.approx(means.mean(), abs=3e-3)
    assert found.std() == pytest.approx(means.std() / math.sqrt(50), rel=0.03)


def test_samples_of_a_prompt_add_nothing_when_they_agree() -> None:
    values = [float(v) for v in np.random.default_rng(0).random(40)]
    one = {"Material": results("Material", {f"p{i}": [v] for i, v in enumerate(values)})}
    nine = {"Material": results("Material", {f"p{i}": [v] * 9 for i, v in enumerate(values)})}
    first, second = (
        resampled_scores(VBENCH2, [model])[0]["Material"].std() for model in (one, nine)
    )
    assert first == pytest.approx(second, rel=1e-9)


def test_shared_prompts_move_together() -> None:
    """A category of two dimensions on the same prompts with the same results: no averaging out."""
    same = {
        "Instance_Preservation": drawn("Instance_Preservation", 57, 3, 0),
        "Motion_Rationality": drawn("Motion_Rationality", 57, 3, 0),
    }
    apart = {**same, "Motion_Rationality": drawn("Motion_Rationality", 57, 3, 0, tag="q")}
    together = resampled_scores(VBENCH2, [same])[0]
    separate = resampled_scores(VBENCH2, [apart])[0]
    single = together["Motion_Rationality"].std()
    assert together["Commonsense"].std() == pytest.approx(single, rel=1e-6)
    assert separate["Commonsense"].std() == pytest.approx(single / math.sqrt(2), rel=0.05)


def test_few_prompts_inside_many_stay_few() -> None:
    """Ten prompts of one dimension among 1,000 of another are ten in every resample."""
    wide = drawn("Human_Anatomy", 300, 1, 1)
    ten = results("Human_Clothes", {f"p{i}": [float(i % 2)] for i in range(10)})
    found = resampled_scores(VBENCH2, [{"Human_Anatomy": wide, "Human_Clothes": ten}])[0]
    assert np.isfinite(found["Human_Clothes"]).all()
    assert np.allclose(found["Human_Clothes"] * 10, np.round(found["Human_Clothes"] * 10))
    assert found["Human_Clothes"].std() == pytest.approx(0.5 / math.sqrt(10), rel=0.03)


def test_two_models_share_their_resamples() -> None:
    model = {"Material": drawn("Material", 30, 3, 0)}
    videos = model["Material"].videos
    better = {
        "Material": DimensionResults(
            dimension=VBENCH2.dimensions["Material"],
            stated=None,
            videos={n: VideoResult(value=0.5 + 0.5 * v.value) for n, v in videos.items()},
        )
    }
    first, second = resampled_scores(VBENCH2, [model, better])
    assert np.allclose(second["Material"], 0.5 + 0.5 * first["Material"])
    alone = resampled_scores(VBENCH2, [model])[0]
    assert np.array_equal(alone["Material"], first["Material"])


def test_frames_weigh_and_units_divide() -> None:
    videos = {
        "p0-0.mp4": VideoResult(value=100.0),
        "p1-0.mp4": VideoResult(value=0.0),
    }
    dimension = VBENCH1.dimensions["imaging_quality"]
    model = {dimension.name: DimensionResults(dimension=dimension, stated=None, videos=videos)}
    found = resampled_scores(VBENCH1, [model])[0][dimension.name]
    assert set(np.unique(found)) == {0.0, 0.5, 1.0}
    heavy = {"p0-0.mp4": VideoResult(value=100.0, frames=3.0), "p1-0.mp4": videos["p1-0.mp4"]}
    model[dimension.name].videos = heavy
    found = resampled_scores(VBENCH1, [model])[0][dimension.name]
    assert set(np.unique(found)) == {0.0, 0.75, 1.0}


def test_one_prompt_has_no_interval() -> None:
    model = {"Material": results("Material", {"p": [0.0, 1.0, 1.0]})}
    assert spread(resampled_scores(VBENCH2, [model])[0]["Material"]) is None
    two = {"Material": results("Material", {"p": [1.0], "q": [1.0]})}
    found = spread(resampled_scores(VBENCH2, [two])[0]["Material"])
    assert found is not None and (found.low, found.high) == (1.0, 1.0)


def test_not_applicable_videos_are_not_drawn() -> None:
    model = {"Material": results("Material", {f"p{i}": [1.0, -1.0] for i in range(5)})}
    found = resampled_scores(VBENCH2, [model])[0]["Material"]
    assert np.array_equal(found, np.ones(len(found)))


def test_intervals_hold_what_they_promise() -> None:
    """Coverage of the 95 % interval of a mean over 60 prompts, 200 studies."""
    hits = 0
    for seed in range(200):
        model = {"Material": drawn("Material", 60, 2, 1000 + seed)}
        found = spread(resampled_scores(VBENCH2, [model], resamples=800, seed=seed)[0]["Material"])
        assert found is not None
        hits += found.low <= 0.5 <= found.high
    assert 0.91 <= hits / 200 <= 0.985


def test_prompts_are_told_from_names() -> None:
    assert prompt_of("a b -c.-12.mp4") == "a b -c."
    assert prompt_of("ends in a space -0.mp4") == "ends in a space "


def test_standard_error_of_one_dimension_is_the_textbook_one() -> None:
    model = {"Material": drawn("Material", 10, 1, 3)}
    values = np.array([video.value for video in model["Material"].videos.values()])
    samples = resampled_scores(VBENCH2, [model], resamples=40_000)[0]
    found = standard_error(VBENCH2, "Material", samples, {"Material": 10})
    assert found is not None
    assert found[0] == pytest.approx(values.std(ddof=1) / math.sqrt(10), rel=0.02)
    assert found[1] == pytest.approx(9)
    assert standard_error(VBENCH2, "Material", samples, {"Material": 1}) is None
    assert standard_error(VBENCH2, "Physics", samples, {"Material": 10}) is None


def test_degrees_of_freedom_follow_welch_and_satterthwaite() -> None:
    model = {
        "Instance_Preservation": drawn("Instance_Preservation", 8, 1, 1, tag="a"),
        "Motion_Rationality": drawn("Motion_Rationality", 20, 1, 2, tag="b"),
    }
    prompts = {"Instance_Preservation": 8, "Motion_Rationality": 20}
    samples = resampled_scores(VBENCH2, [model], resamples=40_000)[0]
    found = standard_error(VBENCH2, "Commonsense", samples, prompts)
    variances = [
        np.var([v.value for v in model[name].videos.values()], ddof=1) / prompts[name] / 4
        for name in prompts
    ]
    assert found is not None
    assert found[0] == pytest.approx(math.sqrt(sum(variances)), rel=0.03)
    expected = sum(variances) ** 2 / sum(
        v**2 / (n - 1) for v, n in zip(variances, prompts.values(), strict=True)
    )
    assert found[1] == pytest.approx(expected, rel=0.05)


def test_no_spread_is_an_error_of_zero() -> None:
    model = {"Material": results("Material", {f"p{i}": [1.0] for i in range(5)})}
    samples = resampled_scores(VBENCH2, [model])[0]
    assert standard_error(VBENCH2, "Material", samples, {"Material": 5}) == (0.0, math.inf)
