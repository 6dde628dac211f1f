"""Every setting of the training of a judge, with unit and range. This module does not import torch.

The report (section 5.1) says that a VLM was trained on the human ratings and no more; the defaults
are those of the public video reward that our backbone comes from, where they carry over.
"""

from dataclasses import dataclass, field

from longtake.evaluation.judge.calibration import CalibrationSettings
from longtake.evaluation.judge.rated_clips import JUDGED
from longtake.rewards.train_config import METHODS, PRECISIONS, SCHEDULES, LoraSettings
from longtake.runtime.errors import ConfigError

OPTIMIZERS = ("adamw", "muon")


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeDataConfig:
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
    test_share: float = 0.15
    """Expected share of the prompts that test, 0 to 1."""
    calibration_share: float = 0.1
    """Expected share of the prompts that choose the best update and fit the calibration, in
    (0, 1)."""
    exclude_raters: tuple[str, ...] = ()
    """Raters whose ratings are set aside."""
    cache_mib: int = 4096
    """Memory for resized frames, so that a clip is decoded once, MiB >= 0; taken as it fills."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeTrainingConfig:
    """Training of the regression of ratings."""

    base: str = ""
    """Reward directory of kind videoreward to start from: model, prompt and preprocessing."""
    data: JudgeDataConfig = field(default_factory=JudgeDataConfig)
    """The ratings."""
    dimensions: tuple[str, ...] = JUDGED
    """What is learned (report section 5.1)."""
    calibration: CalibrationSettings = field(default_factory=CalibrationSettings)
    """How scores are mapped to the raters' scale after training."""
    method: str = "lora"
    """lora | full: how the language model is trained."""
    lora: LoraSettings = field(default_factory=LoraSettings)
    """Settings of method lora."""
    train_vision: bool = True
    """Train the vision tower."""
    optimizer: str = "adamw"
    """adamw | muon: muon trains the hidden matrices, AdamW the rest, at the same rate."""
    learning_rate: float = 2e-5
    """Reached after the warm-up, > 0."""
    schedule: str = "cosine"
    """constant | cosine: after the warm-up; cosine falls to 0 at the last update."""
    warmup_share: float = 0.05
    """Share of the updates in which the rate rises linearly, 0 <= value < 1."""
    weight_decay: float = 0.0
    """Decoupled, >= 0."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm, > 0."""
    updates: int = 2000
    """Optimiser steps, >= 1."""
    batch_clips: int = 32
    """Clips per update, a multiple of ``micro_batch``."""
    micro_batch: int = 4
    """Clips per forward, >= 1. Changes memory and speed, not the update."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: slower, much less memory."""
    eval_every: int = 100
    """Updates between evaluations on the calibration part, >= 1; a checkpoint at each."""
    precision: str = "bfloat16"
    """float32 | bfloat16: of the frozen weights and, by autocast, of the products."""
    workers: int = 2
    """Processes that decode and resize clips ahead of a GPU, >= 1; on a CPU a thread does."""
    seed: int = 0
    """Names every draw: the split, the order, the LoRA and dropout."""
    trackers: tuple[str, ...] = ()
    """Trackers beside metrics.jsonl: tensorboard | wandb | trackio."""

    def __post_init__(self) -> None:
        """Reject values out of range."""
        for name, good, expected in (
            ("learning_rate", 0 < self.learning_rate < 1, "0 < value < 1"),
            ("warmup_share", 0 <= self.warmup_share < 1, "0 <= value < 1"),
            ("weight_decay", self.weight_decay >= 0, ">= 0"),
            ("max_grad_norm", self.max_grad_norm > 0, "> 0"),
            ("updates", self.updates >= 1, ">= 1"),
            ("micro_batch", self.micro_batch >= 1, ">= 1"),
            ("eval_every", self.eval_every >= 1, ">= 1"),
            ("workers", self.workers >= 1, ">= 1"),
            ("optimizer", self.optimizer in OPTIMIZERS, " | ".join(OPTIMIZERS)),
            ("method", self.method in METHODS, " | ".join(METHODS)),
            ("schedule", self.schedule in SCHEDULES, " | ".join(SCHEDULES)),
            ("precision", self.precision in PRECISIONS, " | ".join(PRECISIONS)),
            (
                "batch_clips",
                self.batch_clips >= 1 and self.batch_clips % max(self.micro_batch, 1) == 0,
                f"a multiple of micro_batch {self.micro_batch}",
            ),
        ):
            if not good:
                raise ConfigError(
                    f"{name} cannot be used", received=getattr(self, name), expected=expected
                )
