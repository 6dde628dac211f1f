"""Block order of tokens for block-sparse self-attention inside the DiT (section 3.4.2).

Tokens are put in block order once, behind the patch embedding, and back once, in front of the
output. Everything between is per token, or knows where a token lies: RoPE takes its table in block
order, AdaLN scales and shifts each frame through one view per shape of block, so that nothing is
gathered and no table of N tokens is made. Condition and noisy frames are cut into blocks
separately, so that condition tokens stay in front and no block holds both.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from longtake.kernels.block_sparse import (
    BlockLayout,
    Size3,
    attention_from_index,
    count_from_rule,
    select_blocks,
)
from longtake.runtime.errors import CheckpointError, ConfigError

#: Share of key blocks that the published model leaves out (Table 7).
PUBLISHED_SPARSITY = 0.9375


# A dataclass, not a Config: compilers read its fields in the middle of a forward pass.
@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BSAConfig:
    """Which key blocks the queries of a block attend to; without a rule, the published one."""

    block: Size3 = (4, 4, 4)
    """(t, h, w): tokens of a block, of queries and of keys. Release: 4 x 4 x 4."""
    sparsity: float | None = None
    """Share of key blocks left out, in [0, 1); at least one stays. Release: 0.9375."""
    topk: int | None = None
    """Key blocks per query block, >= 1, instead of ``sparsity``."""
    cdf_p: float | None = None
    """Smallest set of key blocks with this share of the pooled softmax, in (0, 1]; with
    ``sparsity`` or ``topk`` the larger of both sets."""
    min_blocks: int = 1
    """Key blocks that every query block gets at least, >= 1."""
    max_blocks: int | None = None
    """Length of the block lists, which bounds their memory under ``cdf_p``; null is all."""
    backend: str = "auto"
    """Implementation: auto | triton | gluon | reference."""

    def __post_init__(self) -> None:
        """Check what does not depend on the clip."""
        BlockLayout((1, 1, 1), self.block)
        count_from_rule(1, topk=self.topk, sparsity=self.sparsity)
        if self.cdf_p is not None and not 0 < self.cdf_p <= 1:
            raise ConfigError("cdf_p is out of range", received=self.cdf_p, expected="(0, 1]")
        most = self.min_blocks if self.max_blocks is None else self.max_blocks
        if not 1 <= self.min_blocks <= most:
            raise ConfigError(
                "min_blocks is out of range",
                received=f"min_blocks={self.min_blocks}, max_blocks={self.max_blocks}",
                expected="1 <= min_blocks <= max_blocks",
            )

    @property
    def rule(self) -> dict[str, Any]:
        """Arguments of :func:`select_blocks`."""
        is_unset = self.topk is None and self.sparsity is None and self.cdf_p is None
        return {
            "sparsity": PUBLISHED_SPARSITY if is_unset else self.sparsity,
            "topk": self.topk,
            "cdf_p": self.cdf_p,
            "min_blocks": self.min_blocks,
            "max_blocks": self.max_blocks,
        }

    @classmethod
    def from_published(cls, params: Mapping[str, Any]) -> "BSAConfig":
        """Read ``bsa_params`` of a published ``dit/config.json``."""
        left = dict(params)
        try:
            shapes = {tuple(left.pop(f"chunk_3d_shape_{x}", (4, 4, 4))) for x in "qk"}
            sparsity, cdf_p = left.pop("sparsity", None), left.pop("cdf_threshold", None)
            if left or len(shapes) > 1:
                raise ValueError("sparsity, cdf_threshold, equal chunk_3d_shape_q and _k only")
            return cls(block=shapes.pop(), sparsity=sparsity, cdf_p=cdf_p)
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                "bsa_params of the DiT config cannot be used",
                received=repr(dict(params)),
                expected=str(error),
                remedy="correct dit/config.json, or pass a BSAConfig to enable_bsa",
            ) from error


@dataclasses.dataclass(frozen=True, eq=False)
class BlockOrder:
    """Where the tokens of one forward pass lie, and which attention reads what."""

    config: BSAConfig
    """Block selection."""
    tokens: BlockLayout
    """Tokens that pass through the network: condition frames, if not cached, then noisy ones."""
    keys: BlockLayout
    """Cached condition frames, then ``tokens``."""
    parts: tuple[BlockLayout, ...]
    """Condition frames and noisy frames alone; either may be absent."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of all tokens or of one part to all keys or to the same part.

        Queries [B, N, S, D] in block order, after QK-norm and RoPE; keys and values [B, N, S', D].
        """
        # All frames have one size: parts of equally many tokens are cut alike.
        by_size = {layout.num_tokens: layout for layout in (*self.parts, self.keys)}
        layout_q, layout_k = by_size[q.shape[2]], by_size[k.shape[2]]
        config = self.config
        # Keys of a single frame are few, and the release keeps images dense.
        if layout_k.grid[0] == 1 or self._selects_all(layout_k):
            return F.scaled_dot_product_attention(q, k, v)
        index = select_blocks(q, k, layout_q, layout_k, **config.rule, backend=config.backend)
        out = attention_from_index(
            q,
            k,
            v,
            index,
            layout_q,
            layout_k,
            layout="block",
            backend=config.backend,
        )
        assert isinstance(out, Tensor)
        return out

    def _selects_all(self, layout: BlockLayout) -> bool:
        """Whether dense attention gives the same, and the user has not named an implementation."""
        rule = self.config.rule
        count = count_from_rule(layout.num_blocks, topk=rule["topk"], sparsity=rule["sparsity"])
        return self.config.backend == "auto" and count == layout.num_blocks


class BlockOrders:
    """Block orders per token grid, kept for the few grids a run uses."""

    MAX_ORDERS = 8

    def __init__(self, config: BSAConfig) -> None:
        self.config = config
        self._orders: dict[tuple[Size3, int, bool], BlockOrder] = {}

    def find(self, grid: Size3, num_cond: int, is_cached: bool) -> BlockOrder | None:
        """The order of tokens (T, H, W) with ``num_cond`` condition frames, in the grid or cached.

        None for an image, which stays plain.
        """
        if grid[0] == 1 and num_cond == 0:
            return None
        key = (grid, num_cond, is_cached)
        if key not in self._orders:
            # The oldest goes; building it again is cheap.
            if len(self._orders) >= self.MAX_ORDERS:
                self._orders.pop(next(iter(self._orders)))
            self._orders[key] = self._build(grid, num_cond, is_cached)
        return self._orders[key]

    def _build(self, grid: Size3, num_cond: int, is_cached: bool) -> BlockOrder:
        frames, height, width = grid
        num_noisy = frames if is_cached else frames - num_cond
        stretches = tuple(n for n in (num_cond, num_noisy) if n)

        def layout(*segments: int) -> BlockLayout:
            return BlockLayout((sum(segments), height, width), self.config.block, segments)

        # Condition and noisy frames are cut apart, or a block would mix clean and noisy keys.
        keys = layout(*stretches)
        tokens = layout(num_noisy) if is_cached else keys
        return BlockOrder(self.config, tokens, keys, tuple(map(layout, stretches)))


def scale_frames(y: Tensor, factor: Tensor, layout: BlockLayout | None = None) -> Tensor:
    """``y`` times the factor of its frame.

    Args:
        y: tokens [B, S, C].
        factor: [B, T, C] of the type of ``y``; one frame (T = 1) counts for all tokens.
        layout: block order of the tokens; None for plain order, S a multiple of T.
    """
    if layout is None or factor.shape[1] == 1:
        return (y.unflatten(1, (factor.shape[1], -1)) * factor[:, :, None]).flatten(1, 2)
    return _FrameAffine.apply(y, factor, None, layout)  # type: ignore[no-any-return]


def scale_and_shift_frames(
    y: Tensor, factor: Tensor, shift: Tensor, layout: BlockLayout | None = None
) -> Tensor:
    """``y`` times the factor plus the shift of its frame; arguments as in :func:`scale_frames`."""
    if layout is None or factor.shape[1] == 1:
        framed = y.unflatten(1, (factor.shape[1], -1))
        return (framed * factor[:, :, None] + shift[:, :, None]).flatten(1, 2)
    return _FrameAffine.apply(y, factor, shift, layout)  # type: ignore[no-any-return]


class _FrameAffine(torch.autograd.Function):
    """Explicit gradients: autograd would copy the whole result for every view written to."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, factor: Tensor, shift: Tensor | None, layout: BlockLayout
    ) -> Tensor:
        ctx.save_for_backward(y, factor)
        ctx.layout = layout
        return _apply(y, factor, shift, layout)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (y, factor), layout = grads, ctx.saved_tensors, ctx.layout
        needs_y, needs_factor, needs_shift, _ = ctx.needs_input_grad
        return (
            _apply(grad, factor, None, layout) if needs_y else None,
            _sum_frames(grad * y, layout) if needs_factor else None,
            _sum_frames(grad, layout) if needs_shift else None,
            None,
        )


