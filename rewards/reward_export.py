"""Writing a trained reward: a reward directory with merged weights, and the public layout.

The public layout is what the public loaders read: for VideoAlign ``model.pth`` with PEFT's keys
(LoRA factors beside their base weights) or, after full training, with the plain old ones; for HPSv3
``HPSv3.safetensors`` with the old keys and merged weights.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from longtake.rewards.qwen2vl.layers import HEAD_PREFIX
from longtake.rewards.qwen2vl.model import Qwen2VLRewardModel
from longtake.rewards.qwen2vl.weights import merge_lora, public_layout
from longtake.rewards.reward_directory import RewardDirectory, write_reward_directory
from longtake.rewards.reward_spec import Normalization, RewardSpec

PUBLIC_WEIGHTS = {"hpsv3": "HPSv3.safetensors", "videoreward": "model.pth"}
"""File name of the public layout."""
INFERENCE_CONFIG = "inference_config.json"


def merged_state(model: Qwen2VLRewardModel, dtype: torch.dtype) -> dict[str, Tensor]:
    """State dict without LoRA, in ``dtype`` except for the float32 head.

    The reward rows have to be back in the embedding matrix.
    """
    config = model.config
    state = model.state_dict()
    if config.lora_rank:
        state = merge_lora(state, config.lora_alpha / config.lora_rank)
    return _stored(state, dtype)


def export_reward(
    model: Qwen2VLRewardModel,
    path: Path,
    source: RewardDirectory,
    spec: RewardSpec,
    dtype: torch.dtype,
    provenance: Mapping[str, Any],
) -> RewardDirectory:
    """Write a reward directory with merged weights.

    Args:
        model: trained; its reward rows are joined.
        path: a new directory.
        source: gives prompt and tokenizer.
        spec: of the result (colour mode, normalisation); its model part is replaced.
        dtype: of the stored backbone.
        provenance: recorded in ``reward.json``.

    Raises:
        CheckpointError: the directory cannot be written.
    """
    model.join_reward_rows()
    spec = replace(spec, model=replace(model.config, lora_rank=0))
    weights = merged_state(model, dtype)
    return write_reward_directory(
        path, spec, source.template, source.tokenizer(), weights, provenance=provenance
    )


def export_public(
    model: Qwen2VLRewardModel, path: Path, spec: RewardSpec, dtype: torch.dtype
) -> Path:
    """Write the weights in the public layout, and VideoAlign's ``inference_config``.

    Args:
        model: trained; its reward rows are joined.
        path: folder; created when missing.
        spec: of the reward, with its normalisation.
        dtype: of the stored backbone.

    Returns:
        The path of the weights.
    """
    model.join_reward_rows()
    path.mkdir(parents=True, exist_ok=True)
    target = path / PUBLIC_WEIGHTS[spec.kind]
    if spec.kind == "hpsv3":
        save_file(public_layout(merged_state(model, dtype), "legacy"), target, {"format": "pt"})
        return target
    layout: Literal["peft", "legacy"] = "peft" if model.config.lora_rank else "legacy"
    torch.save(public_layout(_stored(model.state_dict(), dtype), layout), target)
    (path / INFERENCE_CONFIG).write_text(
        json.dumps(inference_config(spec.normalization), indent=2) + "\n", encoding="utf-8"
    )
    return target


def inference_config(normalization: Mapping[str, Normalization]) -> dict[str, float]:
    """VideoAlign's names of the normalisation, for the part of that name in its config file.

    Its loader wants all three dimensions: one that was not trained keeps its raw scores.
    """
    fields: dict[str, float] = {}
    for name in ("VQ", "MQ", "TA"):
        scale = normalization.get(name, Normalization(mean=0.0, std=1.0))
        fields |= {f"{name}_mean": scale.mean, f"{name}_std": scale.std}
    return fields


def _stored(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        name: tensor.detach().to("cpu", torch.float32 if name.startswith(HEAD_PREFIX) else dtype)
        for name, tensor in state.items()
    }
