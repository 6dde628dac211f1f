"""One clip with its prompt as inputs of a reward model: coloured, resized, cut into patches.

The steps and their order are the scorers': frames are chosen, made gray by ``rewards/frames.py``
where the reward asks for it, resized by ``rewards/pixels.py``, cut into patches.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from longtake.rewards.frames import to_grayscale
from longtake.rewards.pixels import (
    PATCH,
    TEMPORAL_PATCH,
    Grid,
    num_tokens,
    patchify,
    resize,
    resized_size,
)
from longtake.rewards.reward_spec import RewardSpec
from longtake.rewards.template import PromptEncoder


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipInputs:
    """One clip or image with its prompt.

    Args:
        key: equal for equal inputs.
        ids: token ids up to the last reward token that is read.
        patches: [t h w, 1176] uint8, of resized frames.
        grid: (t, h, w) in patches.
    """

    key: Hashable
    ids: list[int]
    patches: Tensor
    grid: Grid


def shown_frames(frames: Tensor, spec: RewardSpec) -> Tensor:
    """Chosen frames uint8 [F, 3, H, W] in the colour and size that the model sees."""
    if spec.color_mode != "rgb":
        frames = to_grayscale(frames, spec.color_mode)
    pixels = spec.pixels
    height, width = frames.shape[-2:]
    size = resized_size(height, width, pixels.min_pixels, pixels.max_pixels)
    return resize(frames.contiguous(), size, pixels.resample)


def clip_inputs(
    frames: Tensor, prompt: str, encoder: PromptEncoder, *, key: Hashable, stop_at: str | None
) -> ClipInputs:
    """Inputs of a clip (of an image: of one frame).

    Args:
        frames: uint8 [F, 3, H, W] of :func:`shown_frames`; they are not resized a second time,
            which could change them.
        prompt: its caption.
        encoder: of the prompts.
        key: names the clip.
        stop_at: the last reward token that is read; None is the template's last.
    """
    height, width = frames.shape[-2:]
    grid = (max(1, len(frames) // TEMPORAL_PATCH), height // PATCH, width // PATCH)
    return ClipInputs(
        key=key,
        ids=encoder.encode(prompt, num_tokens(grid), stop_at),
        patches=patchify(frames),  # a quarter of the bytes of normalised ones on their way
        grid=grid,
    )


def collate_clips(clips: Sequence[ClipInputs]) -> dict[str, Tensor]:
    """Arguments of the reward model for C clips.

    Returns:
        ``input_ids`` and ``attention_mask`` [C, L] padded on the right, ``pixel_values`` uint8 (not
        normalised), ``grid_thw`` [C, 3].
    """
    ids = [torch.tensor(clip.ids) for clip in clips]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "pixel_values": torch.cat([clip.patches for clip in clips]),
        "grid_thw": torch.tensor([clip.grid for clip in clips]),
    }
