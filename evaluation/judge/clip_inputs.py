"""Clips as inputs of the Qwen2-VL judge; training and scoring share every step.

The steps are the rewards': frames are chosen, made gray where the weights ask for it, resized, cut
into patches, and the prompt gets one token per merged patch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longtake.rewards.grayscale import to_grayscale
from longtake.rewards.pixels import (
    PATCH,
    TEMPORAL_PATCH,
    Grid,
    normalize,
    num_tokens,
    patchify,
    resize,
    resized_size,
)
from longtake.rewards.prompt_batches import pad_prompts
from longtake.rewards.reward_spec import RewardSpec
from longtake.rewards.template import PromptEncoder


@dataclass(frozen=True, kw_only=True)
class ModelInputs:
    """One clip as the model takes it."""

    ids: list[int]
    """Token ids of the prompt."""
    patches: Tensor
    """[t h w, 1176] float32."""
    grid: Grid
    """(t, h, w) in patches."""


def model_frames(frames: Tensor, fps: float, spec: RewardSpec) -> Tensor:
    """Chosen frames in the colour and size that the model sees; all that need be kept of a clip.

    Args:
        frames: uint8 [T, 3, H, W].
        fps: playback rate.
        spec: of the model, with a frame sampler.

    Returns:
        uint8 [F, 3, h, w].

    Raises:
        UserError: a clip that is too short, or of an unusable size.
    """
    assert spec.sampler is not None
    chosen = frames[spec.sampler.indices(len(frames), fps).to(frames.device)]
    if spec.color_mode != "rgb":
        chosen = to_grayscale(chosen, spec.color_mode)
    height, width = chosen.shape[-2:]
    size = resized_size(height, width, spec.pixels.min_pixels, spec.pixels.max_pixels)
    return resize(chosen.contiguous(), size, spec.pixels.resample)


def model_inputs(
    frames: Tensor, caption: str, spec: RewardSpec, encoder: PromptEncoder
) -> ModelInputs:
    """Frames of :func:`model_frames` and a caption as inputs.

    Raises:
        UserError: a caption that spells a reserved token.
    """
    height, width = frames.shape[-2:]
    grid = (len(frames) // TEMPORAL_PATCH, height // PATCH, width // PATCH)
    patches = patchify(normalize(frames, spec.pixels))
    return ModelInputs(ids=encoder.encode(caption, num_tokens(grid)), patches=patches, grid=grid)


def as_batch(rows: Sequence[ModelInputs]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``input_ids`` and ``attention_mask`` [B, L], ``pixel_values``, ``grid_thw`` [B, 3]."""
    ids, mask = pad_prompts([row.ids for row in rows])
    pixels = torch.cat([row.patches for row in rows])
    return ids, mask, pixels, torch.tensor([row.grid for row in rows])
