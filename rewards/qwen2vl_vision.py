"""Attention of the vision tower: pictures of one size in one call.

transformers' PyTorch path calls attention once per picture, 93 small calls in each of 32 layers for
one clip. Pictures of one size are a batch, and frames of clips always have one size.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision
from transformers.vision_utils import get_vision_position_ids


def patch_positions(grid_thw: Tensor, merge: int) -> Tensor:
    """Row and column of each patch, on the CPU; made once for neighbours of one size.

    Args:
        grid_thw: [V, 3] patches along time, height and width of each picture or video.
        merge: patches per side that the merger joins.

    Returns:
        int64 [sum of t h w, 2].
    """
    sizes, counts = grid_thw.cpu().unique_consecutive(dim=0, return_counts=True)
    one_each = [get_vision_position_ids(size[None], merge) for size in sizes]
    return torch.cat([p.repeat(n, 1) for p, n in zip(one_each, counts.tolist(), strict=True)])


class VisionAttention(nn.Module):
    """Self-attention within each picture, or each frame pair of a video; keys ``qkv``, ``proj``.

    Args:
        width: channels D of the vision tower.
        num_heads: heads, which divide D.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self,
        hidden_states: Tensor,
        cu_seqlens: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        **kwargs: object,
    ) -> Tensor:
        """The arguments are those with which transformers' vision blocks call their attention.

        Args:
            hidden_states: [N, D], patches of all pictures.
            cu_seqlens: [pictures + 1], where each picture begins, and N.
            position_embeddings: cosines and sines [N, D / heads].
            **kwargs: for other kinds of attention.

        Returns:
            [N, D].
        """
        query, key, value = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1)).unbind(1)
        query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
        lengths: list[int] = cu_seqlens.diff().tolist()
        if len(set(lengths)) == 1:
            mixed = _attend(query, key, value, lengths[0])
        else:
            parts = zip(*(x.split(lengths) for x in (query, key, value)), lengths, strict=True)
            mixed = torch.cat([_attend(*part) for part in parts])
        out: Tensor = self.proj(mixed.flatten(1))
        return out


def _attend(query: Tensor, key: Tensor, value: Tensor, length: int) -> Tensor:
    """[N, heads, d] in pictures of ``length`` patches each to [N, heads, d]."""
    batched = (x.unflatten(0, (-1, length)).transpose(1, 2) for x in (query, key, value))
    return scaled_dot_product_attention(*batched).transpose(1, 2).flatten(0, 1)
