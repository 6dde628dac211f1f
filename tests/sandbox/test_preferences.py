import re

import pytest
import torch

from longtake.core.video import read_video
from longtake.rewards.preference_files import read_preference_csv
from longtake.rewards.preference_labels import WORD_OF_LABEL
from longtake.runtime.errors import RunDirectoryError, UserError
from longtake.sandbox.annotators import Annotator, colourfulness
from longtake.sandbox.captions import parse_caption
from longtake.sandbox.corruptions import CORRUPTIONS, scale_saturation
from longtake.sandbox.facts import split_of
from longtake.sandbox.oracles import UNPROMPTED_MOTION, oracle_scores
from longtake.sandbox.preference_files import write_preferences
from longtake.sandbox.preferences import (
    STRENGTHS,
    PairConfig,
    candidate_pairs,
    label_pair,
    preference_prompts,
    preference_statistics,
)

ALL_PAIRS = PairConfig(pairs_per_prompt=15)


@pytest.fixture(scope="module")
def pairs():
    return list(candidate_pairs("train", 0, 12, 5, config=ALL_PAIRS))


@pytest.fixture(scope="module")
def held_out():
    return list(candidate_pairs("held_out", 0, 6, 5))


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
    again = list(candidate_pairs("train", 4, 2, 5, config=ALL_PAIRS))
    assert len(again) == 30
    assert all(same(*both) for both in zip(pairs[60:90], again, strict=True))
    other = list(candidate_pairs("train", 4, 2, 6, config=ALL_PAIRS))
    assert not {pair.prompt for pair in other} & {pair.prompt for pair in again}


def test_a_smaller_choice_is_part_of_the_larger_one(pairs):
    few = list(candidate_pairs("train", 0, 2, 5, config=PairConfig(pairs_per_prompt=4)))
    names = [{p.a.name, p.b.name} for p in pairs[:30]]
    assert len(few) == 8 and all({p.a.name, p.b.name} in names for p in few)


def test_splits_never_mix(pairs, held_out):
    assert not {p.prompt for p in pairs} & {p.prompt for p in held_out}
    assert not set(clips(pairs)) & set(clips(held_out))
    for split, members in (("train", pairs), ("held_out", held_out)):
        for pair in members:
            for sprite in parse_caption(pair.prompt).sprites:
                assert split_of(sprite.shape, sprite.colour, sprite.motion) == split


def test_prompts_can_be_listed_before(pairs):
    assert preference_prompts("train", 0, 12, 5) == list(dict.fromkeys(p.prompt for p in pairs))


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


def test_the_oracles_tell_the_kinds_apart(pairs):
    def mean(kind, oracle, motion=None):
        rows = [
            clip.oracles[oracle]
            for prompt, clip in clips(pairs).values()
            if clip.origin == kind and motion != parse_caption(prompt).sprites[0].motion
        ]
        assert rows
        return sum(rows) / len(rows)

    assert mean("clean", "alignment") > 0.97 > 0.75 > mean("wrong scene", "alignment")
    assert mean("clean", "motion") > 0.97 > 0.5 > mean("static", "motion", "still")
    assert mean("wrong scene", "motion") < 0.85  # the caption asks for something else
    assert abs(mean("clean", "visual") - mean("static", "visual")) < 0.02


def test_position_does_not_tell_the_quality(pairs):
    difference = torch.tensor([pair.oracle_difference("VQ") for pair in pairs])
    untied = difference[difference.abs() > 0.05]
    share = (untied > 0).float().mean().item()
    assert len(untied) > 60 and abs(share - 0.5) < 0.2


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


def judged(pairs, annotator, seed=0):
    return [(pair, label_pair(pair, annotator, seed)) for pair in pairs]


@pytest.mark.parametrize("dimension", ["VQ", "MQ", "TA"])
def test_statistics_match_the_closed_form(pairs, dimension):
    annotator = Annotator(noise=0.1, tie_threshold=0.15, colour_bias=0.3)
    p = annotator.probabilities(
        torch.tensor(
            [pair.oracle_difference(dimension) + 0.3 * pair.colour_difference for pair in pairs]
        )
    )
    found = preference_statistics(judged(pairs, annotator), annotator)[dimension]
    deviation = (p[:, 1] * (1 - p[:, 1])).sum().sqrt().item() / len(pairs)
    assert abs(found.tie_share - p[:, 1].mean().item()) < 4 * deviation


