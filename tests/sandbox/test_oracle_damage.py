"""Each corruption lowers the oracles that are meant to see it, the more the stronger it is."""

from itertools import pairwise

import pytest
import torch

from longtake.sandbox.captions import caption
from longtake.sandbox.corruptions import CORRUPTIONS
from longtake.sandbox.oracles import oracle_scores
from longtake.sandbox.render import render
from longtake.sandbox.scene import sample_scenes

SEEN_BY = {  # corruption: oracles that see it, and the score at full strength they must not exceed
    "blur": {"visual": 0.5},
    "noise": {"visual": 0.4},
    "flicker": {"motion": 0.4, "alignment": 0.97},
    "jitter": {"motion": 0.4},
    "teleport": {"motion": 0.4, "alignment": 0.95},
    "vanish": {"motion": 0.5, "visual": 0.6, "alignment": 0.7},
    "freeze": {"motion": 0.8},
    "colour_drift": {"motion": 0.8, "visual": 0.9, "alignment": 0.95},
    "melt": {"visual": 0.8, "alignment": 0.99},
    "ghost": {"visual": 0.8},
    "clutter": {"visual": 0.6},
}
SCENES = sample_scenes(51, 0, 10)
TEXTS = [caption(scene, index, length="medium") for index, scene in enumerate(SCENES)]


@pytest.fixture(scope="module")
def video():
    return render(SCENES, dtype=torch.float32)


def test_every_corruption_is_covered():
    assert set(SEEN_BY) == set(CORRUPTIONS)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_scores_fall_with_strength(name, video):
    means = {oracle: [] for oracle in SEEN_BY[name]}
    for strength in (0.0, 0.25, 0.5, 0.75, 1.0):
        damaged = CORRUPTIONS[name](video, strength, torch.Generator().manual_seed(2))
        scores = oracle_scores(damaged, TEXTS)
        for oracle in means:
            means[oracle].append(float(scores[oracle].mean()))
    for oracle, ceiling in SEEN_BY[name].items():
        falls = means[oracle]
        assert all(later <= earlier + 5e-3 for earlier, later in pairwise(falls))
        assert falls[-1] <= ceiling < falls[0]
