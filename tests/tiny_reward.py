"""A tiny Qwen2-VL reward with random weights, for tests and for the smallest size of benchmarks.

It has every part of the published rewards, smaller: under half a million parameters besides the
head, frames of some 4 x 6 tokens, prompts of some 150 bytes. The usual initial values (deviation
0.02) make attention nearly uniform, which hides wrong positions and wrong vision tokens; matrices
here have deviation 1.5 / sqrt(fan in), so that such faults move the scores.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from longtake.rewards.directory import RewardDirectory, write_reward_directory
from longtake.rewards.frames import FrameSampler
from longtake.rewards.model_inputs import VISION_END, VISION_PADS, VISION_START
from longtake.rewards.pixels import PixelConfig
from longtake.rewards.qwen2vl.config import (
    HEAD_TOKENS,
    HeadKind,
    RewardModelConfig,
    RotaryPrecision,
    backbone_config,
)
from longtake.rewards.qwen2vl.model import Qwen2VLRewardModel
from longtake.rewards.qwen2vl.weights import empty_reward_model
from longtake.rewards.spec import ColorMode, Normalization, RewardKind, RewardSpec
from longtake.runtime.rng import generator, normal
from longtake.sandbox.recipes.tiny_vlm import TINY_TEMPLATES, byte_tokenizer

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
        reward_token_ids = range(150, 150 + HEAD_TOKENS[head])
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


def random_prompts(
    config: RewardModelConfig,
    seed: int,
    text_lengths: Sequence[int],
    grid: tuple[int, int, int] = (1, 4, 6),
) -> dict[str, Tensor]:
    """Arguments of the model's ``forward`` for random prompts of a tiny model, in published order.

    Each row is text, one image (or, with more than one time step, video), ``text_lengths`` tokens
    of text, the first reward token, the other reward tokens with two tokens of text before each
    (the same ones), and four tokens that no score may depend on.

    Args:
        config: of the model; ids of text are drawn below the smallest special one.
        seed: names the draw.
        text_lengths: tokens of text between vision and the first reward token, by row.
        grid: patches along time, height and width of every row.
    """
    backbone = config.backbone
    vision_id = backbone.image_token_id if grid[0] == 1 else backbone.video_token_id
    start, end = backbone.vision_start_token_id, backbone.vision_end_token_id
    special = (start, end, backbone.image_token_id, backbone.video_token_id)
    limit = min(*special, *config.reward_token_ids)
    patches = grid[0] * grid[1] * grid[2]
    merged = patches // backbone.vision_config.spatial_merge_size**2
    rows = []
    for row, length in enumerate(text_lengths):
        draw = generator(seed, "random_prompts", row)
        text = torch.randint(1, limit, (3 + length + 2 + 4,), generator=draw).tolist()
        ids = [*text[:3], start, *[vision_id] * merged, end, *text[3 : 3 + length]]
        for i, token in enumerate(config.reward_token_ids):
            ids += [*text[3 + length : 5 + length], token] if i else [token]
        rows.append(torch.tensor(ids + text[-4:]))
    width = 3 * 2 * backbone.vision_config.patch_size**2
    return {
        "input_ids": pad_sequence(rows, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(ids) for ids in rows], batch_first=True),
        "pixel_values": normal((len(rows) * patches, width), seed, "random_prompts", "pixels"),
        "grid_thw": torch.tensor([grid] * len(rows)),
    }


TINY_PIXELS: dict[RewardKind, PixelConfig] = {
    "hpsv3": PixelConfig(min_pixels=112 * 112, max_pixels=112 * 112, resample="pil"),
    "videoreward": PixelConfig(min_pixels=56 * 56, max_pixels=112 * 112, resample="torch"),
}
"""At most 16 tokens per frame (or pair of frames), by the published resamplers."""


def tiny_model_config(kind: RewardKind, lora_rank: int = 0) -> RewardModelConfig:
    """The tiny model with the vocabulary of the byte-level tokenizer."""
    reward_tokens = TINY_TEMPLATES[kind].reward_tokens
    tokenizer = byte_tokenizer(reward_tokens)
    ids = tokenizer.get_added_vocab()
    return tiny_config(
        "ranknet" if kind == "hpsv3" else "shared_linear",
        vocab_size=len(tokenizer),
        image_token_id=ids[VISION_PADS["image"]],
        video_token_id=ids[VISION_PADS["video"]],
        vision_start_token_id=ids[VISION_START],
        vision_end_token_id=ids[VISION_END],
        reward_token_ids=[ids[token] for token in reward_tokens],
        lora_rank=lora_rank,
    )


def tiny_spec(
    kind: RewardKind,
    *,
    color_mode: ColorMode = "rgb",
    normalization: Mapping[str, Normalization] | None = None,
    lora_rank: int = 0,
) -> RewardSpec:
    """A reward of the given kind around the tiny model."""
    return RewardSpec(
        kind=kind,
        model=tiny_model_config(kind, lora_rank),
        reward_tokens=TINY_TEMPLATES[kind].reward_tokens,
        pixels=TINY_PIXELS[kind],
        sampler=FrameSampler() if kind == "videoreward" else None,
        color_mode=color_mode,
        normalization=normalization or {},
    )


def write_tiny_reward(path: str | Path, spec: RewardSpec, seed: int) -> RewardDirectory:
    """A directory of ``spec`` (of :func:`tiny_spec`) with random weights named by ``seed``."""
    return write_reward_directory(
        path,
        spec,
        TINY_TEMPLATES[spec.kind],
        byte_tokenizer(spec.reward_tokens),
        tiny_reward_model(spec.model, seed).state_dict(),
        provenance={"random_weights": seed},
    )
