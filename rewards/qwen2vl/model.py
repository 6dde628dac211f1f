"""Qwen2-VL as a reward model: hidden states at the reward tokens, then the head.

The public scorers (HPSv3, VideoAlign) do four things that transformers' own forward pass does not,
and each moves the scores: every token has its plain index as position on all three rotary axes, the
rotary tables are rounded (:mod:`longtake.rewards.qwen2vl.layers`), the head sees only the rows at
the reward tokens, and the vision tokens are the *merged* ones.

Attention is causal and padding is on the right, so no row depends on what follows its last reward
token: sequences are cut there, no padding mask is needed, and a row scores the same in any batch.
For the same reason prompts that begin alike can share that beginning (:func:`score_variants`):
HPSv3-general and HPSv3-percentile see the same frame and the same long instruction and differ from
the caption on; some 750 of 850 tokens, and the whole vision tower, serve both.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, Qwen2VLModel

from longtake.core.lora import inject, inject_trainable, set_scaling
from longtake.rewards.qwen2vl.config import RewardModelConfig
from longtake.rewards.qwen2vl.layers import (
    HEADS,
    TextRotary,
    VisionAttention,
    VisionRotary,
    patch_positions,
)

LORA_TARGETS = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)
"""Linear layers of the language model that VideoAlign's LoRA adapts, all of them."""


@dataclass(frozen=True)
class Prefix:
    """The first P tokens of B sequences, computed once.

    Per layer, keys and values [B, key-value heads, P, head dim]; lengths [B] without padding.
    """

    key_values: tuple[tuple[Tensor, Tensor], ...]
    lengths: Tensor


