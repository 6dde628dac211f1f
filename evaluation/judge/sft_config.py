"""Settings of the training of a judge that answers in text. This module does not import torch."""

from pydantic import Field, PositiveFloat, PositiveInt

from longtake.evaluation.judge.train_config import JudgeTrainingConfig


class GenerativeTrainingConfig(JudgeTrainingConfig):
    """Supervised fine-tuning on answers; the other settings mean what they mean there."""

    base: str = ""
    """Directory of a Qwen2-VL, Qwen2.5-VL or Qwen3-VL instruction-tuned checkpoint."""
    train_vision: bool = False
    """Train the vision tower too: with LoRA of its own, or fully."""
    learning_rate: float = Field(1e-4, gt=0, lt=1)
    """AdamW, reached after the warm-up, > 0. For method full some ten times less."""
    updates: PositiveInt = 500
    """Optimiser steps, >= 1. An update draws a rating of each clip, so that an epoch per rater
    shows them all."""
    micro_batch: PositiveInt = 2
    """Clips per forward, >= 1. Changes memory and speed, not the update."""
    eval_every: PositiveInt = 50
    """Updates between evaluations on the calibration part, >= 1; a checkpoint at each."""
    target_fps: PositiveFloat = 2.0
    """Frames shown per second of a clip, > 0; at least four frames of a clip."""
    max_frames: int = Field(64, ge=4, multiple_of=2)
    """Most frames shown of a clip, even, >= 4."""
    max_frame_pixels: int = Field(256 * 28 * 28, ge=28 * 28)
    """Larger frames are scaled down to this area, pixels >= 784; the checkpoint's own limits hold
    after that."""
