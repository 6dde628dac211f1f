"""Clips as inputs of the Qwen2-VL judge; training and scoring share every step.

The steps are the rewards': frames are chosen, made gray where the weights ask for it, resized, cut
into patches, and the prompt gets one token per merged patch. Patches stay 8-bit until they are on
the device of the model: cutting moves values and normalising is per value, so the order of the two
changes no bit, and a quarter of the bytes is kept, collated and copied.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from longtake.rewards.frames import to_grayscale
from longtake.rewards.pixels import (
    PATCH,
    TEMPORAL_PATCH,
    PixelConfig,
    normalize_patches,
    num_tokens,
    patchify,
    resize,
    resized_size,
)
from longtake.rewards.prompt_batches import pad_prompts
from longtake.rewards.reward_spec import RewardSpec


class ModelBatch(NamedTuple):
    """B clips with their prompts."""

    input_ids: Tensor
    """int64 [B, L], padded on the right."""
    attention_mask: Tensor
    """int64 [B, L], 1 for tokens."""
    patches: Tensor
    """uint8 [sum of t h w, 1176]."""
    grid_thw: Tensor
    """int64 [B, 3], patches along time, height and width."""


def model_patches(frames: Tensor, fps: float, spec: RewardSpec) -> Tensor:
    """Patches of the chosen frames as the model sees them; all that need be kept of a clip.

    Args:
        frames: uint8 [T, 3, H, W].
        fps: playback rate.
        spec: of the model, with a frame sampler.

    Returns:
        uint8 [t, h, w, 1176] with the grid (t, h, w); the t h w rows have the order of
        :func:`longtake.rewards.pixels.patchify`.

    Raises:
        UserError: a clip that is too short, or of an unusable size.
    """
    assert spec.sampler is not None
    chosen = frames[spec.sampler.indices(len(frames), fps).to(frames.device)]
    if spec.color_mode != "rgb":
        chosen = to_grayscale(chosen, spec.color_mode)
    height, width = chosen.shape[-2:]
    size = resized_size(height, width, spec.pixels.min_pixels, spec.pixels.max_pixels)
    resized = resize(chosen.contiguous(), size, spec.pixels.resample)
    grid = (len(resized) // TEMPORAL_PATCH, size[0] // PATCH, size[1] // PATCH)
    return patchify(resized).view(*grid, -1)


def vision_tokens(patches: Tensor) -> int:
    """Tokens that patches of :func:`model_patches` take in the prompt."""
    time, height, width, _ = patches.shape
    return num_tokens((time, height, width))


def as_batch(
    prompts: Sequence[Sequence[int]], patches: Sequence[Tensor], *, pin: bool = False
) -> ModelBatch:
    """A batch of token ids and of patches of :func:`model_patches`, on one device.

    Args:
        prompts: B prompts.
        patches: of B clips.
        pin: put the patches, which are on the CPU, into pinned memory.
    """
    ids, mask = pad_prompts(prompts)
    rows = [clip.flatten(0, 2) for clip in patches]
    sizes = sum(map(len, rows)), rows[0].shape[1]
    joined = torch.empty(sizes, dtype=torch.uint8, device=rows[0].device, pin_memory=pin)
    return ModelBatch(
        input_ids=ids,
        attention_mask=mask,
        patches=torch.cat(rows, out=joined),
        grid_thw=torch.tensor([clip.shape[:3] for clip in patches]),
    )


def model_arguments(
    batch: ModelBatch, pixels: PixelConfig, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``input_ids``, ``attention_mask``, ``pixel_values``, ``grid_thw`` of the model.

    Args:
        batch: of clips.
        pixels: normalisation of the model.
        device: of the model; patches are copied there and then normalised.
    """
    patches = batch.patches.to(device, non_blocking=True)
    values = normalize_patches(patches, pixels)
    return batch.input_ids, batch.attention_mask, values, batch.grid_thw
