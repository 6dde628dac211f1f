"""The LongCat-Video diffusion transformer, with the published names (section 3.1, Table 1).

Different from Table 1: the released model's FFN is 11,008 wide (2/3 rule), not 16,384.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from longtake.core.attention import KeyValue, KeyValueCache
from longtake.core.block_order import BlockOrder, BlockOrders, BSAConfig
from longtake.core.blocks import (
    CaptionEmbedder,
    DiTBlock,
    FinalLayer,
    PatchEmbed,
    TimestepEmbedder,
)
from longtake.core.rope import RotaryTables
from longtake.runtime.errors import CheckpointError, UserError


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DiTConfig:
    """Shape of the transformer; field names are those of the release's ``dit/config.json``."""

    in_channels: int = 16
    out_channels: int = 16
    hidden_size: int = 4096
    """Token width C."""
    depth: int = 48
    num_heads: int = 32
    caption_channels: int = 4096
    """Width of the text encoder's states."""
    mlp_ratio: int = 4
    """FFN expansion before the 2/3 rule of SwiGLU."""
    adaln_tembed_dim: int = 512
    """Width of the timestep embedding (Table 1: AdaLN embedding size)."""
    frequency_embedding_size: int = 256
    """Number of sinusoidal timestep features."""
    patch_size: tuple[int, int, int] = (1, 2, 2)
    """Patch (frames, rows, columns)."""
    text_tokens_zero_pad: bool = False
    """Zero the padded text tokens and attend to all of them, as the released model does."""
    enable_bsa: bool = False
    """Start with block-sparse self-attention; the release starts without."""
    bsa_params: dict[str, Any] | None = None
    """Its settings as published, see :meth:`BSAConfig.from_published`; None for the defaults."""

    def __post_init__(self) -> None:
        """Check that RoPE can split a head, and the types of what JSON brings."""
        head_dim, rest = divmod(self.hidden_size, self.num_heads)
        if rest or head_dim % 2:
            raise CheckpointError(
                "DiT config: hidden_size must split into heads of even width",
                received=f"hidden_size={self.hidden_size}, num_heads={self.num_heads}",
            )
        if type(self.enable_bsa) is not bool or not isinstance(self.bsa_params, dict | None):
            raise CheckpointError(
                "DiT config: the keys of the block-sparse attention have the wrong type",
                received=f"enable_bsa={self.enable_bsa!r}, bsa_params={self.bsa_params!r}",
                expected="true or false, and an object or null",
                remedy="correct dit/config.json",
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DiTConfig":
        """Read a ``config.json`` mapping; keys that do not shape the network are left aside."""
        known = {f.name for f in dataclasses.fields(cls)}
        kept = {k: v for k, v in values.items() if k in known}
        if "patch_size" in kept:
            kept["patch_size"] = tuple(kept["patch_size"])
        return cls(**kept)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready mapping; inverse of :meth:`from_dict`."""
        return {**dataclasses.asdict(self), "patch_size": list(self.patch_size)}


class LongCatDiT(nn.Module):
    """Video DiT predicting the velocity v = x0 - eps of every latent frame."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        dim, embed_dim = config.hidden_size, config.adaln_tembed_dim
        self.x_embedder = PatchEmbed(config.patch_size, config.in_channels, dim)
        self.t_embedder = TimestepEmbedder(config.frequency_embedding_size, embed_dim)
        self.y_embedder = CaptionEmbedder(config.caption_channels, dim)
        self.blocks = nn.ModuleList(
            DiTBlock(dim, config.num_heads, config.mlp_ratio, embed_dim)
            for _ in range(config.depth)
        )
        patch = config.patch_size[0] * config.patch_size[1] * config.patch_size[2]
        self.final_layer = FinalLayer(dim, patch * config.out_channels, embed_dim)
        self.rope = RotaryTables(dim // config.num_heads)
        self.gradient_checkpointing = False
        self.block_orders: BlockOrders | None = None
        if config.enable_bsa:
            enable_bsa(self)

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> "LongCatDiT":
        """Fresh weights for training from nothing: Xavier linears, zero gates and output.

        Zero modulation and output make every block the identity at the start (AdaLN-Zero).
        """
        for name, parameter in self.named_parameters():
            if parameter.ndim >= 2:
                flat = parameter.view(parameter.shape[0], -1)
                bound = (6.0 / (flat.shape[0] + flat.shape[1])) ** 0.5
                parameter.uniform_(-bound, bound, generator=generator)
                # The deviation with which DiT initialises its timestep embedding.
                if name.startswith("t_embedder"):
                    parameter.normal_(0, 0.02, generator=generator)
            elif name.endswith("bias"):
                parameter.zero_()
        for name, parameter in self.named_parameters():
            if "adaLN_modulation" in name or name.startswith("final_layer"):
                parameter.zero_()
        return self

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None = None,
        *,
        num_cond_latents: int = 0,
        kv_cache: KeyValueCache | None = None,
        return_kv: bool = False,
        skip_cross_attention: bool = False,
    ) -> Any:
        """Predict the velocity of latents.

        Args:
            hidden_states: latents [B, C, T, H, W], condition frames first. With ``kv_cache`` the
                noisy frames only.
            timestep: 1000 t, per sample [B] or per latent frame [B, T]; 0 for condition frames.
            encoder_hidden_states: text states [B, 1, L, D] or [B, L, D].
            encoder_attention_mask: [B, L], 1 for real tokens; None means all are real.
            num_cond_latents: leading condition frames, in ``hidden_states`` or in ``kv_cache``.
            kv_cache: per block, keys (before RoPE) and values of the condition tokens, as an
                earlier call with ``return_kv`` returned them.
            return_kv: also return the keys and values of every block, to build a cache.
            skip_cross_attention: leave text out (when only condition frames are passed).

        Returns:
            Velocity [B, C_out, T, H, W], with ``return_kv`` also the cache.
        """
        b, _, t, h, w = hidden_states.shape
        grid = self._token_grid(t, h, w)
        num_cond = num_cond_latents // self.config.patch_size[0]
        num_cond_tokens = num_cond * grid[1] * grid[2]
        order = self._block_order(grid, num_cond, kv_cache)
        embed = self._embed_timestep(timestep, b, t, keep_shared=order is not None)
        text, mask = (None, None)
        if not skip_cross_attention:
            text, mask = self._embed_text(encoder_hidden_states, encoder_attention_mask)
        x = self.x_embedder(hidden_states)
        if order is not None:
            x = order.tokens.to_block(x, 1)
        past = num_cond if kv_cache is not None else 0
        # Keys of the cache are not rotated yet, so the tables cover the condition frames too.
        whole = (grid[0] + past, grid[1], grid[2])
        tables = self.rope(whole, x.device, None if order is None else order.keys)
        key_values: list[KeyValue] = []
        for i, block in enumerate(self.blocks):
            cached = None if kv_cache is None else kv_cache[i]
            args = (x, text, mask, embed, tables, num_cond_tokens, cached, order)
            # use_reentrant=False: the other way loses gradients of inputs that are not tensors.
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x, key_value = checkpoint(block, *args, use_reentrant=False)
            else:
                x, key_value = block(*args)
            if return_kv:
                key_values.append(key_value)
        out = self.final_layer(x, embed, None if order is None else order.tokens)
        if order is not None:
            out = order.tokens.from_block(out, 1)
        out = self._unpatchify(out, grid)
        if not return_kv:
            return out
        return out, KeyValueCache(key_values, None if order is None else order.config.block)

    def _block_order(
        self, grid: tuple[int, int, int], num_cond: int, kv_cache: KeyValueCache | None
    ) -> BlockOrder | None:
        """Block order of the tokens; None without block-sparse attention."""
        order = None
        if self.block_orders is not None:
            order = self.block_orders.find(grid, num_cond, kv_cache is not None)
        block = None if order is None else order.config.block
        if kv_cache is not None and kv_cache.block != block:
            raise UserError(
                "the tokens of the key-value cache lie in another order",
                received=f"a cache in {_order_name(kv_cache.block)}",
                expected=_order_name(block),
                remedy="encode the condition frames again after enable_bsa or disable_bsa",
            )
        return order

    def _token_grid(self, t: int, h: int, w: int) -> tuple[int, int, int]:
        p_t, p_h, p_w = self.config.patch_size
        if t % p_t or h % p_h or w % p_w:
            raise UserError(
                "latent size is not a multiple of the patch",
                received=f"(T, H, W) = ({t}, {h}, {w})",
                expected=f"multiples of {self.config.patch_size}",
                remedy="choose a frame size divisible by VAE factor times patch (16 px)",
            )
        return t // p_t, h // p_h, w // p_w

    def _embed_timestep(self, timestep: Tensor, b: int, t: int, keep_shared: bool) -> Tensor:
        """[B, T, E]; with ``keep_shared`` [B, 1, E] for a timestep that all frames share."""
        is_shared = keep_shared and timestep.ndim == 1
        if timestep.ndim == 1:
            timestep = timestep[:, None].expand(b, t)
        assert timestep.shape == (b, t), timestep.shape
        # One embedding for all frames is one row to modulate by instead of T.
        frames = timestep[:, :1] if is_shared else timestep[:, :: self.config.patch_size[0]]
        return self.t_embedder(frames.reshape(-1)).unflatten(0, frames.shape)

    def _embed_text(self, states: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if states.ndim == 4:
            states = states.squeeze(1)
        text = self.y_embedder(states)
        if mask is not None and mask.ndim > 2:
            mask = mask.flatten(1)
        if mask is not None and self.config.text_tokens_zero_pad:
            # The release attends to the padding too, and its weights were trained that way.
            return text * mask[..., None].to(text.dtype), None
        return text, mask

    def _unpatchify(self, x: Tensor, grid: tuple[int, int, int]) -> Tensor:
        b = x.shape[0]
        x = x.view(b, *grid, *self.config.patch_size, self.config.out_channels)
        x = x.permute(0, 7, 1, 4, 2, 5, 3, 6)  # [B, C, T, p_t, H, p_h, W, p_w]
        return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def enable_bsa(dit: LongCatDiT, config: BSAConfig | None = None) -> None:
    """Switch the self-attention of videos to block-sparse attention; images stay dense.

    Weights and LoRAs are untouched, key-value caches have to be built again. ``config`` None takes
    ``bsa_params`` of the checkpoint, and without these the published rule.
    """
    if config is None:
        config = BSAConfig.from_published(dit.config.bsa_params or {})
    dit.block_orders = BlockOrders(config)


def disable_bsa(dit: LongCatDiT) -> None:
    """Switch the self-attention back to dense; caches have to be built again."""
    dit.block_orders = None


def _order_name(block: tuple[int, int, int] | None) -> str:
    return "frame-major order" if block is None else f"block order {block}"
