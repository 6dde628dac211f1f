"""Captions of scenes in three lengths, the exact inverse of that grammar, and lists of prompts.

A template is a string with slots. The same templates that write captions are compiled to regular
expressions that read them, so the parser accepts what the writer can say and nothing else.
Slots carry the sprite's number: ``{colour1}``. ``{act1}`` is a finite verb phrase ("moves left"),
``{doing1}`` a participle ("moving left"), ``{tag1}`` a bare word ("left"); each of them may be
followed by an adverb of speed, ``{act_speed1}``, which vanishes for still sprites.

Prompts of the train and of the held-out split state shape, colour and motion of every sprite. The
splits are disjoint in that combination (``facts.split_of``), so no held-out prompt can describe a
training clip.
"""

import random
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Literal, get_args

from longtake.runtime.errors import UserError
from longtake.runtime.rng import derive_key
from longtake.sandbox.facts import BACKGROUNDS, COLOURS, SHAPES, Facts, Split, SpriteFacts
from longtake.sandbox.scene import Scene, sample_scene

Length = Literal["short", "medium", "long"]
Phrases = Mapping[str, tuple[str, ...]]

_SIZE: Phrases = {"small": ("small", "little"), "large": ("large", "big")}
_ADVERB: Phrases = {
    "slow": ("slowly", "at a slow speed"),
    "fast": ("quickly", "fast", "at a high speed"),
}
_SPEED_TAG: Phrases = {"slow": ("slow",), "fast": ("fast",)}
_ACT: Phrases = {
    "left": ("moves left", "slides to the left", "goes left"),
    "right": ("moves right", "slides to the right", "goes right"),
    "up": ("moves up", "rises", "goes up"),
    "down": ("moves down", "falls", "goes down"),
    "diagonal": ("moves diagonally", "slides diagonally"),
    "circling": ("moves in a circle", "circles around", "goes around in a circle"),
    "still": ("stays still", "does not move", "stands still"),
}
_DOING: Phrases = {
    "left": ("moving left", "sliding to the left"),
    "right": ("moving right", "sliding to the right"),
    "up": ("moving up", "rising"),
    "down": ("moving down", "falling"),
    "diagonal": ("moving diagonally", "sliding diagonally"),
    "circling": ("moving in a circle", "circling around"),
    "still": ("standing still", "not moving"),
}
_TAG: Phrases = {
    "left": ("left", "moving left"),
    "right": ("right", "moving right"),
    "up": ("up", "moving up"),
    "down": ("down", "moving down"),
    "diagonal": ("diagonal", "moving diagonally"),
    "circling": ("circling", "moving in a circle"),
    "still": ("still", "not moving"),
}

