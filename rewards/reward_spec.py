"""What a learned reward is, besides weights, tokenizer and prompt: the content of ``reward.json``.

Every field here moves scores. The colour mode is one of them: a model that was trained on gray
clips gives other numbers on colour clips, and nothing else would tell.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from longtake.rewards.frames import GRAY_MODES, FrameSampler, GrayMode
from longtake.rewards.pixels import PixelConfig
from longtake.rewards.qwen2vl.config import RewardModelConfig
from longtake.rewards.template import Vision
from longtake.runtime.errors import CheckpointError, UserError

RewardKind = Literal["hpsv3", "videoreward"]
ColorMode = Literal["rgb"] | GrayMode
"""``rgb``, or the formula of :mod:`longtake.rewards.frames` by which clips are made gray."""
COLOR_MODES: tuple[ColorMode, ...] = ("rgb", *GRAY_MODES)
GRAY_ORDER = "before_resize"
"""Clips are made gray at their own size, then resized: the 8-bit rounding of the two differs."""
DIMENSIONS = ("VQ", "MQ", "TA")
"""VideoAlign's scores in the order of its reward tokens: visual quality, motion quality, text
alignment."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Normalization:
    """Scale of a score: (raw - mean) / std. It cancels in advantages normalised by group."""

    mean: float
    """Subtracted from the raw score."""
    std: float
    """Divides it; positive."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise UserError(
                "score normalisation cannot be used",
                received=f"mean={self.mean}, std={self.std}",
                expected="a finite mean and a positive standard deviation",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardSpec:
    """Parameters of one learned reward.

    Raises:
        UserError: parts that do not fit each other.
    """

    kind: RewardKind
    """``hpsv3`` scores still frames, ``videoreward`` (VideoAlign) scores clips."""
    model: RewardModelConfig
    """Backbone, head, reward token ids, rotary precision, LoRA."""
    reward_tokens: tuple[str, ...]
    """Text of the reward tokens, in the order of their ids in ``model``."""
    pixels: PixelConfig
    """How frames become patches."""
    sampler: FrameSampler | None = None
    """How frames of a clip are chosen; None for a reward of still frames."""
    color_mode: ColorMode = "rgb"
    """What the weights were trained on."""
    normalization: Mapping[str, Normalization] = dataclasses.field(default_factory=dict)
    """By dimension (VQ, MQ, TA); a dimension that is not there keeps its raw scores."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "reward_tokens", tuple(self.reward_tokens))
        clips = self.kind == "videoreward"
        for good, received, expected in (
            (self.kind in get_args(RewardKind), f"kind {self.kind}", "hpsv3 or videoreward"),
            (
                (self.model.head == "ranknet") != clips,
                f"head {self.model.head} for {self.kind}",
                "a ranknet head for hpsv3, a linear one for videoreward",
            ),
            (
                (self.sampler is not None) == clips,
                f"sampler {self.sampler} for {self.kind}",
                "a frame sampler for videoreward and none for hpsv3",
            ),
            (
                len(self.reward_tokens) == len(self.model.reward_token_ids),
                f"{self.reward_tokens} for ids {self.model.reward_token_ids}",
                "one token per id",
            ),
            (
                self.color_mode in COLOR_MODES,
                f"color mode {self.color_mode}",
                ", ".join(COLOR_MODES),
            ),
            (
                set(self.normalization) <= (set(DIMENSIONS) if clips else set()),
                f"normalisation of {', '.join(self.normalization)} for {self.kind}",
                f"{', '.join(DIMENSIONS)} for videoreward, none for hpsv3",
            ),
        ):
            if not good:
                raise UserError(
                    "the parts of the reward do not fit", received=received, expected=expected
                )

    @property
    def vision(self) -> Vision:
        """Whether the prompt holds an image or a video."""
        return "image" if self.kind == "hpsv3" else "video"

    def require_color_mode(self, wanted: ColorMode, *, force: bool = False) -> None:
        """Refuse to score in another colour mode than the weights were trained in.

        Args:
            wanted: mode in which clips are about to be scored.
            force: score all the same; the caller reports the mode in its fingerprint.

        Raises:
            UserError: the modes differ and ``force`` is False.
        """
        if wanted not in COLOR_MODES:
            raise UserError(
                "colour mode is unknown", received=wanted, expected=", ".join(COLOR_MODES)
            )
        if wanted != self.color_mode and not force:
            raise UserError(
                "the reward was trained in another colour mode",
                received=f"scoring in {wanted}",
                expected=f"{self.color_mode}, as its reward.json records",
                remedy=f"score in {self.color_mode}, fine-tune it in {wanted}, or force the mode",
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON types only; :meth:`from_dict` gives back an equal spec."""
        color: dict[str, str] = {"mode": "rgb"}
        if self.color_mode != "rgb":
            color = {"mode": "gray", "formula": self.color_mode, "order": GRAY_ORDER}
        return {
            "kind": self.kind,
            "model": self.model.to_dict(),
            "reward_tokens": list(self.reward_tokens),
            "pixels": dataclasses.asdict(self.pixels),
            "sampler": None if self.sampler is None else dataclasses.asdict(self.sampler),
            "color": color,
            "normalization": {k: dataclasses.asdict(v) for k, v in self.normalization.items()},
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], source: Path) -> "RewardSpec":
        """The spec that :meth:`to_dict` wrote.

        Raises:
            CheckpointError: missing, unknown or unusable fields; ``source`` is named.
        """
        known = {field.name for field in dataclasses.fields(cls)} - {"color_mode"} | {"color"}
        if fields.keys() != known:
            raise CheckpointError(
                "reward.json has wrong fields",
                received=f"{source}: missing {sorted(known - fields.keys())}, "
                f"unknown {sorted(fields.keys() - known)}",
                expected=", ".join(sorted(known)),
                remedy="import the reward again",
            )
        try:
            sampler = fields["sampler"]
            return cls(
                kind=fields["kind"],
                model=RewardModelConfig.from_dict(fields["model"]),
                reward_tokens=tuple(fields["reward_tokens"]),
                pixels=PixelConfig(**fields["pixels"]),
                sampler=None if sampler is None else FrameSampler(**sampler),
                color_mode=_color_mode(fields["color"]),
                normalization={k: Normalization(**v) for k, v in fields["normalization"].items()},
            )
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f"reward.json cannot be used: {error}",
                received=str(source),
                expected="the fields as `longtake rewards import` writes them",
                remedy="import the reward again",
            ) from error


def _color_mode(fields: Mapping[str, Any]) -> ColorMode:
    if fields == {"mode": "rgb"}:
        return "rgb"
    for formula in GRAY_MODES:
        if fields == {"mode": "gray", "formula": formula, "order": GRAY_ORDER}:
            return formula
    raise UserError(
        "colour mode is unknown",
        received=str(fields),
        expected=f'{{"mode": "rgb"}}, or mode gray, formula {", ".join(GRAY_MODES)}, '
        f"order {GRAY_ORDER}",
    )
