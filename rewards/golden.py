"""Golden checks of the reward models: recorded scores of the public classes."""

import dataclasses
from pathlib import Path

from torch import Tensor

from longtake.core.golden import (
    GoldenCheck,
    GoldenResult,
    compare,
    metadata_json,
    not_computed,
    require_inputs,
)
from longtake.core.weights import read_metadata, read_tensors
from longtake.rewards.qwen2vl.config import RewardModelConfig, RotaryPrecision, backbone_config
from longtake.rewards.qwen2vl.layers import infer_head
from longtake.rewards.qwen2vl.weights import load_reward_model, merge_lora
from longtake.runtime.errors import CheckpointError

#: Scores of order one through three layers (measured: 1e-5).
REWARD_TOLERANCE = 1e-4
#: Recorded output -> rotary precision it was recorded with.
ROTARY_OF: dict[str, RotaryPrecision] = {
    "out.logits": "float32",
    "out.logits_bf16_rounded_inv_freq": "bf16_frequencies",
}


def check_reward_model(path: Path, tolerance: float | None = None) -> list[GoldenResult]:
    """Kinds ``hpsv3`` and ``videoreward``: scores with exact and with rounded rotary frequencies.

    A file with a LoRA is scored unmerged and, as ``<output>.merged``, merged.
    """
    tensors, metadata = read_tensors(path), read_metadata(path)
    bound = REWARD_TOLERANCE if tolerance is None else tolerance
    pictures = ("in.pixel_values", "in.image_grid_thw")
    if "in.video_grid_thw" in tensors:
        pictures = ("in.pixel_values_videos", "in.video_grid_thw")
    names = ("in.input_ids", "in.attention_mask", *pictures)
    require_inputs(tensors, names, path)
    prefix = "weights."
    weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    ids, mask, pixels, grid_thw = (tensors[name] for name in names)
    config = _config(metadata, weights, path)
    recorded = {name for name in tensors if name.startswith("out.")}
    ours: dict[str, Tensor] = {}
    merged: dict[str, Tensor] = {}
    for name, rotary in ROTARY_OF.items():
        if name not in recorded:
            continue
        here = config.replace(rotary=rotary)
        ours[name] = load_reward_model(here, weights).score(ids, mask, pixels, grid_thw)
        if config.lora_rank:
            whole = merge_lora(weights, config.lora_alpha / config.lora_rank)
            plain = here.replace(lora_rank=0)
            merged[name] = load_reward_model(plain, whole).score(ids, mask, pixels, grid_thw)
    results = compare(tensors, ours, bound)
    for result in compare({name: tensors[name] for name in merged}, merged, bound):
        results.append(dataclasses.replace(result, name=f"{result.name}.merged"))
    return results + not_computed(recorded - ours.keys(), bound)


REWARD_CHECKS: dict[str, GoldenCheck] = {
    "hpsv3": check_reward_model,
    "videoreward": check_reward_model,
}
"""Checks by kind, for :func:`longtake.core.golden.check_file`."""


def _config(metadata: dict[str, str], weights: dict[str, Tensor], path: Path) -> RewardModelConfig:
    head = metadata_json(metadata, "head", path)
    lora = metadata_json(metadata, "lora", path) if "lora" in metadata else {}
    if "special_token_ids" not in head:
        raise CheckpointError(
            "the golden file's metadata has no special_token_ids",
            received=str(path),
            expected="head with special_token_ids; with a LoRA also lora with r and alpha",
        )
    return RewardModelConfig(
        backbone=backbone_config(metadata_json(metadata, "config", path)),
        head=infer_head({name: tensor.shape for name, tensor in weights.items()}),
        reward_token_ids=tuple(head["special_token_ids"]),
        lora_rank=lora.get("r", 0),
        lora_alpha=lora.get("alpha", 1.0),
    )