TEMPLATES: dict[int, dict[Length, tuple[str, ...]]] = {
    1: {
        "short": (
            "{colour1} {shape1}",
            "{size1} {colour1} {shape1}",
            "{colour1} {shape1}, {tag1}",
            "{colour1} {shape1} {doing1}",
            "{colour1} {shape1}, {tag_speed1}, {background}",
            "{size1} {shape1}, {tag1}",
        ),
        "medium": (
            "a {colour1} {shape1} {act_speed1}",
            "a {size1} {colour1} {shape1} {act1}",
            "a {size1} {colour1} {shape1} {doing_speed1}",
            "a {colour1} {shape1} {act1} on a {background} background",
            "a {size1} {colour1} {shape1} {act_speed1} on a {background} background",
            "a {colour1} {shape1} {doing_speed1} on {background}",
            "on a {background} background, a {size1} {colour1} {shape1} {act_speed1}",
        ),
        "long": (
            "the video shows a {size1} {colour1} {shape1} that {act_speed1}. "
            "the background is plain {background}.",
            "this is a clip of a {size1} {shape1} on a {background} background. "
            "the {shape1} is {colour1} and it {act_speed1}.",
            "we see a {size1} {colour1} {shape1} in front of a plain {background} background. "
            "it {act_speed1} and nothing else happens.",
            "there is one {size1} {colour1} {shape1} in the clip, {doing_speed1} in front of "
            "a {background} background.",
        ),
    },
    2: {
        "short": (
            "{colour1} {shape1} and {colour2} {shape2}",
            "{colour1} {shape1}, {tag1}, {colour2} {shape2}, {tag2}",
            "{colour1} {shape1} {doing1} and {colour2} {shape2} {doing2}",
        ),
        "medium": (
            "a {colour1} {shape1} {act1} and a {colour2} {shape2} {act2}",
            "a {size1} {colour1} {shape1} {act_speed1} and a {size2} {colour2} {shape2} "
            "{act_speed2}",
            "a {colour1} {shape1} {doing1} and a {colour2} {shape2} {doing2} on a "
            "{background} background",
        ),
        "long": (
            "the video shows a {size1} {colour1} {shape1} that {act_speed1} and "
            "a {size2} {colour2} {shape2} that {act_speed2}. the background is plain {background}.",
            "on a {background} background, a {size1} {colour1} {shape1} {act_speed1} while "
            "a {size2} {colour2} {shape2} {act_speed2}.",
            "there are two shapes in the clip: a {size1} {colour1} {shape1} {doing_speed1} and "
            "a {size2} {colour2} {shape2} {doing_speed2}, in front of a {background} background.",
        ),
    },
}
LENGTHS: tuple[Length, ...] = get_args(Length)
# What proves the split of a scene.
SPLIT_ATTRIBUTES = ("colour", "shape", "motion")

_SLOT = re.compile(r"\{(colour|shape|size|act|doing|tag|background)(_speed)?([12]?)\}")
_MOTION_SLOTS: dict[str, tuple[Phrases, Phrases, str]] = {
    # slot: motion phrases, speed phrases, what stands between the two
    "act": (_ACT, _ADVERB, " "),
    "doing": (_DOING, _ADVERB, " "),
    "tag": (_TAG, _SPEED_TAG, ", "),
}


def templates(num_sprites: int, length: Length | None = None) -> tuple[str, ...]:
    """All templates for one or two sprites, optionally of one length."""
    groups = TEMPLATES[num_sprites]
    names = LENGTHS if length is None else (length,)
    return tuple(template for name in names for template in groups[name])


def caption(
    scene: Scene,
    seed: int = 0,
    *,
    variant: int | None = None,
    length: Length | None = None,
    states: Sequence[str] = (),
) -> str:
    """One caption of a scene: lower-case ASCII, at most 40 words.

    ``seed`` draws template and phrases, ``variant`` fixes the template (an index into
    ``templates``). Without ``length`` that is drawn first, each with chance 1/3. ``states`` are
    attributes that the caption has to state of each sprite.
    """
    # Python's own generator, so that the writer of captions needs no torch.
    draws = random.Random(derive_key(seed, "caption"))
    number = len(scene.sprites)
    if length is None and variant is None:
        length = draws.choice(LENGTHS)
    pool = [t for t in templates(number, length) if set(states) <= _stated_attributes(t)]
    if not pool:  # none of this length states them all
        pool = [t for t in templates(number) if set(states) <= _stated_attributes(t)]
    template = draws.choice(pool) if variant is None else pool[variant]
    facts = scene.facts()

    def fill(slot: re.Match[str]) -> str:
        kind, with_speed, number = slot.groups()
        if kind == "background":
            return scene.background
        sprite = facts.sprites[int(number) - 1].stated()
        if kind in ("colour", "shape"):
            return sprite[kind]
        if kind == "size":
            return draws.choice(_SIZE[sprite["size"]])
        motions, speeds, between = _MOTION_SLOTS[kind]
        text = draws.choice(motions[sprite["motion"]])
        if with_speed and "speed" in sprite:
            text += between + draws.choice(speeds[sprite["speed"]])
        return text

    return _SLOT.sub(fill, template).replace("a orange", "an orange")