class Qwen2VLRewardModel(nn.Module):
    """Backbone, rows at the reward tokens, head; built by :mod:`longtake.rewards.qwen2vl.weights`.

    ``model`` is transformers' ``Qwen2VLModel``, so that the keys of the state dict are those of a
    current checkpoint; ``rm_head`` is the head. After :meth:`split_reward_rows` the embeddings of
    the reward tokens are a parameter of their own, ``reward_rows`` [n, D].
    """

    reward_rows: nn.Parameter | None

    def __init__(self, config: RewardModelConfig) -> None:
        super().__init__()
        self.config = config
        text, vision = config.backbone.text_config, config.backbone.vision_config
        self.model = Qwen2VLModel._from_config(config.backbone, attn_implementation="sdpa")
        # In place of modules with buffers that no checkpoint holds.
        self.model.language_model.rotary_emb = TextRotary(
            text.hidden_size // text.num_attention_heads,
            float(text.rope_parameters["rope_theta"]),
            config.rotary,
        )
        self.model.visual.rotary_pos_emb = VisionRotary(
            vision.embed_dim // vision.num_heads,
            float(vision.rope_parameters["rope_theta"]),
            config.rotary,
        )
        for block in self.model.visual.blocks:
            block.attn = VisionAttention(vision.embed_dim, vision.num_heads)
        self.rm_head = HEADS[config.head](text.hidden_size)
        self.register_parameter("reward_rows", None)
        if config.lora_rank:
            layers = inject(self, dict.fromkeys(self.lora_targets(), config.lora_rank))
            for layer in layers.values():
                set_scaling(layer, "default", config.lora_alpha / config.lora_rank)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.embedding.weight.device

    @property
    def embedding(self) -> nn.Embedding:
        """The token embedding."""
        embedding = self.model.language_model.embed_tokens
        assert isinstance(embedding, nn.Embedding)
        return embedding

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor,
        grid_thw: Tensor,
        tokens: Sequence[int] | None = None,
    ) -> Tensor:
        """Scores of B prompts, float32: [B, 2] (mu, raw sigma) of a ranknet head, else [B, n].

        ``input_ids`` and ``attention_mask`` (0 for padding) are [B, L], padded on the right, with
        one image or video token per merged patch; ``pixel_values`` [sum of t h w, 1176] the
        normalised patches of all rows in their order; ``grid_thw`` [V, 3] the patches along time,
        height and width of each image or video. ``tokens`` are indices of reward tokens, None for
        all: with (1,) VideoAlign stops at its motion token and never reads the caption.
        """
        ids, lengths = self._prompts(input_ids, attention_mask)
        chosen = self._tokens(tokens)
        positions = self._reward_positions(ids, lengths, chosen)
        ids = ids[:, : int(positions.max()) + 1]
        states, _ = self._language(self._embed(ids, lengths, pixel_values, grid_thw))
        return self._head(states, positions, chosen)

    def hidden_states(
        self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor, grid_thw: Tensor
    ) -> Tensor:
        """Final hidden states [B, L, D] of all tokens; arguments of :meth:`forward`."""
        ids, lengths = self._prompts(input_ids, attention_mask)
        return self._language(self._embed(ids, lengths, pixel_values, grid_thw))[0]

    def score(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor,
        grid_thw: Tensor,
        tokens: Sequence[int] | None = None,
    ) -> Tensor:
        """:meth:`forward` in evaluation mode and without gradients."""
        with _scoring(self):
            return self.forward(input_ids, attention_mask, pixel_values, grid_thw, tokens)

    def encode_prefix(
        self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor, grid_thw: Tensor
    ) -> Prefix:
        """Run the common beginning of several prompts, with all their vision tokens, once."""
        with _scoring(self):
            ids, lengths = self._prompts(input_ids, attention_mask)
            embeddings = self._embed(ids, lengths, pixel_values, grid_thw)
            _, key_values = self._language(embeddings, keep=True)
            return Prefix(key_values, lengths)

    def score_suffix(
        self,
        prefix: Prefix,
        input_ids: Tensor,
        attention_mask: Tensor,
        tokens: Sequence[int] | None = None,
    ) -> Tensor:
        """Scores of prompts that continue ``prefix``; the prefix can be used again.

        Equal to :meth:`score` on the joined prompts up to rounding, at the cost of the suffix: text
        only, [B, S], with all reward tokens that are read.
        """
        with _scoring(self):
            ids, lengths = self._prompts(input_ids, attention_mask)
            chosen = self._tokens(tokens)
            positions = self._reward_positions(ids, lengths, chosen)
            ids = ids[:, : int(positions.max()) + 1]
            states, _ = self._language(self._embed(ids, lengths, None, None), prefix)
            return self._head(states, positions, chosen)

    def vision_tokens(self, pixel_values: Tensor, grid_thw: Tensor) -> Tensor:
        """Merged vision tokens [sum of t h w / 4, D] of patches (arguments of :meth:`forward`)."""
        merge = self.config.backbone.vision_config.spatial_merge_size
        out = self.model.visual(
            pixel_values.to(self.device),
            # The attention reads lengths on the CPU: from the device each layer would wait for it.
            grid_thw=grid_thw.cpu(),
            position_ids=patch_positions(grid_thw, merge).to(self.device, non_blocking=True),
        )
        # Since transformers 5 `last_hidden_state` holds the tokens before the merger: four times as
        # many, narrower, and a masked scatter would take them without complaint.
        merged: Tensor = out.pooler_output
        width = self.embedding.embedding_dim
        assert merged.shape[-1] == width, f"vision tokens are {merged.shape[-1]} wide, not {width}"
        return merged

    def lora_targets(self) -> list[str]:
        """Paths of the linear layers that a LoRA adapts."""
        count = len(self.model.language_model.layers)
        root = "model.language_model.layers"
        return [f"{root}.{i}.{target}" for i in range(count) for target in LORA_TARGETS]

    def add_lora(self, rank: int, alpha: float, seed: int, dropout: float = 0.0) -> None:
        """Add a trainable LoRA to the language model; scores stay the same until it is trained.

        Its factors are float32 and named ``<layer>.lora_A.default.weight`` and ``lora_B``, and the
        configuration records rank and alpha.

        The update is scaled by alpha / rank, ``seed`` names the draw of A, and ``dropout`` is the
        share of the inputs of A dropped in training mode (VideoAlign: 0.05).
        """
        inject_trainable(self, self.lora_targets(), rank, alpha, seed, dropout=dropout)
        for name, parameter in self.named_parameters():
            if ".lora_" in name:
                parameter.requires_grad_(True)
        self.config = self.config.replace(lora_rank=rank, lora_alpha=alpha)

    def split_reward_rows(self) -> nn.Parameter:
        """Make the embeddings of the reward tokens a small float32 parameter and return it.

        Training them through the embedding matrix would need gradients, optimiser states and a copy
        of all of it, 1 GB for a 7B model. While split, the rows in the matrix are not used.
        """
        if self.reward_rows is None:
            rows = self.embedding.weight.detach()[list(self.config.reward_token_ids)]
            self.reward_rows = nn.Parameter(rows.float().clone())
        return self.reward_rows

    def join_reward_rows(self) -> None:
        """Write the split rows back into the embedding matrix; the opposite of splitting."""
        if self.reward_rows is not None:
            with torch.no_grad():
                rows = self.reward_rows.to(self.embedding.weight.dtype)
                self.embedding.weight[list(self.config.reward_token_ids)] = rows
            self.reward_rows = None

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None
    ) -> None:
        """Recompute activations in the backward pass: slower, and far less memory."""
        enable = getattr(self.model, "activation_checkpointing_enable", None)
        # Older releases of transformers know only the older name.
        (enable or self.model.gradient_checkpointing_enable)(gradient_checkpointing_kwargs)

    def _prompts(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """The ids on the device of the model, and the tokens of each row [B]."""
        mask = attention_mask.to(self.device, torch.bool)
        assert bool((mask[:, :-1] >= mask[:, 1:]).all()), "prompts are padded on the right"
        return input_ids.to(self.device), mask.sum(-1)

    def _tokens(self, tokens: Sequence[int] | None) -> list[int]:
        return list(range(len(self.config.reward_token_ids)) if tokens is None else tokens)

    def _reward_positions(self, ids: Tensor, lengths: Tensor, chosen: list[int]) -> Tensor:
        """[B, n]: where each chosen token stands in its row."""
        token_ids = torch.tensor(
            [self.config.reward_token_ids[i] for i in chosen], device=ids.device
        )
        inside = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        hits = (ids[:, None] == token_ids[:, None]) & inside[:, None]  # [B, n, L]
        # A caption that spells a reward token is refused where prompts are made.
        assert bool((hits.sum(-1) == 1).all()), "a prompt has each reward token once"
        return hits.int().argmax(-1)

    def _embed(
        self, ids: Tensor, lengths: Tensor, pixels: Tensor | None, grid: Tensor | None
    ) -> Tensor:
        """Embeddings [B, L, D], vision tokens in their places."""
        embeddings: Tensor = self.embedding(ids)
        # By where, not by assignment: gradients reach the split rows, and the matrix stays frozen.
        if self.reward_rows is not None:
            for row, token in zip(self.reward_rows, self.config.reward_token_ids, strict=True):
                embeddings = torch.where((ids == token)[..., None], row.to(embeddings), embeddings)
        inside = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        backbone = self.config.backbone
        places = inside & ((ids == backbone.image_token_id) | (ids == backbone.video_token_id))
        merge = backbone.vision_config.spatial_merge_size**2
        expected = 0 if grid is None else int(grid.prod(-1).sum()) // merge
        assert int(places.sum()) == expected, "one vision token per merged patch"
        if pixels is None or grid is None:
            return embeddings
        tokens = self.vision_tokens(pixels, grid).to(embeddings.dtype)
        return embeddings.masked_scatter(places[..., None].expand_as(embeddings), tokens)

    def _language(
        self, embeddings: Tensor, prefix: Prefix | None = None, keep: bool = False
    ) -> tuple[Tensor, tuple[tuple[Tensor, Tensor], ...]]:
        """Final hidden states [B, L, D] and, when kept, keys and values of all layers."""
        batch, length, _ = embeddings.shape
        index = torch.arange(length, device=embeddings.device)
        cache, mask = DynamicCache() if keep else None, None
        if prefix is None:
            positions = index.expand(3, batch, length)
        else:
            cache = DynamicCache(prefix.key_values)
            positions = (prefix.lengths[:, None] + index).expand(3, batch, length)
            slots = torch.arange(prefix.key_values[0][0].shape[2], device=index.device)
            after = index.new_ones(batch, length, dtype=torch.bool)
            mask = torch.cat([slots < prefix.lengths[:, None], after], dim=1)
        out = self.model.language_model(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        kept = tuple((entry[0], entry[1]) for entry in cache) if keep and cache is not None else ()
        return out.last_hidden_state, kept

    def _head(self, states: Tensor, positions: Tensor, chosen: list[int]) -> Tensor:
        rows = states.gather(1, positions[..., None].expand(-1, -1, states.shape[-1]))  # [B, n, D]
        # Under autocast too: bfloat16 scores would tie within a group.
        with torch.autocast(states.device.type, enabled=False):
            return self.rm_head.score_rows(rows.float(), chosen)


@contextmanager
def _scoring(model: nn.Module) -> Iterator[None]:
    """Evaluation and inference mode for a block; the training flag is restored."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def score_variants(
    model: Qwen2VLRewardModel,
    variants: Sequence[tuple[Tensor, Tensor]],
    pixel_values: Tensor,
    grid_thw: Tensor,
    tokens: Sequence[int] | None = None,
) -> list[Tensor]:
    """Scores of S prompts for each of B pictures; equal to S calls of ``model.score``.

    ``variants`` are S pairs (input_ids, attention_mask) [B, L_s] of any lengths.
    """
    shared = common_lengths(variants, model.config.reward_token_ids)
    ids = variants[0][0]
    inside = torch.arange(ids.shape[1], device=ids.device) < shared[:, None]
    backbone = model.config.backbone
    vision = (ids == backbone.image_token_id) | (ids == backbone.video_token_id)
    if len(variants) == 1 or bool((vision & ~inside).any()):  # no beginning worth sharing
        return [model.score(*variant, pixel_values, grid_thw, tokens) for variant in variants]
    end = int(shared.max())
    prefix = model.encode_prefix(ids[:, :end], inside[:, :end], pixel_values, grid_thw)
    return [
        model.score_suffix(prefix, *_without_prefix(ids, mask, shared), tokens)
        for ids, mask in variants
    ]


def common_lengths(
    variants: Sequence[tuple[Tensor, Tensor]], reward_token_ids: Sequence[int]
) -> Tensor:
    """[B]: leading tokens that all variants of a row share, before any reward token.

    The comparison is by token, because a tokenizer may join characters across the place where two
    texts part.
    """
    length = min(ids.shape[1] for ids, _ in variants)
    ids, mask = variants[0][0][:, :length], variants[0][1][:, :length].bool()
    rewards = torch.tensor(list(reward_token_ids), device=ids.device)
    same = mask & ~torch.isin(ids, rewards)
    for other, other_mask in variants[1:]:
        same &= other_mask[:, :length].bool() & (other[:, :length] == ids)
    return same.int().cumprod(1).sum(1)


def _without_prefix(ids: Tensor, mask: Tensor, shared: Tensor) -> tuple[Tensor, Tensor]:
    """Each row from its own first unshared token on, padded on the right."""
    length = ids.shape[1]
    kept = torch.arange(length - int(shared.min()), device=ids.device)
    places = shared[:, None] + kept  # [B, S]
    inside = places < length
    places = places.clamp(max=length - 1)
    return ids.gather(1, places), mask.bool().gather(1, places) & inside
