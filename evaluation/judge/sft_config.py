"""Settings of the training of a judge that answers in text. This module does not import torch."""

from dataclasses import dataclass

from longtake.evaluation.judge.train_config import JudgeTrainingConfig
from longtake.runtime.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerativeTrainingConfig(JudgeTrainingConfig):
    """Supervised fine-tuning on answers; the other settings mean what they mean there."""

    base: str = ""
    """Directory of a Qwen2-VL, Qwen2.5-VL or Qwen3-VL instruction-tuned checkpoint."""
    train_vision: bool = False
    """Train the vision tower too: with LoRA of its own, or fully."""
    learning_rate: float = 1e-4
    """AdamW, reached after the warm-up, > 0. For method full some ten times less."""
    updates: int = 500
    """Optimiser steps, >= 1. An update draws a rating of each clip, so that an epoch per rater
    shows them all."""
    micro_batch: int = 2
    """Clips per forward, >= 1. Changes memory and speed, not the update."""
    eval_every: int = 50
    """Updates between evaluations on the calibration part, >= 1; a checkpoint at each."""
    target_fps: float = 2.0
    """Frames shown per second of a clip, > 0; at least four frames of a clip."""
    max_frames: int = 64
    """Most frames shown of a clip, even, >= 4."""
    max_frame_pixels: int = 256 * 28 * 28
    """Larger frames are scaled down to this area, pixels >= 784; the checkpoint's own limits hold
    after that."""

    def __post_init__(self) -> None:
        """Reject values out of range."""
        JudgeTrainingConfig.__post_init__(self)
        for name, good, expected in (
            ("target_fps", self.target_fps > 0, "> 0"),
            ("max_frames", self.max_frames >= 4 and self.max_frames % 2 == 0, "even, >= 4"),
            ("max_frame_pixels", self.max_frame_pixels >= 28 * 28, f">= {28 * 28}"),
        ):
            if not good:
                raise ConfigError(
                    f"{name} cannot be used", received=getattr(self, name), expected=expected
                )
