"""Building blocks of the DiT: embedders, SwiGLU, AdaLN-Zero block, output layer (section 3.1).

Modulation is computed per latent frame in float32, so that condition frames (t = 0) and noisy
frames of one clip can share a forward pass.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtake.core.attention import CrossAttention, KeyValue, SelfAttention
from longtake.core.block_order import BlockOrder, scale_and_shift_frames, scale_frames
from longtake.core.flow import widen
from longtake.kernels.block_sparse import BlockLayout

NORM_EPS = 1e-6
FFN_MULTIPLE = 256


def timestep_features(t: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoidal features [N, dim] (cosines, then sines) of timesteps [N] in units of 1000 t."""
    # Cosines first, then sines: the order of the released weights.
    half = dim // 2
    step = torch.arange(half, device=t.device, dtype=torch.float32) / half
    angle = widen(t)[:, None] * torch.exp(-math.log(max_period) * step)
    return torch.cat((angle.cos(), angle.sin()), dim=-1)


def _wide_linear(layer: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(layer, nn.Linear)
    weight = widen(layer.weight)
    bias = None if layer.bias is None else widen(layer.bias)
    with torch.autocast(x.device.type, enabled=False):  # modulation stays in float32 under autocast
        return F.linear(x.to(weight.dtype), weight, bias)


class TimestepEmbedder(nn.Module):
    """MLP on sinusoidal features; runs in float32."""

    def __init__(self, frequency_dim: int, embed_dim: int) -> None:
        super().__init__()
        self.frequency_dim = frequency_dim
        self.mlp = nn.Sequential(
            nn.Linear(frequency_dim, embed_dim), nn.SiLU(), nn.Linear(embed_dim, embed_dim)
        )

    def forward(self, t: Tensor) -> Tensor:
        """Embed timesteps [N] to [N, embed_dim]."""
        # Timesteps reach 1000, where bfloat16 has steps of 4.
        hidden = F.silu(_wide_linear(self.mlp[0], timestep_features(t, self.frequency_dim)))
        return _wide_linear(self.mlp[2], hidden)


class CaptionEmbedder(nn.Module):
    """Two-layer projection of text-encoder states to the model width."""

    def __init__(self, caption_dim: int, dim: int) -> None:
        super().__init__()
        self.y_proj = nn.Sequential(
            nn.Linear(caption_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )

    def forward(self, text: Tensor) -> Tensor:
        """Project [B, L, caption_dim] to [B, L, dim]."""
        return self.y_proj(text)


class PatchEmbed(nn.Module):
    """Non-overlapping 3D patches to tokens, frame-major order."""

    def __init__(self, patch: tuple[int, int, int], in_channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(in_channels, dim, kernel_size=patch, stride=patch)

    def forward(self, z: Tensor) -> Tensor:
        """[B, C, T, H, W] to tokens [B, S, dim]."""
        return self.proj(z).flatten(2).transpose(1, 2)


class SwiGLU(nn.Module):
    """w2(silu(w1 x) * w3 x); width 2/3 of ``mlp_ratio`` x dim, rounded up to a multiple of 256."""

    def __init__(self, dim: int, mlp_ratio: float) -> None:
        super().__init__()
        # Two thirds, since SwiGLU has three matrices where a plain FFN has two.
        width = int(2 * int(dim * mlp_ratio) / 3)
        width = FFN_MULTIPLE * math.ceil(width / FFN_MULTIPLE)
        self.w1 = nn.Linear(dim, width, bias=False)
        self.w2 = nn.Linear(width, dim, bias=False)
        self.w3 = nn.Linear(dim, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, dim] to [B, S, dim]."""
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


def modulate(x: Tensor, shift: Tensor, scale: Tensor, layout: BlockLayout | None = None) -> Tensor:
    """LayerNorm without affine, then scale and shift per frame, in float32.

    Tokens [B, S, C]; shift and scale [B, T, C], or [B, 1, C] for all frames. ``layout`` is the
    block order of the tokens, None for frame-major order.
    """
    y = F.layer_norm(widen(x), x.shape[-1:], eps=NORM_EPS)
    return scale_and_shift_frames(y, 1 + scale, shift, layout).to(x.dtype)


def gated_add(x: Tensor, update: Tensor, gate: Tensor, layout: BlockLayout | None = None) -> Tensor:
    """Residual sum x + gate * update with a per-frame gate as in :func:`modulate`, in float32."""
    return (widen(x) + scale_frames(widen(update), gate, layout)).to(x.dtype)


class DiTBlock(nn.Module):
    """Single-stream block: self-attention, cross-attention, SwiGLU, with AdaLN-Zero modulation."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, embed_dim: int) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(embed_dim, 6 * dim))
        self.attn = SelfAttention(dim, num_heads)
        self.pre_crs_attn_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.cross_attn = CrossAttention(dim, num_heads)
        self.ffn = SwiGLU(dim, mlp_ratio)

    def forward(
        self,
        x: Tensor,
        text: Tensor | None,
        text_mask: Tensor | None,
        embed: Tensor,
        tables: tuple[Tensor, Tensor],
        num_cond_tokens: int,
        cached: KeyValue | None,
        order: BlockOrder | None = None,
    ) -> tuple[Tensor, KeyValue]:
        """Transform tokens [B, S, C].

        Condition tokens come first, in ``x`` or in ``cached``. ``text`` [B, L, C] None leaves
        cross-attention out, ``text_mask`` [B, L] None attends to all. ``embed`` is the timestep
        embedding per frame [B, T, E] in float32, with ``order`` also [B, 1, E]. Returns tokens and
        the self-attention keys and values of ``x``.
        """
        # In float32 even in a bfloat16 model: 1 + scale would keep 8 bits.
        modulation = _wide_linear(self.adaLN_modulation[1], F.silu(embed))
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = modulation.chunk(6, dim=-1)
        layout = None if order is None else order.tokens
        out, key_value = self.attn(
            modulate(x, shift_a, scale_a, layout),
            tables,
            num_cond_tokens=num_cond_tokens,
            cached=cached,
            order=order,
        )
        x = gated_add(x, out, gate_a, layout)
        if text is not None:
            # Condition tokens see no text, or their cache would belong to one prompt.
            skip = 0 if cached is not None else num_cond_tokens
            normed = F.layer_norm(
                widen(x[:, skip:]),
                x.shape[-1:],
                widen(self.pre_crs_attn_norm.weight),
                widen(self.pre_crs_attn_norm.bias),
                NORM_EPS,
            ).to(x.dtype)
            crossed = x[:, skip:] + self.cross_attn(normed, text, text_mask)
            x = crossed if skip == 0 else torch.cat((x[:, :skip], crossed), dim=1)
        x = gated_add(x, self.ffn(modulate(x, shift_f, scale_f, layout)), gate_f, layout)
        return x, key_value


class FinalLayer(nn.Module):
    """AdaLN and a linear map to patch pixels."""

    def __init__(self, dim: int, out_features: int, embed_dim: int) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(embed_dim, 2 * dim))
        self.linear = nn.Linear(dim, out_features)

    def forward(self, x: Tensor, embed: Tensor, layout: BlockLayout | None = None) -> Tensor:
        """Tokens [B, S, C] and per-frame embedding [B, T, E] to [B, S, out_features].

        ``layout`` is the block order of the tokens; None for frame-major order.
        """
        shift, scale = _wide_linear(self.adaLN_modulation[1], F.silu(embed)).chunk(2, dim=-1)
        return self.linear(modulate(x, shift, scale, layout))
