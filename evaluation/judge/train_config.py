"""Every setting of the training of a judge, with unit and range. This module does not import torch.

The report (section 5.1) says that a VLM was trained on the human ratings and no more; the defaults
are those of the public video reward that our backbone comes from, where they carry over.
"""

from typing import Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from longtake.evaluation.judge.calibration import CalibrationSettings
from longtake.evaluation.judge.rated_clips import JUDGED
from longtake.rewards.train_config import LoraSettings, Method, Precision, Schedule
from longtake.runtime.config import Config
from longtake.runtime.errors import ConfigError


class JudgeDataConfig(Config):
    """Which ratings are learned and how they are split."""

    ratings: tuple[str, ...] = ()
    """Logs (.jsonl) or sheets (.csv) of ratings; without ``samples`` one CSV of clips: path,
    prompt, dimension, rating, optionally rater, model, cluster."""
    samples: str | None = None
    """List of samples (.csv or .jsonl) with caption and video."""
    held_out_models: tuple[str, ...] = ()
    """Models that are never trained on: they test how the judge does on a new generator."""
    test_prompts: str | None = None
    """Text file with a prompt per line: prompts that test whatever the draw; with it ``test_share``
    may be 0."""
    test_share: float = Field(0.15, ge=0, lt=1)
    """Expected share of the prompts that test, 0 to 1."""
    calibration_share: float = Field(0.1, gt=0, lt=1)
    """Expected share of the prompts that choose the best update and fit the calibration, in
    (0, 1)."""
    exclude_raters: tuple[str, ...] = ()
    """Raters whose ratings are set aside."""
    cache_mib: NonNegativeInt = 4096
    """Memory for resized frames, so that a clip is decoded once, MiB >= 0; taken as it fills."""


class JudgeTrainingConfig(Config):
    """Training of the regression of ratings."""

    base: str = ""
    """Reward directory of kind videoreward to start from: model, prompt and preprocessing."""
    data: JudgeDataConfig = JudgeDataConfig()
    """The ratings."""
    dimensions: tuple[str, ...] = JUDGED
    """What is learned (report section 5.1)."""
    calibration: CalibrationSettings = CalibrationSettings()
    """How scores are mapped to the raters' scale after training."""
    method: Method = "lora"
    """lora | full: how the language model is trained."""
    lora: LoraSettings = LoraSettings()
    """Settings of method lora."""
    train_vision: bool = True
    """Train the vision tower."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw | muon: muon trains the hidden matrices, AdamW the rest, at the same rate."""
    learning_rate: float = Field(2e-5, gt=0, lt=1)
    """Reached after the warm-up, > 0."""
    schedule: Schedule = "cosine"
    """constant | cosine: after the warm-up; cosine falls to 0 at the last update."""
    warmup_share: float = Field(0.05, ge=0, lt=1)
    """Share of the updates in which the rate rises linearly, 0 <= value < 1."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled, >= 0."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this norm, > 0."""
    updates: PositiveInt = 2000
    """Optimiser steps, >= 1."""
    batch_clips: PositiveInt = 32
    """Clips per update, a multiple of ``micro_batch``."""
    micro_batch: PositiveInt = 4
    """Clips per forward, >= 1. Changes memory and speed, not the update."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: slower, much less memory."""
    eval_every: PositiveInt = 100
    """Updates between evaluations on the calibration part, >= 1; a checkpoint at each."""
    precision: Precision = "bfloat16"
    """float32 | bfloat16: of the frozen weights and, by autocast, of the products."""
    workers: PositiveInt = 2
    """Processes that decode and resize clips ahead of a GPU, >= 1; on a CPU a thread does."""
    seed: int = 0
    """Names every draw: the split, the order, the LoRA and dropout."""
    trackers: tuple[str, ...] = ()
    """Trackers beside metrics.jsonl: tensorboard | wandb | trackio."""

    @model_validator(mode="after")
    def _batch_is_cut(self) -> Self:
        if self.batch_clips % self.micro_batch:
            raise ConfigError(
                "batch_clips cannot be cut into micro-batches",
                received=f"batch_clips {self.batch_clips}, micro_batch {self.micro_batch}",
                expected="a multiple",
            )
        return self
