"""Building Qwen2-VL reward models: on the meta device, then filled strictly from any key layout."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from longtake.core.weights import check_keys, check_shape, iter_tensors, read_names, shard_paths
from longtake.rewards.heads import HEAD_PREFIX
from longtake.rewards.qwen2vl import Qwen2VLRewardModel
from longtake.rewards.qwen2vl_config import RewardModelConfig
from longtake.rewards.qwen2vl_keys import LM_HEAD, current_key, unique_current_keys

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
    expected = model.state_dict()
    if isinstance(weights, Mapping):
        parts: Iterable[Iterable[tuple[str, Tensor]]] = [weights.items()]
        names, source = list(weights), Path("state dict")
    else:
        source = Path(weights)
        files = shard_paths(source, WEIGHTS_STEM)
        parts = (iter_tensors(file, device) for file in files)
        names = [name for file in files for name in read_names(file)]
    found = unique_current_keys(names).keys() - {LM_HEAD}
    check_keys(found, expected, source)
    for part in parts:
        filled: dict[str, Tensor] = {}
        for name, tensor in part:
            key = current_key(name)
            if key != LM_HEAD:
                check_shape(key, tensor, expected[key].shape, source)
                wanted = torch.float32 if key.startswith(HEAD_PREFIX) else dtype
                filled[key] = tensor.detach().to(device, wanted, copy=isinstance(weights, Mapping))
        model.load_state_dict(filled, strict=False, assign=True)
    state = [*model.named_parameters(), *model.named_buffers()]
    left = [name for name, tensor in state if tensor.is_meta]
    assert not left, f"state that no checkpoint holds must be made in forward: {left}"
    return model.eval().requires_grad_(False)
