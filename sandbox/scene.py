"""Scenes: the full description of one sandbox clip, sampled by counter-based keys.

Every scene is named by (seed, index): no generator is shared between scenes, so scene 17 is the
same whether it is drawn alone, in a batch or on another machine.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from numpy.random import Philox

from longtake.runtime.rng import derive_key
from longtake.sandbox.facts import (
    BACKGROUNDS,
    COLOURS,
    FRAME_PX,
    MOTIONS,
    NUM_FRAMES,
    ORBIT_PX,
    ORBIT_SPEEDS,
    SHAPES,
    SIZES,
    SPEEDS,
    Facts,
    Split,
    SpriteFacts,
    split_of,
)

TWO_SPRITE_SHARE = 0.2
LANE_MOTIONS = ("left", "right", "still")  # motions that stay inside an upper or lower lane

# Distance from the centre of a shape to its farthest point, in units of its radius.
REACH: dict[str, float] = {"circle": 1.0, "square": 1.25, "triangle": 1.3, "cross": 1.15}

_MARGIN_PX = 1.0  # keeps the anti-aliased rim inside the frame
_HEADINGS = {"right": 0.0, "down": 0.5 * math.pi, "left": math.pi, "up": 1.5 * math.pi}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sprite:
    """One moving shape. Pixels: x to the right, y downwards, the frame is 64 x 64 px."""

    shape: str
    colour: str
    size: str
    motion: str
    speed: str | None
    """None exactly when the motion is "still"."""
    anchor: tuple[float, float]
    """Centre at frame 0 (px); for a circling sprite the centre of its orbit."""
    phase: float
    """Heading of a straight motion, or the angle on the orbit at frame 0 (rad)."""
    spin: int = 1
    """Sense of a circling motion: +1 clockwise on the screen, -1 counter-clockwise."""

    @property
    def radius_px(self) -> float:
        """Nominal radius r of the shape, px."""
        return SIZES[self.size]

    def centres(self, num_frames: int = NUM_FRAMES) -> list[tuple[float, float]]:
        """Centre (x, y) in px at each frame."""
        x, y = self.anchor
        if self.speed is None:
            return [(x, y)] * num_frames
        if self.motion == "circling":
            rate = self.spin * ORBIT_SPEEDS[self.speed]
            angles = [self.phase + rate * frame for frame in range(num_frames)]
            return [(x + ORBIT_PX * math.cos(a), y + ORBIT_PX * math.sin(a)) for a in angles]
        step = SPEEDS[self.speed]
        dx, dy = step * math.cos(self.phase), step * math.sin(self.phase)
        return [(x + dx * frame, y + dy * frame) for frame in range(num_frames)]

    def facts(self) -> SpriteFacts:
        """Every fact that is true of this sprite."""
        return SpriteFacts(
            colour=self.colour,
            shape=self.shape,
            size=self.size,
            motion=self.motion,
            speed=self.speed,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """One clip: one sprite, or two in an upper and a lower lane, on a plain background."""

    sprites: tuple[Sprite, ...]
    background: str

    def facts(self) -> Facts:
        """Every fact that is true of this scene."""
        return Facts(
            sprites=tuple(sprite.facts() for sprite in self.sprites), background=self.background
        )


class _Draws:
    """A stream of uniform numbers named by one key; blocks keep a draw below a microsecond."""

    def __init__(self, key: int) -> None:
        # Counter-based: scene i costs the same whether or not the scenes before it were drawn.
        self._bits = Philox(key=key)
        self._block: list[int] = []

    def uniform(self) -> float:
        if not self._block:
            self._block = self._bits.random_raw(24).tolist()
        return (self._block.pop() >> 11) * 2.0**-53

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.uniform()

    def pick(self, options: Sequence[str]) -> str:
        return options[int(self.uniform() * len(options))]


def sample_scene(seed: int, index: int, split: Split | None = None) -> Scene:
    """The scene named by (seed, index), about 20 us.

    With a split the combination (shape, colour, motion) of **every** sprite belongs to it.
    """
    assert split in (None, "train", "held_out"), split  # else no draw would ever fit
    # The order of the draws below names every scene that was ever trained on: do not change it.
    draws = _Draws(derive_key(seed, "scene", index))
    background = draws.pick(tuple(BACKGROUNDS))
    if draws.uniform() >= TWO_SPRITE_SHARE:
        lane = (0.0, float(FRAME_PX))
        return Scene(
            sprites=(_sample_sprite(draws, MOTIONS, (), lane, split),), background=background
        )
    middle = FRAME_PX / 2
    upper = _sample_sprite(draws, LANE_MOTIONS, (), (0.0, middle), split)
    lower = _sample_sprite(draws, LANE_MOTIONS, (upper.colour,), (middle, float(FRAME_PX)), split)
    return Scene(sprites=(upper, lower), background=background)


def sample_scenes(seed: int, start: int, count: int, split: Split | None = None) -> list[Scene]:
    """Scenes ``start`` to ``start + count - 1`` of ``seed``."""
    return [sample_scene(seed, index, split) for index in range(start, start + count)]


def _sample_sprite(
    draws: _Draws,
    motions: Sequence[str],
    taken_colours: tuple[str, ...],
    lane: tuple[float, float],
    split: Split | None,
) -> Sprite:
    """One sprite whose whole path stays inside the frame and inside the lane (y range, px)."""
    while True:
        shape, colour = draws.pick(SHAPES), draws.pick(tuple(COLOURS))
        motion = draws.pick(motions)
        if colour in taken_colours or (split and split_of(shape, colour, motion) != split):
            continue
        break
    size = draws.pick(tuple(SIZES))
    speed = None if motion == "still" else draws.pick(tuple(SPEEDS))
    phase = draws.uniform() * 2 * math.pi
    spin = 1 if draws.uniform() < 0.5 else -1
    if motion in _HEADINGS:
        phase = _HEADINGS[motion]
    elif motion == "diagonal":
        phase = (math.floor(phase / (0.5 * math.pi)) + 0.5) * 0.5 * math.pi

    travel_x = travel_y = 0.0  # displacement of the centre from the anchor over the clip
    around = 0.0  # free space needed on every side of the anchor
    if motion == "circling":
        around = ORBIT_PX
    elif speed is not None:
        length = SPEEDS[speed] * (NUM_FRAMES - 1)
        travel_x, travel_y = length * math.cos(phase), length * math.sin(phase)
    around += REACH[shape] * SIZES[size] + _MARGIN_PX
    # The anchor is drawn where the whole path fits, so no scene is thrown away.
    x = draws.between(around + max(0.0, -travel_x), FRAME_PX - around - max(0.0, travel_x))
    y = draws.between(lane[0] + around + max(0.0, -travel_y), lane[1] - around - max(0.0, travel_y))
    return Sprite(
        shape=shape,
        colour=colour,
        size=size,
        motion=motion,
        speed=speed,
        anchor=(x, y),
        phase=phase,
        spin=spin,
    )
