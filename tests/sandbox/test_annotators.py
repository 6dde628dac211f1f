"""Simulated annotators against their closed form."""

import itertools
import math

import pytest
import torch

from longtake.sandbox.annotators import Annotator, colourfulness, label_statistics
from longtake.sandbox.facts import COLOURS

DRAWS = 20_000


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def shares(annotator, difference, seed=0):
    words = annotator.judge(torch.full((DRAWS,), difference), rng(seed))
    return torch.tensor([words.count(word) / DRAWS for word in ("A", "same", "B")])


@pytest.mark.parametrize("difference", [-0.3, 0.0, 0.08])
@pytest.mark.parametrize(("noise", "threshold"), [(0.05, 0.08), (0.2, 0.0)])
def test_labels_follow_the_closed_form(difference, noise, threshold):
    annotator = Annotator(noise=noise, tie_threshold=threshold)
    # The distribution function of a logistic variable, written out.
    beats = 1 / (1 + math.exp(-(difference - threshold) / noise))
    loses = 1 / (1 + math.exp((difference + threshold) / noise))
    wanted = torch.tensor([beats, 1 - beats - loses, loses])
    exact = annotator.probabilities(torch.tensor(difference))
    torch.testing.assert_close(exact.float(), wanted, rtol=0, atol=1e-6)
    assert (shares(annotator, difference) - wanted).abs().max() < 4.5 * 0.5 / math.sqrt(DRAWS)


@pytest.mark.parametrize(("raters", "difference"), [(2, 0.03), (3, -0.1)])
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


def test_colour_preference_measures_the_bias_and_only_the_bias():
    generator = rng()
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