def parse_caption(text: str) -> Facts:
    """Read a caption back into exactly the facts it states; UserError outside of the grammar."""
    # Templates are written with "a"; the only word that takes "an" is "orange".
    plain = text.replace("an orange", "a orange")
    for number, pattern in _patterns():
        match = pattern.fullmatch(plain)
        if match is not None and "a orange" not in text:
            return _read(match.groupdict(), number)
    raise UserError(
        "caption outside of the sandbox grammar",
        received=text,
        expected='text such as "a small red circle moves left slowly on a black background"',
        remedy="take one of benchmarks_data/sandbox_prompts, or of sandbox render",
    )


def prompts(split: Split, n: int, seed: int = 0) -> list[str]:
    """``n`` distinct prompts of a split; the first k do not depend on n."""
    texts: dict[str, None] = {}
    index = 0
    while len(texts) < n:
        scene = sample_scene(derive_key(seed, "prompts"), index, split)
        key = derive_key(seed, "prompt", index)
        texts.setdefault(caption(scene, key, states=SPLIT_ATTRIBUTES))
        index += 1
    return list(texts)


def _stated_attributes(template: str) -> set[str]:
    names: set[str] = set()
    for kind, with_speed, _ in _SLOT.findall(template):
        names.add("motion" if kind in _MOTION_SLOTS else kind)
        if with_speed:
            names.add("speed")
    return names


def _inverse(phrases: Phrases) -> dict[str, str]:
    return {phrase: value for value, options in phrases.items() for phrase in options}


def _alternatives(words: Sequence[str]) -> str:
    # Longest first: "moves left" must not be read as a shorter phrase that it begins with.
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


@cache
def _patterns() -> tuple[tuple[int, re.Pattern[str]], ...]:
    """Number of sprites and compiled expression of each template."""
    return tuple(
        (number, re.compile(_expression(template)))
        for number in TEMPLATES
        for template in templates(number)
    )


def _expression(template: str) -> str:
    seen: set[str] = set()
    parts: list[str] = []
    position = 0
    for slot in _SLOT.finditer(template):
        parts.append(re.escape(template[position : slot.start()]))
        position = slot.end()
        kind, with_speed, number = slot.groups()
        name = kind + number
        if name in seen:  # a repeated slot has to repeat its word
            parts.append(f"(?P={name})")
            continue
        seen.add(name)
        if kind in _MOTION_SLOTS:
            motions, speeds, between = _MOTION_SLOTS[kind]
            parts.append(f"(?P<{name}>{_alternatives(list(_inverse(motions)))})")
            if with_speed:
                adverbs = _alternatives(list(_inverse(speeds)))
                parts.append(f"(?:{between}(?P<speed{number}>{adverbs}))?")
            continue
        words = {
            "colour": list(COLOURS),
            "shape": list(SHAPES),
            "size": list(_inverse(_SIZE)),
            "background": list(BACKGROUNDS),
        }[kind]
        parts.append(f"(?P<{name}>{_alternatives(words)})")
    return "".join(parts) + re.escape(template[position:])


def _read(groups: Mapping[str, str | None], number: int) -> Facts:
    """Map the matched phrases of a caption back to facts."""
    sprites = []
    for label in ("1", "2")[:number]:
        words: dict[str, str] = {}
        for name, phrase in groups.items():
            if phrase is None or not name.endswith(label):
                continue
            kind = name[:-1]
            if kind in _MOTION_SLOTS:
                words["motion"] = _inverse(_MOTION_SLOTS[kind][0])[phrase]
            elif kind == "speed":
                words["speed"] = (_inverse(_ADVERB) | _inverse(_SPEED_TAG))[phrase]
            elif kind == "size":
                words["size"] = _inverse(_SIZE)[phrase]
            else:
                words[kind] = phrase
        sprites.append(SpriteFacts(**words))
    return Facts(sprites=tuple(sprites), background=groups.get("background"))
