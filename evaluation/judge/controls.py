"""Controls: inputs made wrong on purpose, to see what a judge really looks at.

    shuffled_prompt  the caption of another prompt: text alignment must fall
    blank            a gray video: everything must fall
    frozen           the first frame repeated: motion quality must fall
    reversed         time runs backwards: shown, without an expectation
    repeat           the same input again: nothing may change

A judge whose scores hardly depend on the prompt (a known failure) looks fine in a correlation and
fails the first control.
"""

import dataclasses
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from longtake.evaluation.ratings import Sample, SampleList
from longtake.rewards.template import prompt_key
from longtake.runtime.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

Expectation = Literal["falls", "same", ""]

GRAY = 128
"""Level of every pixel of a blank video."""

CONTROLS = ("shuffled_prompt", "blank", "frozen", "reversed", "repeat")


def expected_change(control: str, dimension: str) -> Expectation:
    """What a good judge does under a control: its mean score falls, stays the same, or either."""
    if control == "repeat":
        return "same"
    if control == "blank":
        return "falls"
    wanted = {"shuffled_prompt": "text_alignment", "frozen": "motion_quality"}
    return "falls" if wanted.get(control) == dimension else ""


def blank(frames: "Tensor") -> "Tensor":
    """Gray frames in the shape of uint8 [T, 3, H, W]."""
    import torch

    return torch.full_like(frames, GRAY)


def frozen(frames: "Tensor") -> "Tensor":
    """The first frame, T times."""
    return frames[:1].expand_as(frames).contiguous()


def backwards(frames: "Tensor") -> "Tensor":
    """The frames in reverse order."""
    return frames.flip(0)


VIDEO_CONTROLS: "dict[str, Callable[[Tensor], Tensor]]" = {
    "blank": blank,
    "frozen": frozen,
    "reversed": backwards,
}
"""Controls that change the frames."""


def shuffle_captions(samples: SampleList, seed: int = 0) -> SampleList:
    """Every sample with the caption of another prompt; samples of one prompt get the same one.

    Raises:
        UserError: all captions are the same.
    """
    from longtake.runtime.rng import derive_key

    captions = {prompt_key(item.caption): item.caption for item in samples.samples}
    if len(captions) < 2:
        raise UserError(
            "captions cannot be shuffled",
            received=f"{len(captions)} different captions",
            expected="at least two prompts",
        )
    order = sorted(captions)
    random.Random(derive_key(seed, "shuffled captions")).shuffle(order)
    # One cycle through all of them: none stays in its place.
    following = dict(zip(order, order[1:] + order[:1], strict=True))

    def moved(item: Sample) -> Sample:
        return dataclasses.replace(item, caption=captions[following[prompt_key(item.caption)]])

    return dataclasses.replace(samples, samples=tuple(moved(item) for item in samples.samples))
