"""Captions that misstate a scene, and which of their facts are wrong."""

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

from longtake.runtime.rng import derive_key
from longtake.sandbox.captions import parse_caption
from longtake.sandbox.facts import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SHAPES,
    SIZES,
    SPEEDS,
    SPRITE_ATTRIBUTES,
    Facts,
    split_of,
)
from longtake.sandbox.scene import LANE_MOTIONS, Scene, Sprite

ATTRIBUTES = (*SPRITE_ATTRIBUTES, "background")
"""What a caption can state, and misstate."""


def misstated(scene: Scene, seed: int, changes: int = 1) -> Scene:
    """A scene to caption in place of ``scene``: up to ``changes`` of its attributes are others.

    Only its facts are meant to be used. It stays in the train split when ``scene`` is in it.

    Args:
        scene: the truth.
        seed: names the draw.
        changes: attributes drawn, with replacement; one that cannot change stays.
    """
    draws = random.Random(derive_key(seed, "misstated"))
    for _ in range(changes):
        attribute = draws.choice(ATTRIBUTES)
        if attribute == "background":
            others = [name for name in BACKGROUNDS if name != scene.background]
            scene = dataclasses.replace(scene, background=draws.choice(others))
            continue
        place = draws.randrange(len(scene.sprites))
        sprites = list(scene.sprites)
        sprites[place] = _other(scene, sprites[place], attribute, draws)
        changed = dataclasses.replace(scene, sprites=tuple(sprites))
        if _split(changed) >= _split(scene):
            scene = changed
    return scene


def wrong_facts(truth: Facts, text: str) -> list[str]:
    """Attributes that ``text`` states and that are not so, in the order of :data:`ATTRIBUTES`.

    Args:
        truth: all facts of the clip, sprites in the caption's order.
        text: a caption of the sandbox.
    """
    told = parse_caption(text)
    wrong = {
        name
        for stated, true in zip(told.sprites, truth.sprites, strict=True)
        for name, value in stated.stated().items()
        if getattr(true, name) != value
    }
    if told.background not in (None, truth.background):
        wrong.add("background")
    return [name for name in ATTRIBUTES if name in wrong]


def _other(scene: Scene, sprite: Sprite, attribute: str, draws: random.Random) -> Sprite:
    """The sprite with another value of an attribute; a still one has no speed to change."""
    pair = len(scene.sprites) > 1
    taken = [other.colour for other in scene.sprites]
    options: dict[str, Sequence[str]] = {
        "colour": [name for name in COLOURS if name not in taken],
        "shape": [name for name in SHAPES if name != sprite.shape],
        "size": [name for name in SIZES if name != sprite.size],
        "motion": [m for m in (LANE_MOTIONS if pair else MOTIONS) if m != sprite.motion],
        "speed": [] if sprite.speed is None else [s for s in SPEEDS if s != sprite.speed],
    }
    if not options[attribute]:
        return sprite
    value = draws.choice(options[attribute])
    if attribute != "motion":
        change: dict[str, Any] = {attribute: value}
        return dataclasses.replace(sprite, **change)
    speed = None if value == "still" else sprite.speed or draws.choice(list(SPEEDS))
    return dataclasses.replace(sprite, motion=value, speed=speed)


def _split(scene: Scene) -> bool:
    """Whether every sprite's combination belongs to the train split."""
    return all(split_of(s.shape, s.colour, s.motion) == "train" for s in scene.sprites)
