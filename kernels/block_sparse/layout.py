"""Block order of video tokens: which token lies where when 3D blocks are stored back to back.

Appendix A.2.1: a clip of T x H x W tokens in plain order [T, H, W] is cut into blocks of
t x h x w. Blocks are stored in the order [Nt, Nh, Nw], the tokens of a block in [t, h, w]. Blocks
at an edge that the block size does not divide are smaller; nothing is padded.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from longtake.runtime.errors import UserError

#: Sizes along time, height and width, in tokens.
Size3: TypeAlias = tuple[int, int, int]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """Blocks of tokens that lie back to back on a device, as the kernels see them."""

    offsets: Tensor
    """int32 [Nblk + 1]: first token of every block, then N."""
    num_tokens: int
    """N."""
    largest: int
    """Tokens of a whole block; no block has more. Kernels choose their tiles by it, because
    reading the offsets would wait for the device."""

    @property
    def count(self) -> int:
        """Nblk."""
        return self.offsets.numel() - 1

    @property
    def fill(self) -> float:
        """Share of tokens in the room of blocks that are all whole."""
        return self.num_tokens / (self.count * self.largest)

    def tiles(self, tile: int) -> int:
        """Tiles of that many tokens that a whole block needs."""
        return -(-self.largest // tile)

    def ragged(self, tile: int) -> bool:
        """Whether some tile is not full."""
        return self.largest % tile > 0 or self.num_tokens != self.count * self.largest


@dataclasses.dataclass(frozen=True)
class BlockLayout:
    """Block order of one token grid.

    Index tensors are computed on the device that asks for them and kept with the instance, so
    hold on to an instance that is used in every layer.
    """

    grid: Size3
    """(T, H, W): tokens along each axis, fewer than 2^31 in all."""
    block: Size3 = (4, 4, 4)
    """(t, h, w): tokens of a whole block along each axis."""
    segments: tuple[int, ...] = ()
    """Stretches of frames that no block crosses, such as condition frames and noisy frames;
    they add up to T. Empty: one stretch."""
    _kept: dict[tuple[str, torch.device], Tensor] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        for name in ("grid", "block", "segments"):  # lists would make it unhashable
            object.__setattr__(self, name, tuple(getattr(self, name)))
        sizes = (*self.grid, *self.block, *self.segments)
        whole = all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sizes)
        whole = whole and len(self.grid) == len(self.block) == 3 and self.num_tokens < 2**31
        if not whole or (self.segments and sum(self.segments) != self.grid[0]):
            raise UserError(
                "not the sizes of a block layout",
                received=f"grid {self.grid}, block {self.block}, segments {self.segments}",
                expected="three positive integers (time, height, width) for grid and block, fewer "
                "than 2^31 tokens (offsets have 32 bits), segments with the sum T or none",
                remedy="count tokens after patching, not latents or pixels",
            )

    @property
    def num_tokens(self) -> int:
        """N = T H W."""
        return math.prod(self.grid)

    @property
    def num_blocks(self) -> int:
        """Nblk = Nt Nh Nw."""
        return math.prod(self.block_grid)

    @property
    def block_grid(self) -> Size3:
        """(Nt, Nh, Nw): blocks along each axis."""
        nt, nh, nw = (
            sum(-(-size // block) for size in stretches)
            for stretches, block in zip(self._stretches, self.block, strict=True)
        )
        return nt, nh, nw

    @property
    def max_block_size(self) -> int:
        """Tokens of a whole block; no block of the grid has more."""
        return math.prod(self.block)

    def stretches(self) -> Iterator[tuple[int, int]]:
        """(first frame, frames) of every segment."""
        first = 0
        for frames in self._stretches[0]:
            yield first, frames
            first += frames

    def blocks(self, device: torch.device | str = "cpu") -> Blocks:
        """The blocks in block order."""
        return Blocks(self.offsets(device), self.num_tokens, self.max_block_size)

    def offsets(self, device: torch.device | str = "cpu") -> Tensor:
        """First token of every block in block order, then N: int32 [Nblk + 1]."""
        return self._keep("offsets", device)

    def block_sizes(self, device: torch.device | str = "cpu") -> Tensor:
        """Tokens of every block: int32 [Nblk]."""
        return self.offsets(device).diff()

    def permutation(self, device: torch.device | str = "cpu") -> Tensor:
        """Plain index of every token in block order: int64 [N]; blocked = plain[permutation]."""
        return self._keep("permutation", device)

    def inverse(self, device: torch.device | str = "cpu") -> Tensor:
        """Place in block order of every token in plain order: int64 [N]."""
        return self._keep("inverse", device)

    def frame_index(self, device: torch.device | str = "cpu") -> Tensor:
        """Frame of every token in block order: int64 [N]."""
        return self.permutation(device) // (self.grid[1] * self.grid[2])

    def to_block(self, x: Tensor, dim: int) -> Tensor:
        """Tokens of ``x`` along ``dim`` (N of them, plain order) in block order; a copy."""
        self.check_tokens(x, dim)
        # Both are passed on, since the gradient needs the other one.
        order, back = self.permutation(x.device), self.inverse(x.device)
        return _reorder(x, order, back, dim)

    def from_block(self, x: Tensor, dim: int) -> Tensor:
        """Undo :meth:`to_block`."""
        self.check_tokens(x, dim)
        order, back = self.inverse(x.device), self.permutation(x.device)
        return _reorder(x, order, back, dim)

    def check_tokens(self, x: Tensor, dim: int) -> None:
        """Refuse a tensor that has not N tokens along ``dim``."""
        if not -x.ndim <= dim < x.ndim or x.shape[dim] != self.num_tokens:
            raise UserError(
                "the tensor does not have the tokens of the block layout",
                received=f"shape {tuple(x.shape)}, tokens along axis {dim}",
                expected=f"{self.num_tokens} tokens of the grid {self.grid}",
                remedy="name the axis of the tokens, or build the layout for this grid",
            )

    @property
    def _stretches(self) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
        """Along each axis the numbers of tokens that are cut into blocks separately."""
        frames, height, width = self.grid
        return self.segments or (frames,), (height,), (width,)

    def _keep(self, name: str, device: torch.device | str) -> Tensor:
        """Compute once per device, unless a compiler or a CUDA graph is recording."""
        # Every layer of every step asks, and computing takes many small kernels each time.
        where = torch.device(device)
        compute = getattr(self, f"_{name}")
        if torch.compiler.is_compiling():
            return compute(where)  # type: ignore[no-any-return]
        key = (name, where)
        if key not in self._kept:
            with torch.inference_mode(False):  # training may use what sampling computed first
                tensor: Tensor = compute(where)
            # A tracer's tensor and memory of a graph being captured do not outlive this call.
            if type(tensor) is not Tensor or (
                where.type == "cuda" and torch.cuda.is_current_stream_capturing()
            ):
                return tensor
            self._kept[key] = tensor
        return self._kept[key]

    # All on the device: a list copied there would wait for it, and break the capture of a graph.

    def _offsets(self, device: torch.device) -> Tensor:
        axes = []
        for stretches, block in zip(self._stretches, self.block, strict=True):
            starts = ((size, torch.arange(0, size, block, device=device)) for size in stretches)
            axes.append(torch.cat([_tokens_of_block(size, block, first) for size, first in starts]))
        thick, high, wide = axes
        sizes = (thick[:, None, None] * high[:, None] * wide).flatten()
        return torch.nn.functional.pad(sizes.cumsum(0), (1, 0)).int()

    def _inverse(self, device: torch.device) -> Tensor:
        number = inside = torch.zeros((), dtype=torch.int64, device=device)
        for stretches, block in zip(self._stretches, self.block, strict=True):
            parts, before = [], 0
            for size in stretches:
                at = torch.arange(size, device=device)
                first = at // block * block
                length = _tokens_of_block(size, block, first)
                parts.append(torch.stack((before + at // block, at - first, length)))
                before += -(-size // block)
            of_axis, offset, length = torch.cat(parts, 1)
            number = number[..., None] * before + of_axis
            inside = inside[..., None] * length + offset
        return (self._offsets(device)[number] + inside).flatten()

    def _permutation(self, device: torch.device) -> Tensor:
        tokens = torch.arange(self.num_tokens, device=device)
        # On ragged grids only the inverse has a simple formula; sorting it would take longer.
        return torch.empty_like(tokens).scatter_(0, self.inverse(device), tokens)


def _tokens_of_block(size: int, block: int, first: Tensor) -> Tensor:
    """Tokens of the blocks that start at ``first`` along a stretch of ``size`` tokens."""
    # A choice, not a minimum: PyTorch 2.11 compiles index arithmetic into symbols, and fails on
    # minima of them.
    return torch.where(size - first < block, size - first, block)


class _Reorder(torch.autograd.Function):
    """A permutation whose gradient is a gather too; that of index_select would be a scatter."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, back: Tensor, dim: int) -> Tensor:
        ctx.save_for_backward(order, back)
        ctx.dim = dim
        return x.index_select(dim, order)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None, None]:
        order, back = ctx.saved_tensors
        return _reorder(grads[0], back, order, ctx.dim), None, None, None


def _reorder(x: Tensor, order: Tensor, back: Tensor, dim: int) -> Tensor:
    return _Reorder.apply(x, order, back, dim)  # type: ignore[no-any-return]
