"""The grammar of captions: what is written is read back exactly; prompt lists keep the splits."""

import re

import pytest

from longtake.runtime.errors import UserError
from longtake.sandbox.captions import LENGTHS, caption, parse_caption, prompts, templates
from longtake.sandbox.facts import Split, split_of
from longtake.sandbox.scene import sample_scenes

SCENES = sample_scenes(21, 0, 150)


def test_parser_inverts_every_template() -> None:
    for index, scene in enumerate(SCENES):
        truth = scene.facts()
        for variant, template in enumerate(templates(len(scene.sprites))):
            text = caption(scene, index, variant=variant)
            facts = parse_caption(text)
            assert len(facts.sprites) == len(scene.sprites)
            for number, (stated, full) in enumerate(
                zip(facts.sprites, truth.sprites, strict=True), start=1
            ):
                names = {"colour", "shape", "size"}
                expected = {n for n in names if f"{{{n}{number}}}" in template}
                motion = [k for k in ("act", "doing", "tag") if f"{{{k}{number}}}" in template]
                paced = [k for k in ("act", "doing", "tag") if f"{{{k}_speed{number}}}" in template]
                expected |= {"motion"} if motion or paced else set()
                expected |= {"speed"} if paced and full.speed is not None else set()
                assert stated.stated() == {n: full.stated()[n] for n in expected}, text
            has_background = "{background}" in template
            assert facts.background == (scene.background if has_background else None)


def test_text_is_short_lower_case_ascii_with_a_small_vocabulary() -> None:
    words: set[str] = set()
    for index, scene in enumerate(SCENES):
        for variant in range(len(templates(len(scene.sprites)))):
            text = caption(scene, index, variant=variant)
            assert text.isascii() and text == text.lower()
            assert len(text.split()) <= 40
            assert not re.sub(r"[a-z]+|[.,: ]", "", text)
            words |= set(re.findall("[a-z]+", text))
    assert len(words) < 120


def test_seed_decides_and_lengths_differ() -> None:
    scene = SCENES[0]
    assert caption(scene, 5) == caption(scene, 5)
    assert len({caption(scene, seed) for seed in range(60)}) > 20
    mean = {
        length: sum(len(caption(s, i, length=length).split()) for i, s in enumerate(SCENES))
        for length in LENGTHS
    }
    assert mean["short"] < mean["medium"] < mean["long"]


def test_required_facts_are_stated() -> None:
    for index, scene in enumerate(SCENES):
        text = caption(scene, index, states=("colour", "size", "motion"))
        for sprite in parse_caption(text).sprites:
            assert {"colour", "size", "motion"} <= set(sprite.stated())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a dog runs on a beach",
        "red circle ",
        "Red circle",
        "red circle, upwards",
        "a orange circle moves left",
        "an red circle moves left",
        "a red circle moves left on a green background",
        "this is a clip of a big circle on a navy background. the square is red and it rises.",
        "red circle and blue square and green cross",
    ],
)
def test_text_outside_of_the_grammar_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="grammar"):
        parse_caption(text)


def test_hand_written_caption_is_read() -> None:
    facts = parse_caption("an orange cross circles around at a slow speed")
    assert facts.sprites[0].stated() == {
        "colour": "orange",
        "shape": "cross",
        "motion": "circling",
        "speed": "slow",
    }
    assert facts.background is None


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_every_prompt_proves_its_split(split: Split) -> None:
    texts = prompts(split, 200, seed=4)
    assert len(set(texts)) == 200
    for text in texts:
        for sprite in parse_caption(text).sprites:
            assert sprite.shape and sprite.colour and sprite.motion
            assert split_of(sprite.shape, sprite.colour, sprite.motion) == split


def test_lists_are_deterministic_and_grow_by_appending() -> None:
    assert prompts("train", 30, 1) == prompts("train", 50, 1)[:30]
    assert prompts("train", 30, 1) != prompts("train", 30, 2)


def test_splits_share_no_text() -> None:
    assert not set(prompts("train", 300, 0)) & set(prompts("held_out", 300, 0))
