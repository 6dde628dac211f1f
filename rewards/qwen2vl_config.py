"""Configuration of a Qwen2-VL reward model, and the two published ones.

The backbone is described by transformers' own configuration class. What a reward adds is the form
of the head, the reward tokens, the precision of the rotary tables and an unmerged LoRA.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import Qwen2VLConfig

from longtake.rewards.heads import HEAD_TOKENS, HeadKind
from longtake.rewards.qwen2vl_rotary import ROTARY_PRECISIONS, RotaryPrecision
from longtake.runtime.errors import ConfigError

#: Qwen2-VL's own special tokens; the reward tokens follow them in both published vocabularies.
QWEN2VL_TOKENS = {
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "image_token_id": 151655,
    "video_token_id": 151656,
}
_FIRST_REWARD_TOKEN = 151657


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardModelConfig:
    """What fixes the function of a Qwen2-VL reward model besides its weights.

    Raises:
        ConfigError: a value out of range.
    """

    backbone: Qwen2VLConfig
    """Sizes and token ids; make it with :func:`backbone_config`."""
    head: HeadKind
    """Form of the head."""
    reward_token_ids: tuple[int, ...]
    """Vocabulary ids of the reward tokens, in the order in which they stand in the prompt."""
    rotary: RotaryPrecision = "bf16"
    """Precision of the rotary tables; the published checkpoints need ``bf16``."""
    lora_rank: int = 0
    """Rank of an unmerged LoRA on the linear layers of the language model; 0 for none."""
    lora_alpha: float = 128.0
    """The LoRA is scaled by alpha / rank; without a LoRA it has no effect."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "reward_token_ids", tuple(self.reward_token_ids))
        vocab = self.backbone.text_config.vocab_size
        tokens = self.reward_token_ids
        wanted = HEAD_TOKENS.get(self.head, 0)
        for value, good, name, expected in (
            (self.head, self.head in HEAD_TOKENS, "head", ", ".join(HEAD_TOKENS)),
            (self.rotary, self.rotary in ROTARY_PRECISIONS, "rotary", ", ".join(ROTARY_PRECISIONS)),
            (
                tokens,
                len(tokens) == len(set(tokens)) == wanted
                and all(0 <= token < vocab for token in tokens),
                "reward_token_ids",
                f"{wanted} different ids below the vocabulary size {vocab}",
            ),
            (self.lora_rank, self.lora_rank >= 0, "lora_rank", "0 or a rank >= 1"),
            (self.lora_alpha, self.lora_alpha > 0, "lora_alpha", "a positive number"),
        ):
            if not good:
                raise ConfigError(
                    f"{name} of the reward model cannot be used", received=value, expected=expected
                )

    def to_dict(self) -> dict[str, Any]:
        """JSON types only; :meth:`from_dict` gives back an equal configuration."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {
            **fields,
            "backbone": self.backbone.to_diff_dict(),
            "reward_token_ids": list(self.reward_token_ids),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "RewardModelConfig":
        """The configuration that :meth:`to_dict` wrote.

        Raises:
            ConfigError: missing or unknown fields, or a value out of range.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        missing = {"backbone", "head", "reward_token_ids"} - fields.keys()
        if missing or fields.keys() - known:
            raise ConfigError(
                "the reward model configuration has wrong fields",
                received=f"missing: {sorted(missing)}, unknown: {sorted(fields.keys() - known)}",
                expected=", ".join(sorted(known)),
                remedy="write it with RewardModelConfig.to_dict",
            )
        try:
            return cls(**{**fields, "backbone": backbone_config(fields["backbone"])})
        except TypeError as error:
            raise ConfigError(
                f"a field of the reward model configuration has a wrong type: {error}",
                received={name: fields[name] for name in sorted(fields.keys() - {"backbone"})},
                expected="strings, integers and numbers as RewardModelConfig.to_dict writes them",
                remedy="correct the field",
            ) from error


def backbone_config(fields: Mapping[str, Any]) -> Qwen2VLConfig:
    """The backbone's configuration from its JSON fields, old and flat or new and nested.

    Start, end and padding ids are dropped: a reward model neither generates nor pads by id, and the
    defaults lie outside of a small vocabulary.

    Raises:
        ConfigError: fields that transformers does not accept.
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
            received=sorted(fields) if isinstance(fields, Mapping) else fields,
            expected="the fields of a Qwen2-VL config.json",
            remedy="copy config.json again from its source",
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
    """VideoReward (VideoAlign): Qwen2-VL-2B; visual quality, motion quality, text alignment.

    Args:
        head: as :func:`~longtake.rewards.heads.infer_head` reads it off the checkpoint.
        lora: keep the published LoRA (rank 64, alpha 128) unmerged.
    """
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
