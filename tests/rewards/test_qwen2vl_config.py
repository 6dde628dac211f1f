"""Reward model configurations: round trip, published values, refusals."""

import json
from typing import Any

import pytest

from longtake.rewards.qwen2vl.config import (
    RewardModelConfig,
    backbone_config,
    hpsv3_config,
    videoreward_config,
)
from longtake.runtime.errors import ConfigError
from longtake.tests.tiny_reward import tiny_config

CONFIGS = [
    hpsv3_config(),
    videoreward_config("diagonal_linear", lora=True),
    tiny_config(rotary="bf16_frequencies"),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_json_round_trip(config: RewardModelConfig) -> None:
    text = json.dumps(config.to_dict())
    again = RewardModelConfig.from_dict(json.loads(text))
    assert json.dumps(again.to_dict()) == text
    ours, theirs = config.backbone.text_config, again.backbone.text_config
    assert ours.rope_parameters == theirs.rope_parameters
    assert ours.vocab_size == theirs.vocab_size and ours.rms_norm_eps == theirs.rms_norm_eps


def test_published_tokens() -> None:
    assert hpsv3_config().reward_token_ids == (151657,)
    assert hpsv3_config().backbone.text_config.vocab_size == 151658
    video = videoreward_config(lora=True)
    assert video.reward_token_ids == (151657, 151658, 151659)
    assert video.backbone.text_config.vocab_size == 151660
    assert video.lora_alpha / video.lora_rank == 2
    assert hpsv3_config().rotary == video.rotary == "bf16"


def test_old_flat_backbone_fields_are_understood() -> None:
    flat = {
        "vocab_size": 160,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "rope_theta": 5e5,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "vision_config": {"depth": 2, "hidden_size": 64},
    }
    text = backbone_config(flat).text_config
    assert (text.vocab_size, text.num_hidden_layers) == (160, 3)
    assert text.rope_parameters["rope_theta"] == 5e5
    assert text.bos_token_id is None and text.pad_token_id is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rotary": "bf32"}, "rotary of the reward model"),
        ({"head": "mlp"}, "head of the reward model"),
        ({"reward_token_ids": [150, 151]}, "1 different ids"),
        ({"reward_token_ids": [150, 150]}, "1 different ids"),
        ({"reward_token_ids": ["reward"]}, "wrong type"),
        ({"lora_rank": "4"}, "wrong type"),
        ({"reward_token_ids": [160]}, "vocabulary size 160"),
        ({"reward_token_ids": [150, 150, 151], "head": "shared_linear"}, "3 different ids"),
        ({"lora_rank": -1}, "lora_rank"),
        ({"lora_alpha": 0.0}, "lora_alpha"),
        ({"colour": 1}, "unknown: .'colour'."),
        ({"backbone": {"text_config": {"vocab_size": "many"}}}, "backbone configuration"),
        ({"backbone": [1]}, "backbone configuration"),
    ],
)
def test_wrong_fields_are_explained(change: dict[str, Any], message: str) -> None:
    fields = {**tiny_config().to_dict(), **change}
    with pytest.raises(ValueError, match=message):
        RewardModelConfig.from_dict(fields)


def test_missing_fields_are_named() -> None:
    fields = tiny_config().to_dict()
    del fields["head"]
    with pytest.raises(ConfigError, match=r"missing: .'head'."):
        RewardModelConfig.from_dict(fields)
