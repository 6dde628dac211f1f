"""Building Qwen2-VL reward models: on the meta device, then filled strictly from any key layout."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from longtake.core.weights import fill_model
from longtake.rewards.heads import HEAD_PREFIX
from longtake.rewards.qwen2vl import Qwen2VLRewardModel
from longtake.rewards.qwen2vl_config import RewardModelConfig
from longtake.rewards.qwen2vl_keys import LM_HEAD, current_key

WEIGHTS_STEM = "model"
"""Weights of a reward directory: ``model.safetensors``, or shards of that name."""


def empty_reward_model(config: RewardModelConfig) -> Qwen2VLRewardModel:
    """The model without storage (meta device): for its keys and shapes, or to be filled."""
    with torch.device("meta"):
        return Qwen2VLRewardModel(config)


def load_reward_model(
    config: RewardModelConfig,
    weights: Mapping[str, Tensor] | str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Qwen2VLRewardModel:
    """Build a reward model from weights in any key layout.

    Args:
        config: of the model; ``lora_rank`` says whether the weights hold an unmerged LoRA.
        weights: a state dict, or a directory with ``model.safetensors`` (or shards), which is
            streamed tensor by tensor onto the device.
        device: of the model.
        dtype: of the backbone and its LoRA; the head is float32.

    Returns:
        The model in evaluation mode, without gradients.

    Raises:
        CheckpointError: unreadable files; missing, unexpected, doubled or misshapen tensors.
    """
    model = empty_reward_model(config)
    fill_model(
        model,
        weights if isinstance(weights, Mapping) else Path(weights),
        WEIGHTS_STEM,
        device,
        lambda key: torch.float32 if key.startswith(HEAD_PREFIX) else dtype,
        rename=lambda name: None if current_key(name) == LM_HEAD else current_key(name),
    )
    return model
