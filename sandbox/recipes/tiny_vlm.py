"""Where a tiny head or judge starts: a small Qwen2-VL with random weights and learned words.

The published heads start from a pretrained Qwen2-VL. None of that size exists, so a tiny head
learns everything from the sandbox; that asks for weights of unit gain, prompts of few tokens and,
for motion, for every frame of a clip.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from longtake.rewards.directory import RewardDirectory, write_reward_directory
from longtake.rewards.frames import FrameSampler
from longtake.rewards.model_inputs import (
    CHAT_TOKENS,
    VISION_END,
    VISION_PADS,
    VISION_START,
    PromptTemplate,
    add_reward_tokens,
    chat_text,
)
from longtake.rewards.pixels import PixelConfig
from longtake.rewards.qwen2vl.config import RewardModelConfig, backbone_config
from longtake.rewards.qwen2vl.weights import empty_reward_model
from longtake.rewards.spec import RewardKind, RewardSpec, Vision
from longtake.runtime.config import Config
from longtake.runtime.rng import normal

# Prompts in the order of the published ones: the caption stands before HPSv3's token, and after
# VideoAlign's motion token.
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
# Bytes and learned words, at most; the captions of the sandbox need some 530.
VOCAB_SIZE = 768
# Matrices that write into a residual stream: scaled down by its depth.
RESIDUAL_OUTPUTS = ("o_proj.weight", "down_proj.weight", "attn.proj.weight", "mlp.fc2.weight")


class TinySize(Config):
    """Size of the model and of what it sees."""

    width: PositiveInt = 96
    """Of the language model."""
    layers: PositiveInt = 3
    """Of the language model."""
    heads: PositiveInt = 4
    """Attention heads of both towers; half as many key-value heads."""
    vision_width: PositiveInt = 64
    """Of the vision tower."""
    vision_layers: PositiveInt = 2
    """Of the vision tower."""
    side: int = Field(default=84, multiple_of=28, gt=0)
    """Frames are resized to side x side pixels."""
    frames_per_second: PositiveFloat = 2.0
    """Frames that a video reward takes; at least four of a clip."""


def write_tiny_base(
    path: str | Path,
    kind: RewardKind,
    captions: Iterable[str],
    size: TinySize,
    seed: int,
    *,
    template: PromptTemplate | None = None,
) -> RewardDirectory:
    """A reward directory with random weights, named by ``seed``, to train a tiny head from.

    The tokenizer learns the words of the captions. The prompt is by default that of
    :data:`TINY_TEMPLATES`.

    Raises:
        CheckpointError: the directory is taken or cannot be written.
    """
    template = template or TINY_TEMPLATES[kind]
    vision: Vision = "image" if kind == "hpsv3" else "video"
    tokenizer = byte_tokenizer(
        template.reward_tokens, _texts(template, vision, captions), VOCAB_SIZE
    )
    ids = tokenizer.get_added_vocab()
    model = RewardModelConfig(
        backbone=backbone_config(
            {
                "text_config": _text_config(size, len(tokenizer)),
                "vision_config": {
                    "depth": size.vision_layers,
                    "embed_dim": size.vision_width,
                    "hidden_size": size.width,
                    "num_heads": size.heads,
                },
                "image_token_id": ids[VISION_PADS["image"]],
                "video_token_id": ids[VISION_PADS["video"]],
                "vision_start_token_id": ids[VISION_START],
                "vision_end_token_id": ids[VISION_END],
            }
        ),
        head="ranknet" if kind == "hpsv3" else "shared_linear",
        reward_token_ids=tuple(ids[token] for token in template.reward_tokens),
    )
    pixels = size.side * size.side
    spec = RewardSpec(
        kind=kind,
        model=model,
        reward_tokens=template.reward_tokens,
        pixels=PixelConfig(
            min_pixels=pixels,
            max_pixels=pixels,
            resample="pil" if kind == "hpsv3" else "torch",
        ),
        sampler=FrameSampler(target_fps=size.frames_per_second) if kind == "videoreward" else None,
        color_mode="rgb",
        normalization={},
    )
    return write_reward_directory(
        path,
        spec,
        template,
        tokenizer,
        unit_gain_weights(model, seed),
        provenance={"random_weights": seed},
    )


def byte_tokenizer(
    reward_tokens: Sequence[str] = (), texts: Iterable[str] = (), vocab_size: int = 512
) -> PreTrainedTokenizerFast:
    """A byte-level BPE as Qwen2's, which knows every caption, with its control tokens.

    Without texts to learn from every UTF-8 byte is one token; with them, words become tokens, and
    the prompts of tiny reward heads some four times shorter. Ids: 256 bytes, then what was learned
    (``vocab_size`` with the bytes, at most), then the control and reward tokens.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = list(texts)
    if texts:
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    add_reward_tokens(fast, (*CHAT_TOKENS, *reward_tokens))
    return fast


def unit_gain_weights(config: RewardModelConfig, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Random weights under which activations neither grow nor fade from layer to layer.

    Matrices have deviation 1 / sqrt(fan in), those that write into a residual stream of n blocks
    1 / sqrt(2 n) of it, embeddings 0.5; norms are 1 and biases 0.
    """
    blocks = {
        "visual": config.backbone.vision_config.depth,
        "language_model": config.backbone.text_config.num_hidden_layers,
    }
    for name, parameter in empty_reward_model(config).named_parameters():
        if parameter.ndim < 2:
            value = 1.0 if name.endswith("weight") else 0.0
            yield name, torch.full(parameter.shape, value)
            continue
        deviation = 0.5 if "embed_tokens" in name else parameter[0].numel() ** -0.5
        if name.endswith(RESIDUAL_OUTPUTS):
            deviation /= (2 * next(n for part, n in blocks.items() if part in name)) ** 0.5
        yield name, deviation * normal(parameter.shape, seed, "tiny base", name)


def _texts(template: PromptTemplate, vision: Vision, captions: Iterable[str]) -> Iterator[str]:
    """Pieces of the prompts between control tokens."""
    control = "|".join(re.escape(token) for token in (*CHAT_TOKENS, *template.reward_tokens))
    for caption in captions:
        yield from re.split(control, chat_text(template.render(caption), vision))


def _text_config(size: TinySize, vocab_size: int) -> dict[str, object]:
    half = size.width // size.heads // 2
    return {
        "vocab_size": vocab_size,
        "hidden_size": size.width,
        "intermediate_size": 3 * size.width,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads // 2,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            # All three axes get the same positions; only the sum matters.
            "mrope_section": [half - 2 * (half // 3), half // 3, half // 3],
        },
    }