# Compilers fuse a gather into what follows, but take seconds to trace the views of one call.


def _apply(y: Tensor, factor: Tensor, shift: Tensor | None, layout: BlockLayout) -> Tensor:
    if torch.compiler.is_compiling():
        frame = layout.frame_index(y.device)
        out = y * factor[:, frame]
        return out if shift is None else out + shift[:, frame]
    out = torch.empty_like(y, memory_format=torch.contiguous_format)
    targets, sources = equal_blocks(out, layout, 1), equal_blocks(y, layout, 1)
    for (frames, target), (_, source) in zip(targets, sources, strict=True):
        torch.mul(source, _blocks(factor, frames, source), out=target)
        if shift is not None:
            target += _blocks(shift, frames, source)
    return out


def _sum_frames(x: Tensor, layout: BlockLayout) -> Tensor:
    """Sum of the tokens [B, S, C] of every frame: [B, T, C], in a fixed order."""
    if torch.compiler.is_compiling():
        return layout.from_block(x, 1).unflatten(1, (layout.grid[0], -1)).sum(2)
    out = x.new_zeros((x.shape[0], layout.grid[0], x.shape[2]))
    for frames, view in equal_blocks(x, layout, 1):
        out[:, frames] += view.sum((2, 3, 5)).flatten(1, 2)
    return out


