"""The loose word reader against the sandbox parser, and on captions outside of its grammar."""

from dataclasses import asdict

import pytest

from longtake.rewards import caption_words
from longtake.rewards.caption_words import read_caption
from longtake.sandbox import facts
from longtake.sandbox.captions import caption, parse_caption
from longtake.sandbox.scene import sample_scene


def stated(sprite):
    return {name: value for name, value in asdict(sprite).items() if value is not None}


def test_reads_what_the_grammar_states():
    for index in range(600):
        text = caption(sample_scene(1, index), index)
        wanted, found = parse_caption(text), read_caption(text)
        assert found.background == wanted.background, text
        assert [stated(s) for s in found.sprites] == [stated(s) for s in wanted.sprites], text


def test_the_two_colour_tables_agree():
    assert dict(caption_words.COLOURS) == facts.COLOURS
    assert dict(caption_words.BACKGROUNDS) == facts.BACKGROUNDS


@pytest.mark.parametrize("text", ["", "a dog runs on the beach", "12 %! <Reward>", "roter Kreis"])
def test_unknown_words_state_nothing(text):
    found = read_caption(text)
    assert found.sprites == [] and found.background is None


def test_loose_captions():
    found = read_caption("A BIG red ball, quickly rising! Gray wall; something tiny and cyan.")
    assert found.background == "grey"
    first, second = found.sprites
    assert stated(first) == {
        "colour": "red", "shape": "circle", "size": "large", "motion": "up", "speed": "fast",
    }  # fmt: skip
    assert stated(second) == {"colour": "cyan", "size": "small"}


def test_a_circle_is_a_shape_or_a_path():
    found = read_caption("a red circle goes around in a circle")
    assert [stated(s) for s in found.sprites] == [
        {"colour": "red", "shape": "circle", "motion": "circling"}
    ]


def test_background_colour_is_no_sprite():
    assert [s.colour for s in read_caption("a red cross on a white background").sprites] == ["red"]
