"""Block order of video tokens: which token lies where when 3D blocks are stored back to back.

Appendix A.2.1: a clip of T x H x W tokens in plain order [T, H, W] is cut into blocks of
t x h x w. Blocks are stored in the order [Nt, Nh, Nw], the tokens of a block in [t, h, w]. Blocks
at an edge that the block size does not divide are smaller; nothing is padded.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor

from longtake.runtime.errors import UserError

#: Sizes along time, height and width, in tokens.
Size3: TypeAlias = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class BlockLayout:
    """Block order of one token grid.

    Index tensors are computed on the device that asks for them and kept with the instance, so
    hold on to an instance that is used in every layer.

    Raises:
        UserError: sizes that are not three positive integers, segments that do not add up to T,
            or 2^31 tokens and more.
    """

    grid: Size3
    """(T, H, W): tokens along each axis."""
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
        for name, sizes in (("grid", self.grid), ("block", self.block)):
            if len(sizes) != 3 or not all(_is_count(size) for size in sizes):
                raise UserError(
                    f"the {name} of a block layout needs three positive integers",
                    received=repr(sizes),
                    expected="(time, height, width) in tokens",
                    remedy="count tokens after patching, not latents or pixels",
                )
        frames = self.segments or (self.grid[0],)
        if not all(_is_count(n) for n in frames) or sum(frames) != self.grid[0]:
            raise UserError(
                "the segments of a block layout do not make up its frames",
                received=f"segments {self.segments}, grid {self.grid}",
                expected=f"positive numbers of frames with the sum {self.grid[0]}",
                remedy="give the length of every stretch of frames, or none",
            )
        if self.num_tokens >= 2**31:
            raise UserError(
                "the token grid is too large for 32-bit offsets",
                received=f"{self.grid}: {self.num_tokens} tokens",
                expected="fewer than 2^31 tokens per clip",
                remedy="split the clip",
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
        _, height, width = self.grid
        t, h, w = self.block
        in_time = sum(-(-frames // t) for frames in self.segments or (self.grid[0],))
        return in_time, -(-height // h), -(-width // w)

    @property
    def max_block_size(self) -> int:
        """Tokens of a whole block; no block of the grid has more."""
        return math.prod(self.block)

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
        return self._keep("frame_index", device)

    def to_block(self, x: Tensor, dim: int) -> Tensor:
        """Tokens of ``x`` along ``dim`` (N of them, plain order) in block order; a copy.

        Raises:
            UserError: another number of tokens along ``dim``.
        """
        self._check_tokens(x, dim)
        order, back = self.permutation(x.device), self.inverse(x.device)
        return _reorder(x, order, back, dim)

    def from_block(self, x: Tensor, dim: int) -> Tensor:
        """Undo :meth:`to_block`."""
        self._check_tokens(x, dim)
        order, back = self.inverse(x.device), self.permutation(x.device)
        return _reorder(x, order, back, dim)

    def _check_tokens(self, x: Tensor, dim: int) -> None:
        if x.shape[dim] != self.num_tokens:
            raise UserError(
                "the tensor does not have the tokens of the block layout",
                received=f"shape {tuple(x.shape)}, {x.shape[dim]} along axis {dim}",
                expected=f"{self.num_tokens} tokens of the grid {self.grid}",
                remedy="name the axis of the tokens, or build the layout for this grid",
            )

    def _keep(self, name: str, device: torch.device | str) -> Tensor:
        """Compute once per device, unless a compiler or a CUDA graph is recording."""
        where = torch.device(device)
        if torch.compiler.is_compiling():
            return self._compute(name, where)
        key = (name, where)
        if key not in self._kept:
            with torch.inference_mode(False):  # training may use what sampling computed first
                tensor = self._compute(name, where)
            # A tracer's tensor and memory of a graph being captured do not outlive this call.
            if type(tensor) is not Tensor or (
                where.type == "cuda" and torch.cuda.is_current_stream_capturing()
            ):
                return tensor
            self._kept[key] = tensor
        return self._kept[key]

    def _compute(self, name: str, device: torch.device) -> Tensor:
        if name == "offsets":
            return self._offsets(device)
        inverse = self._inverse(device)
        if name == "inverse":
            return inverse
        tokens = torch.arange(self.num_tokens, device=device)
        permutation = torch.empty_like(tokens).scatter_(0, inverse, tokens)
        if name == "permutation":
            return permutation
        return permutation // (self.grid[1] * self.grid[2])

    def stretches(self) -> Iterator[tuple[int, int]]:
        """(first frame, frames) of every segment."""
        first = 0
        for frames in self.segments or (self.grid[0],):
            yield first, frames
            first += frames

    def _offsets(self, device: torch.device) -> Tensor:
        # Closed form on the device: copying a list there would wait for it, and break capture.
        _, height, width = self.grid
        t, h, w = self.block
        row = torch.arange(0, height, h, device=device)[:, None]
        column = torch.arange(0, width, w, device=device)
        parts = []
        for first, frames in self.stretches():
            frame = torch.arange(0, frames, t, device=device)[:, None, None]
            thick, high = _at_most(frames - frame, t), _at_most(height - row, h)
            before = frame * (height * width) + thick * (row * width + high * column)
            parts.append(before.flatten() + first * height * width)
        parts.append(torch.full((1,), self.num_tokens, device=device))
        return torch.cat(parts).int()

    def _inverse(self, device: torch.device) -> Tensor:
        _, height, width = self.grid
        t, h, w = self.block
        y = torch.arange(height, device=device)[:, None]
        x = torch.arange(width, device=device)
        row, column = y // h * h, x // w * w
        high, wide = _at_most(height - row, h), _at_most(width - column, w)
        parts = []
        for first, frames in self.stretches():
            z = torch.arange(frames, device=device)[:, None, None]
            frame = z // t * t
            thick = _at_most(frames - frame, t)
            before = frame * (height * width) + thick * (row * width + high * column)
            inside = ((z - frame) * high + (y - row)) * wide + (x - column)
            parts.append((before + inside).flatten() + first * height * width)
        return torch.cat(parts)


def _at_most(x: Tensor, bound: int) -> Tensor:
    # A choice, not a minimum: PyTorch 2.11 compiles index arithmetic into symbols, and fails on
    # minima of them.
    return torch.where(x < bound, x, bound)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


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