def _blocks(per_frame: Tensor, frames: slice, view: Tensor) -> Tensor:
    """[B, T, C] as [B, nt, 1, 1, t, 1, C], against a view [B, nt, nh, nw, t, hw, C]."""
    framed = per_frame[:, frames].unflatten(1, (view.shape[1], view.shape[4]))
    return framed[:, :, None, None, :, None]


def equal_blocks(x: Tensor, layout: BlockLayout, dim: int) -> Iterator[tuple[slice, Tensor]]:
    """All tokens of ``x``, the blocks of one shape at a time.

    Blocks of one shape lie at regular distances, so all of them together are a view: up to two
    shapes per axis, whole blocks and the smaller one at the edge, and per stretch of frames. Work
    per frame then needs neither a gather nor an index.

    Args:
        x: tokens in block order along ``dim``, any strides.
        layout: their layout.
        dim: axis of the tokens, not negative.

    Yields:
        The frames of these blocks and a view of ``x`` in which ``dim`` has become the axes
        (nt, nh, nw, t, h * w): blocks along time, height and width, frames of a block, tokens of a
        block per frame. The slice has nt * t frames. A grid that the block size divides yields one
        view per stretch of frames.
    """
    _, height, width = layout.grid
    t, h, w = layout.block
    for start, frames in layout.stretches():
        for i, nt, bt in _runs(frames, t):
            first = start + i * t
            slab = x.narrow(dim, first * height * width, nt * bt * height * width)
            slab = slab.unflatten(dim, (nt, bt * height * width))
            for j, nh, bh in _runs(height, h):
                rows = slab.narrow(dim + 1, j * h * bt * width, nh * bh * bt * width)
                rows = rows.unflatten(dim + 1, (nh, bh * bt * width))
                for m, nw, bw in _runs(width, w):
                    blocks = rows.narrow(dim + 2, m * w * bt * bh, nw * bw * bt * bh)
                    blocks = blocks.unflatten(dim + 2, (nw, bt, bh * bw))
                    yield slice(first, first + nt * bt), blocks


def _runs(size: int, block: int) -> Iterator[tuple[int, int, int]]:
    """(first block, blocks, tokens in each): the whole blocks of an axis, then the edge block."""
    whole, rest = divmod(size, block)
    if whole:
        yield 0, whole, block
    if rest:
        yield whole, 1, rest