def test_the_colour_bias_is_measurable_and_zero_when_off(pairs):
    for dimension in ("VQ", "MQ", "TA"):
        found = {}
        for bias in (0.0, 0.5):
            annotator = Annotator(colour_bias=bias)
            rows = [s for seed in range(4) for s in judged(pairs, annotator, seed)]
            found[bias] = preference_statistics(rows, annotator)[dimension].colour_preference
        assert abs(found[0.0]) < 0.06
        assert found[0.5] > 0.12


def test_careful_annotators_agree_with_the_oracle(pairs):
    exact = Annotator(noise=0.0, tie_threshold=0.0, colour_bias=0.0)
    for statistics in preference_statistics(judged(pairs, exact), exact).values():
        assert statistics.agreement == 1 and statistics.count == len(pairs)
    default = Annotator()
    for statistics in preference_statistics(judged(pairs, default), default).values():
        assert 0.9 < statistics.agreement < 1 and 0.1 < statistics.tie_share < 0.5


def test_model_samples_join_the_pool():
    prompts = preference_prompts("train", 0, 2, 5)
    generator = torch.Generator().manual_seed(0)
    samples = {prompts[1]: torch.rand(2, 17, 3, 64, 64, generator=generator)}
    config = PairConfig(pairs_per_prompt=100)
    with_samples = list(candidate_pairs("train", 0, 2, 5, config=config, samples=samples.get))
    without = list(candidate_pairs("train", 0, 2, 5, config=config))
    assert len(with_samples) == 15 + 28 and len(without) == 30
    found = [clip for _, clip in clips(with_samples).values() if clip.origin == "model"]
    assert {clip.name for clip in found} == {"train_000001_06", "train_000001_07"}
    wanted = (samples[prompts[1]] * 255).round().to(torch.uint8)
    assert all(torch.equal(clip.video, wanted[int(clip.name[-2:]) - 6]) for clip in found)
    assert max(clip.oracles["visual"] for clip in found) < 0.3  # the samples here are noise
    eight_bit = list(
        candidate_pairs("train", 1, 1, 5, config=config, samples={prompts[1]: wanted}.get)
    )
    assert all(same(*both) for both in zip(with_samples[15:], eight_bit, strict=True))
    with pytest.raises(UserError, match=r"17, 3, 64, 64"):
        list(candidate_pairs("train", 1, 1, 5, samples=lambda _: torch.zeros(2, 9, 3, 64, 64)))


def test_saturation_keeps_the_luma():
    video = 0.3 + 0.3 * torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    for factor in (0.0, 0.4, 1.0, 1.5):
        out = scale_saturation(video, factor)
        torch.testing.assert_close((weights * out).sum(1), (weights * video).sum(1))
        chroma = [x.amax(1) - x.amin(1) for x in (out, video)]
        torch.testing.assert_close(chroma[0], factor * chroma[1], rtol=1e-4, atol=1e-5)


def test_files_are_read_back_by_the_reward_trainer(pairs, held_out, tmp_path):
    rows = judged(pairs[:15], Annotator())
    path = write_preferences(rows, tmp_path / "new", "train.csv")
    other = write_preferences(judged(held_out, Annotator()), tmp_path / "new", "held_out.csv")
    found = read_preference_csv(path)
    assert len(found) == 15 and len(read_preference_csv(other)) == len(held_out)
    for row, (pair, labels) in zip(found, rows, strict=True):
        assert row.prompt == pair.prompt
        assert {name: WORD_OF_LABEL[label] for name, label in row.labels.items()} == labels
        assert (row.fps_a, row.num_frames_b) == (8.0, 17)
    for row, (pair, _) in list(zip(found, rows, strict=True))[:3]:
        video, fps = read_video(path.parent / row.path_a)
        assert torch.equal(video, pair.a.video) and fps == 8.0  # not one grey level is lost
    names = {clip.name for pair, _ in rows for clip in (pair.a, pair.b)}
    stored = {p.stem for p in (path.parent / "clips").iterdir() if p.stem.startswith("train")}
    assert stored == names


def test_an_unwritable_folder_is_explained(pairs, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="cannot write preference pairs"):
        write_preferences(judged(pairs[:1], Annotator()), tmp_path / "file")


@pytest.mark.parametrize(
    "wrong", [{"damaged": -1}, {"pairs_per_prompt": 0}, {"saturation_share": 1.5}]
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        PairConfig(**wrong)
