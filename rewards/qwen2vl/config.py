"""Configuration of a Qwen2-VL reward model, and the two published ones.

The backbone is described by transformers' own configuration class. What a reward adds is the form
of the head, the reward tokens, the precision of the rotary tables and an unmerged LoRA.
"""

from collections.abc import Mapping
from typing import Any, Literal, Self

from huggingface_hub.errors import StrictDataclassError
from pydantic import Field, field_serializer, field_validator, model_validator
from transformers import Qwen2VLConfig

from longtake.runtime.config import Config
from longtake.runtime.errors import ConfigError

HeadKind = Literal["ranknet", "shared_linear", "diagonal_linear"]
"""HPSv3's small network, VideoAlign's one row for all reward tokens, or one row for each."""
HEAD_TOKENS: dict[HeadKind, int] = {"ranknet": 1, "shared_linear": 3, "diagonal_linear": 3}
"""Form of the head -> reward tokens that a prompt holds."""
RotaryPrecision = Literal["float32", "bf16_frequencies", "bf16"]
"""Rounding of the rotary tables: :class:`longtake.rewards.qwen2vl.layers.TextRotary`."""

#: Qwen2-VL's own special tokens; the reward tokens follow them in both published vocabularies.
QWEN2VL_TOKENS = {
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "image_token_id": 151655,
    "video_token_id": 151656,
}
_FIRST_REWARD_TOKEN = 151657


class RewardModelConfig(Config):
    """What fixes the function of a Qwen2-VL reward model besides its weights."""

    # Any: pydantic would look into transformers' dataclass, whose names it cannot resolve.
    backbone: Any
    """Qwen2VLConfig: sizes and token ids; fields of a Qwen2-VL config.json are taken too."""
    head: HeadKind
    reward_token_ids: tuple[int, ...]
    """Vocabulary ids of the reward tokens, in the order in which they stand in the prompt."""
    rotary: RotaryPrecision = "bf16"
    """Precision of the rotary tables; the published checkpoints need ``bf16``."""
    lora_rank: int = Field(default=0, ge=0)
    """Rank of an unmerged LoRA on the linear layers of the language model; 0 for none."""
    lora_alpha: float = Field(default=128.0, gt=0)
    """The LoRA is scaled by alpha / rank; without a LoRA it has no effect."""

    @field_validator("backbone", mode="before")
    @classmethod
    def _from_json(cls, value: object) -> object:
        return backbone_config(value) if isinstance(value, Mapping) else value

    @field_serializer("backbone")
    def _to_json(self, backbone: Qwen2VLConfig) -> dict[str, Any]:
        return dict(backbone.to_diff_dict())

    @model_validator(mode="after")
    def _fits(self) -> Self:
        tokens, vocab = self.reward_token_ids, self.backbone.text_config.vocab_size
        count = HEAD_TOKENS[self.head]
        if len(tokens) != count or len({*tokens} & {*range(vocab)}) != count:
            raise ValueError(f"reward_token_ids: {count} different ids below {vocab} are expected")
        return self


def backbone_config(fields: Mapping[str, Any]) -> Qwen2VLConfig:
    """The backbone's configuration from its JSON fields, old and flat or new and nested.

    Start, end and padding ids are dropped: a reward model neither generates nor pads by id, and the
    defaults lie outside of a small vocabulary.
    """
    none: dict[str, Any] = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    try:
        text = fields.get("text_config")
        if text is None:
            return Qwen2VLConfig(**{**fields, **none})
        return Qwen2VLConfig(**{**fields, "text_config": {**text, **none}})
    except (TypeError, ValueError, KeyError, AttributeError, StrictDataclassError) as error:
        raise ConfigError(
            f"the backbone configuration cannot be used: {error}",
            received=sorted(fields),
            expected="the fields of a Qwen2-VL config.json",
        ) from error


def hpsv3_config() -> RewardModelConfig:
    """HPSv3: Qwen2-VL-7B with one reward token and the ranknet head."""
    return RewardModelConfig(
        backbone=_published_backbone(3584, 18944, heads=28, key_value_heads=4, reward_tokens=1),
        head="ranknet",
        reward_token_ids=(_FIRST_REWARD_TOKEN,),
    )


def videoreward_config(
    head: HeadKind = "shared_linear", *, lora: bool = False
) -> RewardModelConfig:
    """VideoReward (VideoAlign): Qwen2-VL-2B; ``lora`` is the published, unmerged one."""
    return RewardModelConfig(
        backbone=_published_backbone(1536, 8960, heads=12, key_value_heads=2, reward_tokens=3),
        head=head,
        reward_token_ids=tuple(_FIRST_REWARD_TOKEN + i for i in range(3)),
        lora_rank=64 if lora else 0,
        lora_alpha=128.0,
    )


def _published_backbone(
    width: int, mlp_width: int, *, heads: int, key_value_heads: int, reward_tokens: int
) -> Qwen2VLConfig:
    text = {
        # Both checkpoints cut the padded vocabulary of the base model down to the tokenizer's.
        "vocab_size": _FIRST_REWARD_TOKEN + reward_tokens,
        "hidden_size": width,
        "intermediate_size": mlp_width,
        "num_hidden_layers": 28,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [16, 24, 24],
        },
    }
    vision = {"depth": 32, "embed_dim": 1280, "hidden_size": width, "num_heads": 16}
    return backbone_config({"text_config": text, "vision_config": vision, **QWEN2VL_TOKENS})
