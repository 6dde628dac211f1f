"""Tiny learned rewards: random weights, a byte-level tokenizer, prompts of our own.

For tests, and as the start of reward heads that are trained in the sandbox. They have every part of
the published rewards, smaller: frames of some 4 x 6 tokens and prompts of some 150 bytes.
"""

from collections.abc import Mapping
from pathlib import Path

from longtake.rewards.frame_sampling import FrameSampler
from longtake.rewards.pixels import PixelConfig
from longtake.rewards.qwen2vl_config import RewardModelConfig
from longtake.rewards.reward_directory import RewardDirectory, write_reward_directory
from longtake.rewards.reward_spec import ColorMode, Normalization, RewardKind, RewardSpec
from longtake.rewards.template import VISION_END, VISION_PADS, VISION_START, PromptTemplate
from longtake.rewards.tiny_qwen2vl import tiny_config, tiny_reward_model
from longtake.rewards.tiny_tokenizer import byte_tokenizer

TINY_TEMPLATES: dict[RewardKind, PromptTemplate] = {
    "hpsv3": PromptTemplate(
        text="Judge it.\nIt shows {text_prompt}\nScore: <|Reward|>\nEnd\n",
        reward_tokens=("<|Reward|>",),
    ),
    "videoreward": PromptTemplate(
        text="\nSharp? <|VQ_reward|>\nMoving? <|MQ_reward|>\n{text_prompt}? <|TA_reward|>\nEnd\n",
        reward_tokens=("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>"),
    ),
}
"""Prompts in the order of the published ones: the caption stands before HPSv3's token, and after
VideoAlign's motion token."""
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
