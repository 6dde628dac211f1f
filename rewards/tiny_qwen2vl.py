"""A tiny Qwen2-VL reward model with random weights: for tests and as the start of tiny heads.

Under half a million parameters besides the head. The usual initial values (deviation 0.02) make
attention nearly uniform, which hides wrong positions and wrong vision tokens; matrices here have
deviation 1.5 / sqrt(fan in), so that such faults move the scores.
"""

from collections.abc import Sequence

import torch

from longtake.rewards.heads import HEADS, HeadKind
from longtake.rewards.qwen2vl import Qwen2VLRewardModel
from longtake.rewards.qwen2vl_config import RewardModelConfig, backbone_config
from longtake.rewards.qwen2vl_load import empty_reward_model
from longtake.rewards.qwen2vl_rotary import RotaryPrecision
from longtake.runtime.rng import normal

MATRIX_GAIN = 1.5
"""Standard deviation of a matrix times the square root of its fan-in."""
VECTOR_DEVIATION = 0.1
"""Standard deviation of biases, and of norm weights around 1."""


def tiny_config(
    head: HeadKind = "ranknet",
    *,
    vocab_size: int = 160,
    image_token_id: int = 100,
    video_token_id: int = 101,
    vision_start_token_id: int = 102,
    vision_end_token_id: int = 103,
    reward_token_ids: Sequence[int] | None = None,
    rotary: RotaryPrecision = "float32",
    lora_rank: int = 0,
    lora_alpha: float = 16.0,
) -> RewardModelConfig:
    """Three layers of width 64, a vision tower of two layers of width 32, published proportions.

    Args:
        head: form of the head.
        vocab_size: rows of the embedding.
        image_token_id: stands for one merged patch of an image.
        video_token_id: the same of a video.
        vision_start_token_id: opens an image or video.
        vision_end_token_id: closes it.
        reward_token_ids: None takes 150 and, for a linear head, 151 and 152.
        rotary: precision of the rotary tables.
        lora_rank: of an unmerged LoRA, 0 for none.
        lora_alpha: its scale numerator.
    """
    if reward_token_ids is None:
        reward_token_ids = range(150, 150 + HEADS[head](1).num_tokens)
    text = {
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [2, 3, 3],
        },
    }
    backbone = {
        "text_config": text,
        "vision_config": {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2},
        "image_token_id": image_token_id,
        "video_token_id": video_token_id,
        "vision_start_token_id": vision_start_token_id,
        "vision_end_token_id": vision_end_token_id,
    }
    return RewardModelConfig(
        backbone=backbone_config(backbone),
        head=head,
        reward_token_ids=tuple(reward_token_ids),
        rotary=rotary,
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
    )


def tiny_reward_model(config: RewardModelConfig, seed: int) -> Qwen2VLRewardModel:
    """A model of ``config`` with random float32 weights named by ``seed``, in evaluation mode.

    Any configuration works; only small ones fit the purpose. Both factors of a LoRA are random, so
    an unmerged LoRA acts at once.
    """
    model = empty_reward_model(config).to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = normal(parameter.shape, seed, "tiny_qwen2vl", name)
            if parameter.ndim > 1:
                fan_in = parameter[0].numel()
                parameter.copy_(MATRIX_GAIN / fan_in**0.5 * noise)
            else:
                is_norm = name.endswith("weight")
                parameter.copy_(VECTOR_DEVIATION * noise + is_norm)
    return model.eval().requires_grad_(False)
