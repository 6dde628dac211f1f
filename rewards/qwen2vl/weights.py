"""Weights of Qwen2-VL reward models: the three key layouts in use, the LoRA merge, and loading.

============ ============================================ ===============================
layout       language model, vision tower                 where
============ ============================================ ===============================
``current``  ``model.language_model.*``, ``model.visual`` our directories, transformers 5
``legacy``   ``model.*``, ``visual.*``                    HPSv3 (transformers 4.45)
``peft``     ``base_model.model.`` + legacy, with LoRA    VideoReward
============ ============================================ ===============================

The head is ``rm_head.*`` in all of them. ``lm_head.weight`` is in the published files and in no
score; it is dropped when loading and written only for the public loaders, which insist on it.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from longtake.core.weights import check_unique, fill_model
from longtake.rewards.qwen2vl.config import RewardModelConfig
from longtake.rewards.qwen2vl.layers import HEAD_PREFIX
from longtake.rewards.qwen2vl.model import Qwen2VLRewardModel

Layout = Literal["current", "legacy", "peft"]
PEFT_PREFIX = "base_model.model."
LM_HEAD = "lm_head.weight"
EMBEDDING = "model.language_model.embed_tokens.weight"
WEIGHTS_STEM = "model"
"""Weights of a reward directory: ``model.safetensors``, or shards of that name."""
_ADAPTER = "default"


def current_key(key: str) -> str:
    """The ``current`` name of a key of any layout; unknown and current keys come back unchanged.

    A LoRA factor without an adapter name (an adapter-only file) gets PEFT's ``default``.
    """
    key = key.removeprefix(PEFT_PREFIX)
    key = re.sub(r"\.(lora_[AB])\.weight$", rf".\1.{_ADAPTER}.weight", key)
    if key.startswith("visual."):
        return f"model.{key}"
    if key.startswith("model.") and not key.startswith(("model.visual.", "model.language_model.")):
        return f"model.language_model.{key.removeprefix('model.')}"
    return key


def current_layout(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of any layout with current keys; applying it twice changes nothing."""
    check_unique({key: current_key(key) for key in state}, Path("state dict"))
    return {current_key(key): tensor for key, tensor in state.items()}


def public_layout(
    state: Mapping[str, Tensor], layout: Literal["legacy", "peft"]
) -> dict[str, Tensor]:
    """A current state dict with the keys of a public layout, for the public loaders.

    They want ``lm_head`` although no score depends on it: the embedding matrix takes its place.
    """
    # Legacy has no place for LoRA factors, and neither knows the split rows of a training.
    assert "reward_rows" not in state and not (layout == "legacy" and lora_modules(state))
    prefix = PEFT_PREFIX if layout == "peft" else ""
    return {
        prefix + re.sub(r"^model\.(visual|language_model)\.", _legacy_prefix, key): tensor
        for key, tensor in {**state, LM_HEAD: state[EMBEDDING].clone()}.items()
    }


def lora_modules(keys: Iterable[str]) -> list[str]:
    """Paths of the layers for which a state dict holds LoRA factors, in order of appearance."""
    layers = (re.split(r"\.lora_[AB]\.", key)[0] for key in keys if ".lora_" in key)
    return list(dict.fromkeys(layers))


def merge_lora(state: Mapping[str, Tensor], scaling: float) -> dict[str, Tensor]:
    """Fold LoRA factors into their base weights: W + scaling B A, in float32, rounded once.

    The state has any layout, the result the current one, without factors and ``base_layer`` keys.
    The scaling is alpha / rank; the published VideoReward has 128 / 64.
    """
    current = current_layout(state)
    updates: dict[str, Tensor] = {}
    for module in lora_modules(current):
        base = current[f"{module}.base_layer.weight"]
        down, up = (current[f"{module}.lora_{part}.{_ADAPTER}.weight"].float() for part in "AB")
        updates[f"{module}.base_layer.weight"] = (base.float() + scaling * (up @ down)).to(
            base.dtype
        )
    return {
        key.replace(".base_layer.", "."): updates.get(key, tensor)
        for key, tensor in current.items()
        if ".lora_" not in key
    }


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
    """Build a reward model, inert and in evaluation mode, from weights in any key layout.

    A directory with ``model.safetensors`` (or shards) is streamed tensor by tensor onto the device.
    ``dtype`` is that of the backbone and its LoRA.
    """
    model = empty_reward_model(config)
    fill_model(
        model,
        weights if isinstance(weights, Mapping) else Path(weights),
        WEIGHTS_STEM,
        device,
        # In bfloat16 the scores of a group would tie.
        lambda key: torch.float32 if key.startswith(HEAD_PREFIX) else dtype,
        rename=lambda key: None if current_key(key) == LM_HEAD else current_key(key),
    )
    return model


def _legacy_prefix(match: re.Match[str]) -> str:
    return "visual." if match[1] == "visual" else "model."
