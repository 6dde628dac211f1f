"""Captions with wrong facts: what changes, what is found wrong."""

import dataclasses

import pytest

from longtake.sandbox.captions import caption
from longtake.sandbox.facts import split_of
from longtake.sandbox.misstatements import ATTRIBUTES, misstated, wrong_facts
from longtake.sandbox.scene import sample_scene


def facts_that_differ(a, b):
    """By the fields of the facts, without any caption."""
    found = {
        name
        for one, two in zip(a.sprites, b.sprites, strict=True)
        for name in ("colour", "shape", "size", "motion", "speed")
        if getattr(one, name) != getattr(two, name)
    }
    return found | ({"background"} if a.background != b.background else set())


@pytest.mark.parametrize("changes", [1, 3])
def test_what_changed_and_is_said_is_found_wrong(changes):
    seen = set()
    for index in range(150):
        scene = sample_scene(4, index, "train")
        other = misstated(scene, index, changes)
        differ = facts_that_differ(scene.facts(), other.facts())
        # Another motion can bring or take a speed with it; nothing else moves by itself.
        assert len(differ - {"speed"}) <= changes
        assert all(split_of(s.shape, s.colour, s.motion) == "train" for s in other.sprites)
        assert len({s.colour for s in other.sprites}) == len(other.sprites)
        text = caption(other, index)
        wrong = wrong_facts(scene.facts(), text)
        assert set(wrong) <= differ and wrong == sorted(wrong, key=ATTRIBUTES.index)
        full = caption(other, index, states=("colour", "shape", "motion"))
        stated = {"colour", "shape", "motion"}
        assert stated & set(wrong_facts(scene.facts(), full)) == stated & differ
        seen |= differ
    assert seen == set(ATTRIBUTES)


def test_true_captions_have_no_wrong_fact():
    for index in range(60):
        scene = sample_scene(9, index)
        assert wrong_facts(scene.facts(), caption(scene, index)) == []
        assert misstated(scene, 1) == misstated(scene, 1)


def test_a_still_clip_makes_a_moving_caption_wrong():
    scene = next(s for i in range(99) if (s := sample_scene(2, i)).sprites[0].motion == "left")
    stopped = [dataclasses.replace(s, motion="still", speed=None) for s in scene.facts().sprites]
    truth = dataclasses.replace(scene.facts(), sprites=tuple(stopped))
    assert "motion" in wrong_facts(truth, caption(scene, 0, states=("motion",)))
