"""Vocabulary of the sandbox world: what a caption can state about a clip, and the data split.

A fact is one word per attribute: shape, colour, size, motion and speed of a sprite, and the
background of the clip. ``Facts`` holds only what a caption states; ``None`` means unstated.
"""

from dataclasses import dataclass, fields
from typing import Literal

Split = Literal["train", "held_out"]
Rgb = tuple[float, float, float]

FRAME_PX = 64
NUM_FRAMES = 17
FPS = 8

SHAPES = ("circle", "square", "triangle", "cross")

# RGB in [0, 1]. The smallest distance between a sprite colour and a background is 0.41
# (purple on grey); tests/sandbox/test_scene.py holds that bound.
COLOURS: dict[str, Rgb] = {
    "red": (0.90, 0.12, 0.14),
    "green": (0.10, 0.72, 0.20),
    "blue": (0.15, 0.35, 0.98),
    "yellow": (0.98, 0.88, 0.08),
    "purple": (0.66, 0.16, 0.84),
    "cyan": (0.08, 0.85, 0.92),
    "orange": (1.00, 0.50, 0.05),
    "white": (0.98, 0.98, 0.98),
}

BACKGROUNDS: dict[str, Rgb] = {
    "black": (0.05, 0.05, 0.06),
    "grey": (0.40, 0.40, 0.42),
    "beige": (0.74, 0.65, 0.52),
    "navy": (0.07, 0.11, 0.28),
}

SIZES: dict[str, float] = {"small": 7.0, "large": 11.0}  # radius r, px

MOTIONS = ("left", "right", "up", "down", "diagonal", "circling", "still")

SPEEDS: dict[str, float] = {"slow": 1.0, "fast": 2.0}  # straight motions, px per frame

ORBIT_PX = 9.0  # radius of the orbit of a circling sprite
ORBIT_SPEEDS: dict[str, float] = {"slow": 0.24, "fast": 0.48}  # rad per frame: 0.6 or 1.2 turns

SPRITE_ATTRIBUTES = ("colour", "shape", "size", "motion", "speed")


@dataclass(frozen=True, kw_only=True, slots=True)
class SpriteFacts:
    """Facts a caption states about one sprite."""

    colour: str | None = None
    shape: str | None = None
    size: str | None = None
    motion: str | None = None
    speed: str | None = None

    def stated(self) -> dict[str, str]:
        """The stated facts only, attribute to word."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """Facts a caption states about a clip: one entry per sprite, and the background."""

    sprites: tuple[SpriteFacts, ...]
    background: str | None = None


def split_of(shape: str, colour: str, motion: str) -> Split:
    """The split that owns the combination (shape, colour, motion) of one sprite.

    A Latin design rather than a hash: 32 of the 224 combinations (14.3 %) are held out and every
    (shape, colour) pair loses exactly one motion, so that no pair of facts is unseen in training.
    """
    index = 2 * SHAPES.index(shape) + list(COLOURS).index(colour) + MOTIONS.index(motion)
    return "held_out" if index % len(MOTIONS) == 3 else "train"
