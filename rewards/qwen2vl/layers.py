"""What stands in for transformers' layers of Qwen2-VL, and the reward heads.

Rotary tables. Both public models were trained on transformers 4.45 after ``model.to(bfloat16)``,
which casts the frequency buffers too, and both score that way. Later releases keep the frequencies
in float32, a phase error of about one radian at position 900 of a 7B model, so the rounding is part
of the checkpoint: ``float32`` is exact, ``bf16_frequencies`` rounds the frequencies alone, ``bf16``
is what the public scorers ran: the language model widens the rounded frequencies to float32, the
vision tower stays in bfloat16, so its angles, cosines and sines are rounded too. The modules have
no buffers: a model built on the meta device has nothing to fill in.

Heads, always in float32. HPSv3's ``ranknet`` is a small network that gives a mean score and the
logarithm of its uncertainty. VideoAlign's is one linear layer without bias: a single output row is
shared by the three reward tokens, of one row per token the diagonal counts (token i, row i). The
size of a checkpoint file does not tell which of the two it holds, so the weight's shape decides.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision
from transformers.vision_utils import get_vision_position_ids

from longtake.rewards.qwen2vl.config import HeadKind, RotaryPrecision
from longtake.runtime.errors import CheckpointError

HEAD_PREFIX = "rm_head."
"""State-dict prefix of the head in every layout."""
# Rows of VideoAlign's diagonal head: visual quality, motion quality, text alignment.
DIAGONAL_ROWS = 3


def inverse_frequencies(
    dim: int, theta: float, precision: RotaryPrecision, device: torch.device
) -> Tensor:
    """theta^(-2i/dim) for i < dim/2, float32 [dim/2], rounded as ``precision`` says."""
    # Computed on the CPU so that every device rotates by the same angles.
    exponents = torch.arange(0, dim, 2, dtype=torch.float32) / dim
    frequencies = 1.0 / theta**exponents
    if precision != "float32":
        frequencies = frequencies.bfloat16().float()
    return frequencies.to(device)


class _Rotary(nn.Module):
    def __init__(self, head_dim: int, theta: float, precision: RotaryPrecision) -> None:
        super().__init__()
        self.head_dim, self.theta, self.precision = head_dim, theta, precision


class TextRotary(_Rotary):
    """Cosines and sines for the language model, from plain 1-D positions.

    Qwen2-VL splits the channels into three sections with a position each (time, height, width). The
    public reward models never pass those positions, so all three are the token index and the
    sections play no part.
    """

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Tables [B, L, head_dim] in the dtype of ``x`` for positions [3, B, L]."""
        frequencies = inverse_frequencies(self.head_dim, self.theta, self.precision, x.device)
        angles = position_ids[0, ..., None].float() * frequencies
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


class VisionRotary(_Rotary):
    """Cosines and sines for the vision tower: half the channels by row, half by column."""

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Float32 tables [N, head_dim] for patches at (row, column) ``position_ids`` [N, 2]."""
        frequencies = inverse_frequencies(self.head_dim // 2, self.theta, self.precision, x.device)
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        angles = position_ids[..., None].to(dtype) * frequencies.to(dtype)  # [N, 2, head_dim / 4]
        angles = angles.flatten(1).repeat(1, 2)
        return angles.cos().float(), angles.sin().float()


def patch_positions(grid_thw: Tensor, merge: int) -> Tensor:
    """Row and column of each patch, int64 [sum of t h w, 2] on the CPU.

    Made once for neighbours of one size. ``merge`` is the patches per side that the merger joins.
    """
    sizes, counts = grid_thw.cpu().unique_consecutive(dim=0, return_counts=True)
    one_each = [get_vision_position_ids(size[None], merge) for size in sizes]
    return torch.cat([p.repeat(n, 1) for p, n in zip(one_each, counts.tolist(), strict=True)])


class VisionAttention(nn.Module):
    """Self-attention within each picture, or each frame pair of a video; keys ``qkv``, ``proj``.

    transformers' PyTorch path calls attention once per picture, 93 small calls in each of 32 layers
    for one clip. Pictures of one size are a batch, and frames of clips always have one size.
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
        """[N, D] to [N, D]; called as transformers' vision blocks call their attention.

        ``cu_seqlens`` [pictures + 1] says where each picture begins, and N; the position embeddings
        are cosines and sines [N, D / heads].
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


class RanknetHead(nn.Sequential):
    """HPSv3's head: 1024 and 16 hidden units with ReLU, two outputs; keys 0, 3 and 5."""

    def __init__(self, width: int) -> None:
        first, second, last = nn.Linear(width, 1024), nn.Linear(1024, 16), nn.Linear(16, 2)
        super().__init__(first, nn.ReLU(), nn.Dropout(0.05), second, nn.ReLU(), last)

    def score_rows(self, rows: Tensor, tokens: Sequence[int]) -> Tensor:
        """Rows [B, 1, D] to [B, 2]: the score mu and the raw sigma; sigma = exp(raw sigma)."""
        assert rows.shape[1] == 1 and list(tokens) == [0]
        scores: Tensor = self(rows[:, 0])
        return scores


class TokenLinearHead(nn.Linear):
    """VideoAlign's head: one row shared by all reward tokens, or one row for each."""

    def __init__(self, width: int, rows: int) -> None:
        super().__init__(width, rows, bias=False)

    def score_rows(self, rows: Tensor, tokens: Sequence[int]) -> Tensor:
        """Rows [B, n, D] at the reward tokens with the indices ``tokens`` to scores [B, n]."""
        if self.out_features == 1:
            scores: Tensor = self(rows)
            return scores[..., 0]
        return torch.einsum("bnd,nd->bn", rows, self.weight[list(tokens)])


RewardHead = RanknetHead | TokenLinearHead

HEADS: dict[HeadKind, Callable[[int], RewardHead]] = {
    "ranknet": RanknetHead,
    "shared_linear": lambda width: TokenLinearHead(width, 1),
    "diagonal_linear": lambda width: TokenLinearHead(width, DIAGONAL_ROWS),
}
"""Form of the head -> constructor from the width D of the backbone."""


def infer_head(shapes: Mapping[str, Sequence[int]]) -> HeadKind:
    """The form of the head from tensor names and shapes of a state dict, in any key layout."""
    head = {
        name[name.index(HEAD_PREFIX) :]: tuple(shape)
        for name, shape in shapes.items()
        if HEAD_PREFIX in name
    }
    if head.keys() == {f"{HEAD_PREFIX}weight"} and len(linear := head[f"{HEAD_PREFIX}weight"]) == 2:
        if linear[0] == 1:
            return "shared_linear"
        if linear[0] == DIAGONAL_ROWS:
            return "diagonal_linear"
    if head.keys() == {f"{HEAD_PREFIX}{i}.{x}" for i in (0, 3, 5) for x in ("weight", "bias")}:
        return "ranknet"
    raise CheckpointError(
        "the checkpoint has no reward head of a known form",
        received=str(head) if head else f"no tensor named {HEAD_PREFIX}*",
        expected=f"{HEAD_PREFIX}weight with 1 or {DIAGONAL_ROWS} rows (VideoAlign), or "
        f"{HEAD_PREFIX}0, 3 and 5 with biases (HPSv3); the base model has none",
    )
