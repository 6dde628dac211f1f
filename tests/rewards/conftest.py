"""Tiny learned rewards: random weights, a byte-level tokenizer and invented prompts."""

from collections.abc import Callable
from pathlib import Path

import pytest

from longtake.rewards.frame_sampling import FrameSampler
from longtake.rewards.pixels import PixelConfig
from longtake.rewards.qwen2vl_config import RewardModelConfig
from longtake.rewards.reward_directory import RewardDirectory, write_reward_directory
from longtake.rewards.reward_spec import ColorMode, Normalization, RewardKind, RewardSpec
from longtake.rewards.template import CHAT_TOKENS, PromptTemplate
from longtake.rewards.tiny_qwen2vl import tiny_config, tiny_reward_model
from longtake.rewards.tiny_tokenizer import byte_tokenizer

TEMPLATES = {
    "hpsv3": PromptTemplate(
        text="Judge it.\nIt shows {text_prompt}\nScore: <|Reward|>\nEnd\n",
        reward_tokens=("<|Reward|>",),
    ),
    "videoreward": PromptTemplate(
        text="\nSharp? <|VQ_reward|>\nMoving? <|MQ_reward|>\n{text_prompt}? <|TA_reward|>\nEnd\n",
        reward_tokens=("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>"),
    ),
}
TINY_PIXELS = {
    "hpsv3": PixelConfig(min_pixels=56 * 84, max_pixels=56 * 84, resample="pil"),
    "videoreward": PixelConfig(min_pixels=56 * 56, max_pixels=84 * 84, resample="torch"),
}
NORMALIZATION = {
    "VQ": Normalization(mean=0.3, std=2.0),
    "MQ": Normalization(mean=-0.7, std=0.5),
    "TA": Normalization(mean=1.5, std=3.0),
}


def tiny_model_config(kind: RewardKind, lora_rank: int = 0) -> RewardModelConfig:
    tokenizer = byte_tokenizer(TEMPLATES[kind].reward_tokens)
    ids = dict(zip(CHAT_TOKENS, tokenizer.convert_tokens_to_ids(CHAT_TOKENS), strict=True))
    return tiny_config(
        "ranknet" if kind == "hpsv3" else "shared_linear",
        vocab_size=len(tokenizer),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        reward_token_ids=tokenizer.convert_tokens_to_ids(TEMPLATES[kind].reward_tokens),
        lora_rank=lora_rank,
    )


def tiny_spec(
    kind: RewardKind, color_mode: ColorMode = "rgb", model: RewardModelConfig | None = None
) -> RewardSpec:
    return RewardSpec(
        kind=kind,
        model=model or tiny_model_config(kind),
        reward_tokens=TEMPLATES[kind].reward_tokens,
        pixels=TINY_PIXELS[kind],
        sampler=FrameSampler() if kind == "videoreward" else None,
        color_mode=color_mode,
        normalization=NORMALIZATION if kind == "videoreward" else {},
    )


MakeReward = Callable[..., RewardDirectory]


@pytest.fixture
def make_reward(tmp_path: Path) -> MakeReward:
    """Writes a tiny reward directory: (kind, color mode, seed of the weights)."""

    def make(
        kind: RewardKind = "videoreward", color_mode: ColorMode = "rgb", seed: int = 0
    ) -> RewardDirectory:
        spec = tiny_spec(kind, color_mode)
        return write_reward_directory(
            tmp_path / f"{kind}-{color_mode}-{seed}",
            spec,
            TEMPLATES[kind],
            byte_tokenizer(spec.reward_tokens),
            tiny_reward_model(spec.model, seed).state_dict(),
        )

    return make
