"""What a learned reward is, besides weights, tokenizer and prompt: the content of ``reward.json``.

Every field here moves scores. The colour mode is one of them: a model that was trained on gray
clips gives other numbers on colour clips, and nothing else would tell.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_serializer, model_validator

from longtake.rewards.frames import GRAY_MODES, FrameSampler, GrayMode
from longtake.rewards.pixels import PixelConfig
from longtake.rewards.qwen2vl.config import RewardModelConfig
from longtake.runtime.config import Config

RewardKind = Literal["hpsv3", "videoreward"]
Vision = Literal["image", "video"]
ColorMode = Literal["rgb"] | GrayMode
"""``rgb``, or the formula of :mod:`longtake.rewards.frames` by which clips are made gray."""
COLOR_MODES: tuple[ColorMode, ...] = ("rgb", *GRAY_MODES)
DIMENSIONS = ("VQ", "MQ", "TA")
"""VideoAlign's scores in the order of its reward tokens: visual quality, motion quality, text
alignment."""


class Normalization(Config):
    """Scale of a score: (raw - mean) / std. It cancels in advantages normalised by group."""

    mean: float
    std: float = Field(gt=0)


class RewardSpec(Config):
    """Parameters of one learned reward."""

    kind: RewardKind
    """``hpsv3`` scores still frames, ``videoreward`` (VideoAlign) scores clips."""
    model: RewardModelConfig
    reward_tokens: tuple[str, ...]
    """Text of the reward tokens, in the order of their ids in ``model``."""
    pixels: PixelConfig
    sampler: FrameSampler | None = None
    """How frames of a clip are chosen; None for a reward of still frames."""
    color_mode: ColorMode = "rgb"
    """What the weights were trained on."""
    normalization: dict[str, Normalization] = {}
    """By dimension (VQ, MQ, TA); a dimension that is not there keeps its raw scores."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        clips = self.kind == "videoreward"
        if (
            (self.model.head == "ranknet") == clips
            or (self.sampler is None) == clips
            or len(self.reward_tokens) != len(self.model.reward_token_ids)
            or not set(self.normalization) <= (set(DIMENSIONS) if clips else set())
        ):
            raise ValueError(
                "the parts of the reward do not fit: expected are one reward token per id; a "
                "linear head, a frame sampler for videoreward and normalisation of "
                f"{', '.join(DIMENSIONS)}; or a ranknet head, no sampler and none for hpsv3"
            )
        return self

    @property
    def vision(self) -> Vision:
        """Whether the prompt holds an image or a video."""
        return "image" if self.kind == "hpsv3" else "video"

    # The file says {"mode": "gray", "formula": ..., "order": "before_resize"}: clips are made gray
    # at their own size, then resized, and the 8-bit rounding of the two orders differs.
    @model_validator(mode="before")
    @classmethod
    def _from_json(cls, record: Any) -> Any:
        if not isinstance(record, Mapping) or "color" not in record:
            return record
        modes = [mode for mode in COLOR_MODES if _color(mode) == record["color"]]
        if not modes:
            raise ValueError(f"color: {' or '.join(str(_color(mode)) for mode in COLOR_MODES)}")
        return {k: v for k, v in record.items() if k != "color"} | {"color_mode": modes[0]}

    @model_serializer(mode="wrap")
    def _to_json(self, write: Callable[[Self], dict[str, Any]]) -> dict[str, Any]:
        record = write(self)
        return {**record, "color": _color(record.pop("color_mode"))}


def _color(mode: ColorMode) -> dict[str, str]:
    if mode == "rgb":
        return {"mode": "rgb"}
    return {"mode": "gray", "formula": mode, "order": "before_resize"}
