import re

import pytest
import torch

from longtake.sandbox.annotators import Annotator, colourfulness, label_statistics
from longtake.sandbox.captions import parse_caption
from longtake.sandbox.corruptions import CORRUPTIONS
from longtake.sandbox.facts import split_of
from longtake.sandbox.oracles import UNPROMPTED_MOTION, oracle_scores
from longtake.sandbox.preferences import (
    STRENGTHS,
    PairConfig,
    PoolJob,
    label_pair,
    preference_prompts,
)

ALL_PAIRS = PairConfig(pairs_per_prompt=15)


def pairs_of(split="train", start=0, count=12, seed=5, config=ALL_PAIRS, samples=None):
    job = PoolJob(split=split, start=start, count=count, seed=seed, config=config, samples=samples)
    return list(job.pairs())


@pytest.fixture(scope="module")
def pairs():
    return pairs_of()


@pytest.fixture(scope="module")
def held_out():
    return pairs_of("held_out", count=6)


def same(one, two):
    return (
        one.prompt == two.prompt
        and (one.a.name, one.b.name) == (two.a.name, two.b.name)
        and one.a.oracles == two.a.oracles
        and torch.equal(one.a.video, two.a.video)
        and torch.equal(one.b.video, two.b.video)
    )


def clips(pairs):
    return {clip.name: (pair.prompt, clip) for pair in pairs for clip in (pair.a, pair.b)}


def test_pairs_are_named_by_the_prompt_alone(pairs):
    again = pairs_of(start=4, count=2)
    assert len(again) == 30
    assert all(same(*both) for both in zip(pairs[60:90], again, strict=True))
    other = pairs_of(start=4, count=2, seed=6)
    assert not {pair.prompt for pair in other} & {pair.prompt for pair in again}


def test_splits_never_mix(pairs, held_out):
    assert not {p.prompt for p in pairs} & {p.prompt for p in held_out}
    assert not set(clips(pairs)) & set(clips(held_out))
    for split, members in (("train", pairs), ("held_out", held_out)):
        for pair in members:
            for sprite in parse_caption(pair.prompt).sprites:
                assert split_of(sprite.shape, sprite.colour, sprite.motion) == split


def test_a_pool_holds_every_kind_of_clip(pairs):
    origins = {clip.origin.split(",")[0] for _, clip in clips(pairs).values()}
    kinds = {re.sub(r" [\d.]+$", "", origin) for origin in origins}
    assert {"clean", "static", "wrong scene"} < kinds
    assert len(kinds & set(CORRUPTIONS)) >= 8
    strengths = {float(o.split()[-1]) for o in origins if o.split()[0] in CORRUPTIONS}
    assert strengths == set(STRENGTHS)
    changed = [clip for _, clip in clips(pairs).values() if "saturation" in clip.origin]
    assert 0.3 < len(changed) / len(clips(pairs)) < 0.7


def test_scores_belong_to_the_clips(pairs):
    chosen = list(clips(pairs).values())[::7]
    video = torch.stack([clip.video for _, clip in chosen])
    assert video.dtype == torch.uint8
    found = oracle_scores(video, [prompt for prompt, _ in chosen])
    assert set(chosen[0][1].oracles) == {*found, UNPROMPTED_MOTION}
    for name, column in found.items():
        assert column.tolist() == [clip.oracles[name] for _, clip in chosen]
    colours = colourfulness(video).tolist()
    assert colours == pytest.approx([clip.colourfulness for _, clip in chosen], abs=1e-6)


def test_labels_repeat_and_share_noise_between_annotators(pairs):
    noisy = Annotator(noise=0.2, colour_bias=0.0)
    first = [label_pair(pair, noisy, 0) for pair in pairs]
    assert first == [label_pair(pair, noisy, 0) for pair in pairs]
    assert first != [label_pair(pair, noisy, 1) for pair in pairs]
    # With the same noise, a bias moves labels towards the more colourful clip and nowhere else.
    rank = {"A": 1, "same": 0, "B": -1}
    biased = [label_pair(pair, Annotator(noise=0.2, colour_bias=0.5), 0) for pair in pairs]
    for pair, before, after in zip(pairs, first, biased, strict=True):
        for dimension, word in before.items():
            move = rank[after[dimension]] - rank[word]
            assert move * pair.colour_difference >= 0


def statistics(pairs, annotator, dimension, seeds=(0,)):
    rows = [
        (
            label_pair(p, annotator, seed)[dimension],
            p.oracle_difference(dimension),
            p.colour_difference,
        )
        for seed in seeds
        for p in pairs
    ]
    return label_statistics(rows, annotator)


@pytest.mark.parametrize("dimension", ["VQ", "MQ", "TA"])
def test_the_colour_bias_is_measurable_and_zero_when_off(pairs, dimension):
    preference = {
        bias: statistics(pairs, Annotator(colour_bias=bias), dimension, range(4)).colour_preference
        for bias in (0.0, 0.5)
    }
    assert abs(preference[0.0]) < 0.06 and preference[0.5] > 0.12


@pytest.mark.parametrize("dimension", ["VQ", "MQ", "TA"])
def test_careful_annotators_agree_with_the_oracle(pairs, dimension):
    exact = statistics(pairs, Annotator(noise=0.0, tie_threshold=0.0, colour_bias=0.0), dimension)
    assert exact.agreement == 1 and exact.count == len(pairs)
    default = statistics(pairs, Annotator(), dimension)
    assert 0.9 < default.agreement < 1 and 0.1 < default.tie_share < 0.5


def test_model_samples_join_the_pool():
    prompts = preference_prompts("train", 0, 2, 5)
    rng = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (2, 17, 3, 64, 64), dtype=torch.uint8, generator=rng)
    config = PairConfig(pairs_per_prompt=100)
    joined = pairs_of(count=2, config=config, samples={prompts[1]: noise.numpy()})
    plain = pairs_of(count=2, config=config)
    assert len(joined) == 15 + 28 and len(plain) == 30
    samples = [clip for _, clip in clips(joined).values() if clip.origin == "model"]
    assert {clip.name for clip in samples} == {"train_000001_06", "train_000001_07"}
    assert all(torch.equal(clip.video, noise[int(clip.name[-2:]) - 6]) for clip in samples)
    assert max(clip.oracles["visual"] for clip in samples) < 0.3
