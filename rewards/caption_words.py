"""Word table of the analytic rewards: from caption words to colours, sizes and motions.

A reader of loose words, not a parser: each known word adds a fact to the sprite it stands next to,
unknown words are skipped and a fact that is not found stays None. It therefore also reads captions
outside of the sandbox grammar, and misreads some that a parser would not. The table belongs to the
rewards; the sandbox has its own, and neither imports the other.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

Rgb = tuple[float, float, float]

COLOURS: Mapping[str, Rgb] = {
    "red": (0.90, 0.12, 0.14),
    "green": (0.10, 0.72, 0.20),
    "blue": (0.15, 0.35, 0.98),
    "yellow": (0.98, 0.88, 0.08),
    "purple": (0.66, 0.16, 0.84),
    "cyan": (0.08, 0.85, 0.92),
    "orange": (1.00, 0.50, 0.05),
    "white": (0.98, 0.98, 0.98),
}
"""Sprite colours, RGB in [0, 1]."""

BACKGROUNDS: Mapping[str, Rgb] = {
    "black": (0.05, 0.05, 0.06),
    "grey": (0.40, 0.40, 0.42),
    "beige": (0.74, 0.65, 0.52),
    "navy": (0.07, 0.11, 0.28),
}
"""Background colours, RGB in [0, 1]."""

_SHAPES = {
    "circle": "circle", "disc": "circle", "disk": "circle", "ball": "circle",
    "square": "square", "triangle": "triangle", "cross": "cross", "plus": "cross",
}  # fmt: skip
_SIZES = {
    "small": "small", "little": "small", "tiny": "small",
    "large": "large", "big": "large", "huge": "large",
}  # fmt: skip
_SPEEDS = {
    "slow": "slow", "slowly": "slow",
    "fast": "fast", "quick": "fast", "quickly": "fast", "high": "fast", "rapidly": "fast",
}  # fmt: skip
_MOTIONS = {
    "left": "left", "right": "right",
    "up": "up", "upwards": "up", "rises": "up", "rising": "up",
    "down": "down", "downwards": "down", "falls": "down", "falling": "down",
    "diagonal": "diagonal", "diagonally": "diagonal",
    "circling": "circling", "circles": "circling", "orbits": "circling",
    "still": "still", "not": "still", "static": "still", "motionless": "still",
}  # fmt: skip
_BACKGROUND_WORDS = {"gray": "grey"} | {word: word for word in BACKGROUNDS}


@dataclass(kw_only=True)
class SpriteWords:
    """What the words say about one sprite; None where they say nothing."""

    colour: str | None = None
    shape: str | None = None
    size: str | None = None
    motion: str | None = None
    speed: str | None = None

    def is_empty(self) -> bool:
        """Whether no word was found."""
        return not any((self.colour, self.shape, self.size, self.motion, self.speed))


@dataclass(kw_only=True)
class CaptionWords:
    """What the words of a caption say about a clip."""

    sprites: list[SpriteWords] = field(default_factory=list)
    background: str | None = None


def read_caption(caption: str) -> CaptionWords:
    """Collect the known words of a caption.

    Size and colour words belong to the next shape word, or to the last sprite after "is".
    Motion and speed words belong to the last sprite.
    """
    words = re.findall(r"[a-z]+", caption.lower())
    found = CaptionWords()
    pending = SpriteWords()
    for index, word in enumerate(words):
        before = words[max(index - 2, 0) : index]
        sprites = found.sprites
        if word in _BACKGROUND_WORDS:
            found.background = found.background or _BACKGROUND_WORDS[word]
        elif word in _SHAPES and before != ["in", "a"]:
            shape = _SHAPES[word]
            # "the circle is red" speaks of the circle that was introduced before.
            if sprites and before[-1:] == ["the"] and sprites[-1].shape == shape:
                continue
            pending.shape = shape
            sprites.append(pending)
            pending = SpriteWords()
        elif word in COLOURS or word in _SIZES:
            if words[index + 1 : index + 2] == ["background"]:
                continue
            owner = sprites[-1] if sprites and before[-1:] == ["is"] else pending
            if word in COLOURS:
                owner.colour = owner.colour or word
            else:
                owner.size = owner.size or _SIZES[word]
        elif word in _SPEEDS:
            owner = sprites[-1] if sprites else pending
            owner.speed = owner.speed or _SPEEDS[word]
        elif word in _MOTIONS or word in _SHAPES:
            owner = sprites[-1] if sprites else pending
            owner.motion = owner.motion or _MOTIONS.get(word, "circling")  # "in a circle"
    if not pending.is_empty() and pending.colour:
        found.sprites.append(pending)
    return found
