"""Several prompts about the same pictures, their common beginning computed once.

HPSv3-general and HPSv3-percentile see the same frame and the same long instruction and differ from
the caption on: some 750 of 850 tokens, and the whole vision tower, serve both.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from longtake.rewards.qwen2vl import Qwen2VLRewardModel
from longtake.runtime.errors import UserError


def score_variants(
    model: Qwen2VLRewardModel,
    variants: Sequence[tuple[Tensor, Tensor]],
    pixel_values: Tensor,
    grid_thw: Tensor,
    tokens: Sequence[int] | None = None,
) -> list[Tensor]:
    """Scores of S prompts for each of B pictures; equal to S calls of ``model.score``.

    Args:
        model: the reward model.
        variants: S pairs (input_ids [B, L_s], attention_mask [B, L_s]), padded on the right; the
            lengths may differ.
        pixel_values: patches of the B pictures, as :meth:`Qwen2VLRewardModel.forward` takes them.
        grid_thw: their grids.
        tokens: which scores, as there.

    Returns:
        S tensors as ``model.score`` returns them.

    Raises:
        UserError: no variants, or different numbers of rows; otherwise as ``model.score``.
    """
    if not variants or len({ids.shape[0] for ids, _ in variants}) > 1:
        raise UserError(
            "variants of the prompts do not fit each other",
            received=[tuple(ids.shape) for ids, _ in variants],
            expected="at least one variant, the same number of rows in each",
        )
    shared = common_lengths(variants, model.config.reward_token_ids)
    ids = variants[0][0]
    inside = torch.arange(ids.shape[1], device=ids.device) < shared[:, None]
    backbone = model.config.backbone
    vision = (ids == backbone.image_token_id) | (ids == backbone.video_token_id)
    if len(variants) == 1 or bool((vision & ~inside).any()):  # no beginning worth sharing
        return [model.score(*variant, pixel_values, grid_thw, tokens) for variant in variants]
    end = int(shared.max())
    prefix = model.encode_prefix(ids[:, :end], inside[:, :end], pixel_values, grid_thw)
    return [
        model.score_suffix(prefix, *_without_prefix(ids, mask, shared), tokens)
        for ids, mask in variants
    ]


def common_lengths(
    variants: Sequence[tuple[Tensor, Tensor]], reward_token_ids: Sequence[int]
) -> Tensor:
    """[B]: leading tokens that all variants of a row share, before any reward token.

    The comparison is by token, because a tokenizer may join characters across the place where two
    texts part.
    """
    length = min(ids.shape[1] for ids, _ in variants)
    ids, mask = variants[0][0][:, :length], variants[0][1][:, :length].bool()
    rewards = torch.tensor(list(reward_token_ids), device=ids.device)
    same = mask & ~torch.isin(ids, rewards)
    for other, other_mask in variants[1:]:
        same &= other_mask[:, :length].bool() & (other[:, :length] == ids)
    return same.int().cumprod(1).sum(1)


def _without_prefix(ids: Tensor, mask: Tensor, shared: Tensor) -> tuple[Tensor, Tensor]:
    """Each row from its own first unshared token on, padded on the right."""
    length = ids.shape[1]
    kept = torch.arange(length - int(shared.min()), device=ids.device)
    places = shared[:, None] + kept  # [B, S]
    inside = places < length
    places = places.clamp(max=length - 1)
    return ids.gather(1, places), mask.bool().gather(1, places) & inside
