"""Attention of the DiT: block-causal self-attention with a KV cache, and text cross-attention.

Eqs. 1-2: condition tokens attend to condition tokens only; noisy tokens attend to both. The
condition part therefore depends on the condition frames alone, and its keys and values can be
cached over all sampling steps. Condition tokens take no part in cross-attention.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtake.core.block_order import BlockOrder
from longtake.core.flow import widen
from longtake.core.rope import rotate
from longtake.kernels.block_sparse import Size3

#: Keys (after QK-norm, before RoPE) and values of condition tokens, each [B, N, S_cond, D].
KeyValue = tuple[Tensor, Tensor]


class KeyValueCache(list[KeyValue]):
    """Keys and values of the condition tokens, per block of the DiT, and the tokens' order."""

    def __init__(self, pairs: Iterable[KeyValue] = (), block: Size3 | None = None) -> None:
        super().__init__(pairs)
        self.block = block
        """(t, h, w) of the block order; None for frame-major order."""

    def repeat(self, copies: int) -> "KeyValueCache":
        """The cache of a batch that is repeated ``copies`` times."""
        if copies == 1:
            return self
        repeated = ((k.repeat(copies, 1, 1, 1), v.repeat(copies, 1, 1, 1)) for k, v in self)
        return KeyValueCache(repeated, self.block)


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, computed in float32."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` [..., dim]."""
        y = widen(x)
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return (y * widen(self.weight)).to(x.dtype)


class SelfAttention(nn.Module):
    """Multi-head self-attention with fused qkv, QK RMSNorm and 3D RoPE."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, dim * 3)
        self.q_norm = RMSNorm(dim // num_heads)
        self.k_norm = RMSNorm(dim // num_heads)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        x: Tensor,
        tables: tuple[Tensor, Tensor],
        *,
        num_cond_tokens: int = 0,
        cached: KeyValue | None = None,
        order: BlockOrder | None = None,
    ) -> tuple[Tensor, KeyValue]:
        """Attend over ``x`` [B, S, C]: noisy tokens, behind condition tokens that are not cached.

        ``tables`` are those of the whole sequence [S_cond + S_noisy, D/2]; ``order`` None is dense
        attention. Returns the output, and keys (before RoPE) and values of the tokens in ``x``.
        """
        b, s, _ = x.shape
        qkv = self.qkv(x).view(b, s, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # each [B, N, S, D]
        q, k = self.q_norm(q), self.k_norm(k)
        fresh = (k, v)  # before RoPE: a cache must not fix where its frames stand
        cos, sin = tables
        attend = F.scaled_dot_product_attention if order is None else order.attend
        if cached is not None:
            k, v = torch.cat((cached[0], k), dim=2), torch.cat((cached[1], v), dim=2)
            q = rotate(q, cos[num_cond_tokens:], sin[num_cond_tokens:])
            k = rotate(k, cos, sin)
            out = attend(q, k, v)
        else:
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            n = num_cond_tokens
            # One call when nothing is mixed: slices of nothing would still cost a launch.
            if n in (0, s):
                out = attend(q, k, v)
            else:
                # Two calls without a mask keep the fast kernels; a block-causal mask would not.
                cond = attend(q[:, :, :n], k[:, :, :n], v[:, :, :n])
                noisy = attend(q[:, :, n:], k, v)
                out = torch.cat((cond, noisy), dim=2)
        return self.proj(out.transpose(1, 2).reshape(b, s, -1)), fresh


class CrossAttention(nn.Module):
    """Multi-head attention from video tokens to text tokens, with QK RMSNorm and no RoPE."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_linear = nn.Linear(dim, dim)
        self.kv_linear = nn.Linear(dim, dim * 2)
        self.q_norm = RMSNorm(dim // num_heads)
        self.k_norm = RMSNorm(dim // num_heads)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        """Attend from ``x`` [B, S, C] to ``text`` [B, L, C]; ``mask`` [B, L] is True to attend."""
        b, s, _ = x.shape
        q = self.q_linear(x).view(b, s, self.num_heads, -1).transpose(1, 2)
        kv = self.kv_linear(text).view(b, text.shape[1], 2, self.num_heads, -1)
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        attend = None if mask is None else mask[:, None, None, :].bool()
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=attend)
        return self.proj(out.transpose(1, 2).reshape(b, s, -1))
