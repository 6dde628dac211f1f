"""The oracles on renders: near 1 when all is right, clearly lower when one thing is wrong."""

from dataclasses import replace

import pytest
import torch

from longtake.sandbox.captions import caption, parse_caption
from longtake.sandbox.facts import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES, SPEEDS
from longtake.sandbox.oracles import ORACLES, UNPROMPTED_MOTION, oracle_scores
from longtake.sandbox.oracles.alignment import alignment_of, fact_scores
from longtake.sandbox.oracles.segmentation import segment
from longtake.sandbox.render import render
from longtake.sandbox.scene import sample_scenes

SCENES = sample_scenes(41, 0, 300)
TEXTS = [caption(scene, index) for index, scene in enumerate(SCENES)]


@pytest.fixture(scope="module")
def clean():
    return oracle_scores(render(SCENES), TEXTS)


@pytest.mark.parametrize("name", ORACLES)
def test_renders_score_near_one(name, clean):
    assert clean[name].mean() >= 0.98
    assert clean[name].min() >= 0.9


@pytest.mark.parametrize("name", ORACLES)
def test_separate_and_shared_calls_agree_on_any_batch_split(name, clean):
    video = render(SCENES[:6], dtype=torch.float32)
    oracle = ORACLES[name]
    parts = torch.cat([oracle(video[:1], TEXTS[:1]), oracle(video[1:], TEXTS[1:6])])
    assert torch.equal(parts, oracle(video, TEXTS[:6]))
    assert torch.equal(parts, clean[name][:6])


def _swapped(scene, attribute):
    """The scene whose caption is wrong about one attribute of its first sprite."""
    sprite = scene.sprites[0]
    if attribute == "background":
        names = list(BACKGROUNDS)
        other = names[(names.index(scene.background) + 1) % len(names)]
        return replace(scene, background=other)
    if attribute == "speed" and sprite.speed is None:
        return None
    options = {
        "colour": list(COLOURS),
        "shape": list(SHAPES),
        "size": list(SIZES),
        "motion": [m for m in MOTIONS if m != "still"],
        "speed": list(SPEEDS),
    }[attribute]
    value = getattr(sprite, attribute)
    if value == "still":
        changed = replace(sprite, motion="left", speed="slow")
    else:
        other = options[(options.index(value) + 1) % len(options)]
        changed = replace(sprite, **{attribute: other})
    if attribute == "colour" and any(s.colour == changed.colour for s in scene.sprites[1:]):
        return None
    return replace(scene, sprites=(changed, *scene.sprites[1:]))


@pytest.mark.parametrize("attribute", ["colour", "shape", "size", "motion", "speed", "background"])
def test_a_wrong_attribute_lowers_alignment(attribute):
    states = ("colour", "shape", "size", "motion", "speed", "background")
    checked = 0
    for index in range(16):
        scene = SCENES[index]
        wrong = _swapped(scene, attribute)
        if wrong is None:
            continue
        clip = segment(render([scene], dtype=torch.float32)[0].numpy())
        right = parse_caption(caption(scene, index, states=states))
        false = parse_caption(caption(wrong, index, states=states))
        key = "background" if attribute == "background" else f"{attribute}1"
        assert fact_scores(clip, right)[key] > 0.95
        assert fact_scores(clip, false)[key] < 0.3
        assert alignment_of(clip, false) < alignment_of(clip, right) - 0.06
        checked += 1
    assert checked >= 8


def test_a_wrong_number_of_sprites_lowers_alignment():
    two = next(s for s in SCENES if len(s.sprites) == 2)
    lone = replace(two, sprites=two.sprites[:1])
    video = render([two, lone])
    text_one, text_two = caption(lone, 0, length="long"), caption(two, 0, length="long")
    scores = ORACLES["alignment"](video, [text_two, text_two])
    assert scores[0] > 0.98 and scores[1] < 0.65
    assert ORACLES["alignment"](video, [text_one, text_one])[0] < 0.95
    assert ORACLES["motion"](video, [text_two, text_two])[1] < 0.6


def test_not_finite_pixels_are_unscored():
    video = render(SCENES[:2], dtype=torch.float32)
    video[1, 3, 0, 5, 5] = float("nan")
    for scores in oracle_scores(video, TEXTS[:2]).values():
        assert torch.isfinite(scores[0]) and torch.isnan(scores[1])


def test_motion_without_the_caption_does_not_depend_on_what_it_demands():
    scenes = sample_scenes(8, 0, 60)
    video = render(scenes)
    shown = [scene.facts() for scene in scenes]
    own = oracle_scores(video, [caption(s, i) for i, s in enumerate(scenes)], shown)
    other = oracle_scores(video, [caption(s, i + 1) for i, s in enumerate(scenes[::-1])], shown)
    assert torch.equal(own[UNPROMPTED_MOTION], other[UNPROMPTED_MOTION])
    assert (other["motion"] < own["motion"] - 0.2).sum() > 10
    demands = [
        replace(f, sprites=tuple(replace(s, motion="still") for s in f.sprites)) for f in shown
    ]
    again = oracle_scores(video, [caption(s, i) for i, s in enumerate(scenes)], demands)
    assert torch.equal(again[UNPROMPTED_MOTION], own[UNPROMPTED_MOTION])


def test_a_sprite_that_never_shows_is_no_fault_of_motion():
    scene = next(s for s in SCENES if len(s.sprites) == 2 and s.sprites[0].motion != "still")
    alone = replace(scene, sprites=scene.sprites[:1])
    text = [caption(scene, 0)]
    scores = oracle_scores(render([alone]), text, [scene.facts()])
    assert scores[UNPROMPTED_MOTION].item() > 0.9 > 0.6 > scores["motion"].item()
    empty = torch.full((1, 17, 3, 64, 64), 0.5)
    assert oracle_scores(empty, text, [scene.facts()])[UNPROMPTED_MOTION].item() == 0
    broken = oracle_scores(empty * float("nan"), text, [scene.facts()])
    assert broken[UNPROMPTED_MOTION].isnan().all()
