"""The grammar of captions: what is written is read back exactly; prompt lists keep the splits."""

import pytest

from longtake.runtime.errors import UserError
from longtake.sandbox.captions import caption, parse_caption, prompts, templates
from longtake.sandbox.facts import split_of
from longtake.sandbox.scene import sample_scenes

SCENES = sample_scenes(21, 0, 150)


def test_parser_inverts_every_template():
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


def test_required_facts_are_stated():
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
def test_text_outside_of_the_grammar_is_refused(text):
    with pytest.raises(UserError, match="grammar"):
        parse_caption(text)


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_every_prompt_proves_its_split(split):
    texts = prompts(split, 200, seed=4)
    assert len(set(texts)) == 200
    for text in texts:
        for sprite in parse_caption(text).sprites:
            assert sprite.shape and sprite.colour and sprite.motion
            assert split_of(sprite.shape, sprite.colour, sprite.motion) == split


def test_lists_are_deterministic_and_grow_by_appending():
    assert prompts("train", 30, 1) == prompts("train", 50, 1)[:30]
    assert prompts("train", 30, 1) != prompts("train", 30, 2)
