"""Simulated annotators against their closed form."""

import itertools
import math

import pytest
import torch

from longtake.runtime.errors import UserError
from longtake.sandbox.annotators import Annotator, colourfulness, label_statistics
from longtake.sandbox.facts import COLOURS

DRAWS = 20_000


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def shares(annotator, difference, seed=0):
    words = annotator.judge(torch.full((DRAWS,), difference), rng(seed))
    return torch.tensor([words.count(word) / DRAWS for word in ("A", "same", "B")])


@pytest.mark.parametrize("difference", [-0.3, -0.05, 0.0, 0.02, 0.08, 0.2])
@pytest.mark.parametrize(("noise", "threshold"), [(0.05, 0.08), (0.2, 0.0), (0.02, 0.15)])
def test_labels_follow_the_closed_form(difference, noise, threshold):
    annotator = Annotator(noise=noise, tie_threshold=threshold)
    # The distribution function of a logistic variable, written out.
    beats = 1 / (1 + math.exp(-(difference - threshold) / noise))
    loses = 1 / (1 + math.exp((difference + threshold) / noise))
    wanted = torch.tensor([beats, 1 - beats - loses, loses])
    exact = annotator.probabilities(torch.tensor(difference))
    torch.testing.assert_close(exact.float(), wanted, rtol=0, atol=1e-6)
    assert (shares(annotator, difference) - wanted).abs().max() < 4.5 * 0.5 / math.sqrt(DRAWS)


def test_labels_are_bradley_terry_with_ties():
    annotator = Annotator(noise=0.05, tie_threshold=0.05 * math.log(5))
    difference = torch.linspace(-0.5, 0.5, 41, dtype=torch.float64)
    strength, k = (difference / 0.05).exp(), 5.0
    wanted = torch.stack(
        [
            strength / (strength + k),
            (k * k - 1) * strength / ((strength + k) * (1 + k * strength)),
            1 / (1 + k * strength),
        ],
        -1,
    )
    torch.testing.assert_close(annotator.probabilities(difference), wanted)


def test_without_noise_the_threshold_alone_decides():
    annotator = Annotator(noise=0.0, tie_threshold=0.1)
    differences = torch.tensor([0.3, 0.1, 0.0, -0.1, -0.11], dtype=torch.float64)
    words = annotator.judge(differences, rng())
    assert words == ["A", "same", "same", "same", "B"]
    wanted = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    assert torch.equal(annotator.probabilities(differences[[0, 1, 4]]), wanted)


@pytest.mark.parametrize("raters", [2, 3])
@pytest.mark.parametrize("difference", [-0.1, 0.03, 0.12])
def test_the_majority_of_several_raters_counts(difference, raters):
    one = dict(
        zip("AsB", Annotator().probabilities(torch.tensor(difference)).tolist(), strict=True)
    )
    wanted = {"A": 0.0, "same": 0.0, "B": 0.0}
    for votes in itertools.product("AsB", repeat=raters):  # every outcome, counted
        word = next((w for w in "AB" if votes.count(w) > raters / 2), "same")
        wanted[word] += math.prod(one[vote] for vote in votes)
    annotator, expected = Annotator(raters=raters), torch.tensor(list(wanted.values()))
    exact = annotator.probabilities(torch.tensor(difference))
    torch.testing.assert_close(exact.float(), expected, rtol=0, atol=1e-6)
    assert (shares(annotator, difference) - expected).abs().max() < 4.5 * 0.5 / math.sqrt(DRAWS)


def test_draws_repeat_by_seed():
    annotator, difference = Annotator(), torch.zeros(200)
    first = annotator.judge(difference, rng(1))
    assert first == annotator.judge(difference, rng(1)) != annotator.judge(difference, rng(2))


def test_colourfulness_is_the_chroma_of_the_most_colourful_pixels():
    red = torch.tensor(COLOURS["red"])
    video = torch.full((3, 4, 3, 20, 20), 0.4)
    video[1, :, :, :4, :5] = red[:, None, None]  # 5 % of the pixels
    video[2, :2, :, :4, :5] = red[:, None, None]  # in half of the frames
    chroma = (red.max() - red.min()).item()
    found = colourfulness(video)
    torch.testing.assert_close(found, torch.tensor([0.0, chroma, chroma / 2]))
    eight_bit = (video * 255).round().to(torch.uint8)
    torch.testing.assert_close(colourfulness(eight_bit), found, rtol=0, atol=1 / 255)


def test_statistics_count_what_they_say():
    annotator = Annotator(noise=0.0, tie_threshold=0.1)
    rows = [
        ("A", 0.5, 0.1),
        ("B", 0.5, -0.1),  # against the oracle, for colour
        ("same", 0.05, 0.2),
        ("B", -0.5, 0.3),
        ("A", 0.0, 0.3),  # no truth to agree with, for colour
    ]
    found = label_statistics(rows, annotator)
    assert (found.count, found.tie_share) == (5, 0.2)
    assert found.agreement == pytest.approx(2 / 3)
    # Beyond the oracle's verdicts: row 2 moved from A to B (2 steps), row 5 from same to A (1).
    assert found.colour_preference == pytest.approx(3 / 5)
    assert math.isnan(label_statistics([("same", 0.1, 0.0)], annotator).agreement)


@pytest.mark.parametrize("seed", range(3))
def test_colour_preference_measures_the_bias_and_only_the_bias(seed):
    generator = rng(seed)
    truth = torch.randn(6000, generator=generator) * 0.1
    # Colour goes with quality here: an honest annotator picks colourful clips as well.
    colour = 2 * truth + torch.randn(6000, generator=generator) * 0.2
    found = []
    for bias in (0.0, 0.15, 0.4):
        annotator = Annotator(colour_bias=bias)
        words = annotator.judge(truth + bias * colour, generator)
        rows = list(zip(words, truth.tolist(), colour.tolist(), strict=True))
        found.append(label_statistics(rows, annotator).colour_preference)
    # Labels span two steps, so the mean of 6000 has a deviation of at most 0.013.
    assert abs(found[0]) < 0.04
    assert found[1] > 0.1 and found[2] > found[1] + 0.05


@pytest.mark.parametrize(
    "wrong",
    [{"noise": -0.1}, {"tie_threshold": math.nan}, {"colour_bias": math.inf}, {"raters": 0}],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Annotator(**wrong)
