"""Every setting of the training of a judge; torch is not imported.

The report (section 5.1) says that a VLM was trained on the human ratings and no more; the defaults
are those of the public video reward that our backbone comes from, where they carry over.
"""

from typing import Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from longtake.evaluation.judge.calibration import CalibrationSettings
from longtake.evaluation.judge.data import JUDGED
from longtake.rewards.train_config import HeadTrainingConfig, Schedule
from longtake.runtime.config import Config
from longtake.runtime.errors import ConfigError


class JudgeDataConfig(Config):
    """Which ratings are learned and how they are split."""

    ratings: tuple[str, ...] = ()
    """Logs (.jsonl) or sheets (.csv) of ratings."""
    samples: str | None = None
    """List of samples (.csv or .jsonl) with caption and video."""
    held_out_models: tuple[str, ...] = ()
    """Models that are never trained on: they test how the judge does on a new generator."""
    test_prompts: str | None = None
    """Text file with a prompt per line: prompts that test whatever the draw; with it ``test_share``
    may be 0."""
    test_share: float = Field(0.15, ge=0, lt=1)
    """Expected share of the prompts that test."""
    calibration_share: float = Field(0.1, gt=0, lt=1)
    """Expected share of the prompts that choose the best update and fit the calibration."""
    exclude_raters: tuple[str, ...] = ()
    """Raters whose ratings are set aside."""
    cache_mib: NonNegativeInt = 4096
    """Memory for resized frames, so that a clip is decoded once, MiB; taken as it fills."""


class JudgeTrainingConfig(HeadTrainingConfig):
    """Training of the regression of ratings."""

    data: JudgeDataConfig = JudgeDataConfig()
    """The ratings."""
    dimensions: tuple[str, ...] = JUDGED
    """What is learned (report section 5.1)."""
    calibration: CalibrationSettings = CalibrationSettings()
    """How scores are mapped to the raters' scale after training."""
    learning_rate: float = Field(2e-5, gt=0, lt=1)
    """Reached after the warm-up."""
    schedule: Schedule = "cosine"
    """The rate after the warm-up; cosine falls to 0 at the last update."""
    updates: PositiveInt = 2000
    """Optimiser steps."""
    batch_clips: PositiveInt = 32
    """Clips per update, a multiple of ``micro_batch``."""
    micro_batch: PositiveInt = 4
    """Clips per forward. Changes memory and speed, not the update."""
    workers: PositiveInt = 2
    """Processes that decode and resize clips ahead of a GPU."""

    @model_validator(mode="after")
    def _batch_is_cut(self) -> Self:
        if self.batch_clips % self.micro_batch:
            raise ConfigError(
                "batch_clips cannot be cut into micro-batches",
                received=f"batch_clips {self.batch_clips}, micro_batch {self.micro_batch}",
                expected="a multiple",
            )
        return self


class GenerativeTrainingConfig(JudgeTrainingConfig):
    """Supervised fine-tuning on answers; the other settings mean what they mean there."""

    base: str = ""
    """Directory of a Qwen2-VL, Qwen2.5-VL or Qwen3-VL instruction-tuned checkpoint."""
    train_vision: bool = False
    """Train the vision tower too: with LoRA of its own, or fully."""
    optimizer: Literal["adamw"] = "adamw"
    """TRL's."""
    patience: Literal[0] = 0
    """All updates are made."""
    learning_rate: float = Field(1e-4, gt=0, lt=1)
    """Reached after the warm-up. For method full some ten times less."""
    updates: PositiveInt = 500
    """Optimiser steps. An update draws a rating of each clip, so that an epoch per rater shows them
    all."""
    micro_batch: PositiveInt = 2
    """Clips per forward. Changes memory and speed, not the update."""
    eval_every: PositiveInt = 50
    """Updates between evaluations on the calibration part; a checkpoint at each."""
    target_fps: PositiveFloat = 2.0
    """Frames shown per second of a clip; at least four frames of a clip."""
    max_frames: int = Field(64, ge=4, multiple_of=2)
    """Most frames shown of a clip."""
    max_frame_pixels: int = Field(256 * 28 * 28, ge=28 * 28)
    """Larger frames are scaled down to this area, pixels; the checkpoint's own limits hold after
    that."""
