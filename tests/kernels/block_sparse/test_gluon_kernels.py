"""The Gluon kernels, run by a model of the machine on a CPU.

The model executes the source of the kernels one program at a time, with the worst timing that the
hardware allows: a copy spoils its destination when it is issued and delivers when its barrier is
waited for, and a product reads shared memory when it is waited for. A missing wait or a buffer
that is reused too early therefore shows as NaN, and a barrier out of step as an error.
"""

import inspect
import math
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from longtake.kernels.block_sparse import reference
from longtake.kernels.block_sparse.index import BlockIndex, BlockPairs
from longtake.kernels.block_sparse.layout import BlockLayout, Blocks

pytest.importorskip("triton", reason="Gluon is part of Triton")

from longtake.kernels.block_sparse.gluon import launch
from longtake.kernels.block_sparse.triton.lists import KeyLists


class Pointer:
    """Addresses of elements of one tensor's memory."""

    def __init__(self, memory: Tensor, at: Tensor):
        self.memory, self.at = memory, at

    @classmethod
    def of(cls, x: Tensor) -> "Pointer":
        size = x.untyped_storage().nbytes() // x.element_size()
        return cls(x.as_strided((size,), (1,), 0), torch.tensor(x.storage_offset()))

    def __add__(self, other: Any) -> "Pointer":
        return Pointer(self.memory, self.at + other)

    def masked(self, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        at = self.at
        mask = torch.ones_like(at, dtype=torch.bool) if mask is None else mask
        at, mask = torch.broadcast_tensors(at, mask)
        outside = mask & ((at < 0) | (at >= len(self.memory)))
        assert not outside.any(), "access outside of a tensor"
        return at.where(mask, 0), mask


class Box:
    """A TMA descriptor."""

    def __init__(self, descriptor: Any):
        self.base, self.shape, self.block = (
            descriptor.base,
            descriptor.shape,
            descriptor.block_shape,
        )
        self.strides, self.layout = descriptor.strides, descriptor.layout
        self.dtype = self.base.dtype
        nbytes = math.prod(self.block) * self.base.element_size()
        self.block_type = types.SimpleNamespace(nbytes=nbytes)

    def read(self, corner: list[Any]) -> Tensor:
        """The box at a corner; zeros outside of the tensor."""
        whole = self.base.as_strided(self.shape, self.strides)
        out = torch.zeros(self.block, dtype=self.dtype)
        inside = tuple(
            slice(int(c), min(int(c) + n, size))
            for c, n, size in zip(corner, self.block, self.shape, strict=True)
        )
        part = whole[inside]
        out[tuple(slice(0, n) for n in part.shape)] = part
        return out


class Barrier:
    """A memory barrier: one phase at a time, which must be waited for before the next is armed."""

    def __init__(self) -> None:
        self.completed, self.expected = 0, None
        self.copies: list[tuple[int, Callable[[], Any]]] = []

    def expect(self, nbytes: int) -> None:
        assert self.expected is None, "armed again before it was waited for"
        self.expected = nbytes

    def wait(self, parity: int) -> None:
        if self.completed % 2 != int(parity):
            return
        assert self.expected is not None, "deadlock: nothing was asked for"
        assert sum(n for n, _ in self.copies) == self.expected, "deadlock: other size expected"
        for _, deliver in self.copies:
            deliver()
        self.completed, self.expected, self.copies = self.completed + 1, None, []


class Barriers:
    def __init__(self, count: int):
        self.items = [Barrier() for _ in range(count)]

    def index(self, i: Any) -> Barrier:
        return self.items[int(i)]


class Shared:
    """A view of shared memory."""

    dirty: bool  # stores that no fence has made visible to the tensor cores

    def __init__(self, data: Tensor, machine: "Machine"):
        self.data, self.machine, self.dtype = data, machine, data.dtype

    def _view(self, data: Tensor) -> "Shared":
        assert data.untyped_storage().data_ptr() == self.data.untyped_storage().data_ptr()
        return Shared(data, self.machine)

    def index(self, i: Any) -> "Shared":
        return self._view(self.data[int(i)])

    def reshape(self, shape: list[int]) -> "Shared":
        return self._view(self.data.view(shape))

    def slice(self, start: int, length: int, dim: int = 0) -> "Shared":
        return self._view(self.data.narrow(dim, start, length))

    def permute(self, order: tuple[int, ...]) -> "Shared":
        return self._view(self.data.permute(order))

    def load(self, layout: Any) -> Tensor:
        return self.data.clone()

    def store(self, x: Tensor) -> None:
        self.machine.unpublished = True
        self.data.copy_(x)


class Product:
    """An accumulator whose value exists once its product was waited for."""

    def __init__(self, value: Tensor | None = None):
        self.value = value


class Machine:
    """The names that the kernels use, with the meaning of one warpgroup."""

    int32, int64, float32 = torch.int32, torch.int64, torch.float32
    expand_dims = staticmethod(torch.unsqueeze)
    exp2, log2 = staticmethod(torch.exp2), staticmethod(torch.log2)
    static_range = range
    SliceLayout = staticmethod(lambda *layout: None)

    def __init__(self) -> None:
        self.program = torch.tensor(0)
        self.queue: list[Callable[[], None]] = []
        self.unpublished = False
        self.mbarrier = types.SimpleNamespace(
            MBarrierLayout=lambda: "barrier",
            init=lambda barrier, count: None,
            expect=lambda barrier, nbytes, pred=True: barrier.expect(nbytes) if pred else None,
            wait=lambda barrier, parity, pred=True: barrier.wait(parity) if pred else None,
        )

    def program_id(self, axis: int) -> Tensor:
        return self.program

    def inline_asm_elementwise(
        self, asm: str, constraints: str, args: list[Tensor], dtype: Any, is_pure: bool, pack: int
    ) -> Tensor:
        # The only machine code: products with factors, skipped where they change nothing.
        assert asm.count("mul.f32") == pack == constraints.count("=f")
        return args[0] * args[1]

    def cast(self, x: Any, dtype: torch.dtype) -> Tensor:
        return torch.as_tensor(x).to(dtype)

    def arange(self, start: int, end: int, layout: Any) -> Tensor:
        return torch.arange(start, end)

    def zeros(self, shape: list[int], dtype: torch.dtype, layout: Any) -> Tensor:
        return torch.zeros(shape, dtype=dtype)

    def full(self, shape: list[int], value: float, dtype: torch.dtype, layout: Any) -> Tensor:
        return torch.full(shape, value, dtype=dtype)

    def minimum(self, a: Any, b: Any) -> Tensor:
        return torch.minimum(torch.as_tensor(a), torch.as_tensor(b))

    def maximum(self, a: Any, b: Any) -> Tensor:
        return torch.maximum(torch.as_tensor(a), torch.as_tensor(b))

    def where(self, mask: Tensor, a: Any, b: Any) -> Tensor:
        return torch.where(mask, a, b)

    def max(self, x: Tensor, axis: int) -> Tensor:
        return x.amax(axis)

    def sum(self, x: Tensor, axis: int) -> Tensor:
        return x.sum(axis)

    def convert_layout(self, x: Tensor, layout: Any) -> Tensor:
        return x

    def load(self, pointer: Pointer, mask: Tensor | None = None, other: float = 0) -> Tensor:
        at, mask = pointer.masked(mask)
        return pointer.memory[at].where(mask, torch.tensor(other, dtype=pointer.memory.dtype))

    def store(self, pointer: Pointer, x: Tensor, mask: Tensor, **hints: Any) -> None:
        at, mask = pointer.masked(mask)
        pointer.memory[at[mask]] = x.to(pointer.memory.dtype).expand(mask.shape)[mask]

    def allocate_shared_memory(self, dtype: torch.dtype, shape: list[int], layout: Any) -> Any:
        if layout == "barrier":
            return Barriers(shape[0]) if len(shape) == 2 else Barrier()
        return Shared(torch.full(shape, math.nan, dtype=dtype), self)

    def async_load(
        self, box: Box, corner: list[Any], barrier: Barrier, to: Shared, pred: Any = True
    ) -> None:
        if pred:
            assert int(corner[-1]) * box.base.element_size() % 16 == 0, "an illegal instruction"
            to.data.fill_(math.nan)
            data = box.read(corner)
            barrier.copies.append((box.block_type.nbytes, lambda: to.data.copy_(data)))

    def fence_async_shared(self) -> None:
        self.unpublished = False

    def warpgroup_mma_init(self, x: Tensor) -> Product:
        return Product(x)

    def warpgroup_mma(
        self, a: Any, b: Shared, acc: Any, use_acc: bool = True, is_async: bool = False
    ) -> Product:
        assert is_async and not self.unpublished
        result = Product()

        def run() -> None:
            left = a.data if isinstance(a, Shared) else a
            value = left.float() @ b.data.float()
            if use_acc:
                value = value + (acc.value if isinstance(acc, Product) else acc)
            result.value = value

        self.queue.append(run)
        return result

    def warpgroup_mma_wait(self, outstanding: int, deps: list[Any]) -> Any:
        while len(self.queue) > outstanding:
            self.queue.pop(0)()
        done = tuple(x.value if isinstance(x, Product) else x for x in deps)
        assert all(x is not None for x in done), "used before it was waited for"
        return done[0] if len(done) == 1 else done


class Emulated:
    """A kernel whose launch runs its source on the model, program after program."""

    def __init__(self, kernel: Any):
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        def launch(*args: Any, num_warps: int, **constants: Any) -> None:
            assert num_warps == 4
            names = inspect.signature(self.kernel.fn).parameters
            bound = dict(zip(names, args, strict=False)) | constants
            assert set(bound) == set(names)
            values = {name: self._argument(value) for name, value in bound.items()}
            for program in range(grid[0]):
                machine = Machine()
                machine.program = torch.tensor(program)
                _rebound(self.kernel.fn, machine)(**values)
                assert not machine.queue, "a product was never waited for"

        return launch

    @staticmethod
    def _argument(value: Any) -> Any:
        if isinstance(value, Tensor):
            return Pointer.of(value)
        return Box(value) if hasattr(value, "block_shape") else value


def _rebound(function: Callable[..., Any], machine: Machine) -> Callable[..., Any]:
    """The function with the model in place of Gluon."""
    names: dict[str, Any] = {}
    for name in (*function.__code__.co_names, *function.__code__.co_freevars):
        value = function.__globals__.get(name)
        if name == "gl":
            names[name] = machine
        elif hasattr(machine, name) and name not in ("max", "sum", "load", "store"):
            names[name] = getattr(machine, name)
        elif name.endswith("_layout"):
            names[name] = lambda *sizes: None  # the model has no registers
        elif hasattr(value, "fn"):
            names[name] = _rebound(value.fn, machine)
    return types.FunctionType(function.__code__, names | {"range": range}, function.__name__)


def _key_lists(pairs: BlockPairs, key_heads: int, *, split: bool) -> KeyLists:
    """The inversion, one list at a time; all keys in the order in memory."""
    mask, sizes = pairs.index.to_dense_mask(), pairs.queries.offsets.diff()
    batch, heads, num_queries, num_keys = mask.shape
    pointers = torch.zeros((batch, heads, num_keys + 1), dtype=torch.int32)
    blocks = torch.full((batch, heads, num_queries * num_keys), -1, dtype=torch.int32)
    wholes = torch.zeros((batch, heads, num_keys), dtype=torch.int32)
    for b, h, key in torch.cartesian_prod(*map(torch.arange, (batch, heads, num_keys))).tolist():
        mine = mask[b, h, :, key].nonzero()[:, 0]
        whole = sizes[mine] == pairs.queries.largest
        mine = torch.cat((mine[whole], mine[~whole])) if split else mine
        start = int(pointers[b, h, key])
        blocks[b, h, start : start + len(mine)] = mine
        pointers[b, h, key + 1], wholes[b, h, key] = start + len(mine), whole.sum()
    return KeyLists(
        row_pointers=pointers,
        query_blocks=blocks,
        wholes=wholes if split else None,
        order=torch.arange(batch * key_heads * num_keys, dtype=torch.int32),
    )


def _wholes_first(pairs: BlockPairs) -> tuple[Tensor, Tensor]:
    indices, sizes = pairs.index.indices, pairs.keys.offsets.diff()
    used = indices >= 0
    full = used & (sizes[indices.clamp(min=0).long()] == pairs.keys.largest)
    order = torch.where(full, 0, torch.where(used, 1, 2)).sort(stable=True).indices
    return indices.gather(-1, order), full.sum(-1, dtype=torch.int32)


def _row_sums(o: Tensor, do: Tensor, lse: Tensor, dlse: Tensor | None) -> Tensor:
    delta = (o.float() * do.float()).sum(-1)
    return delta if dlse is None else delta - dlse.masked_fill(lse == -math.inf, 0)


@pytest.fixture(autouse=True)
def on_the_model(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("forward_kernel", "query_gradient_kernel", "key_gradient_kernel"):
        monkeypatch.setattr(launch, name, Emulated(getattr(launch, name)))
    # A chip of few programs: every one enters its walk somewhere else.
    chip = types.SimpleNamespace(multi_processor_count=3)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: chip)
    monkeypatch.setattr(launch, "row_sums", _row_sums)
    monkeypatch.setattr(launch, "key_lists", _key_lists)
    monkeypatch.setattr(launch, "wholes_first", _wholes_first)
    yield


def _tensors(
    heads: tuple[int, int], tokens: tuple[int, int], dim: int, tokens_first: bool, seed: int
) -> list[Tensor]:
    """q, k, v, do and the gradient of the log-sum-exp, for two clips."""
    draw = torch.Generator().manual_seed(seed)
    q, k = (2, heads[0], tokens[0], dim), (2, heads[1], tokens[1], dim)
    out = []
    for shape in (q, k, k, q):
        x = torch.randn(shape, generator=draw).bfloat16()
        out.append(x.transpose(1, 2).contiguous().transpose(1, 2) if tokens_first else x)
    return [*out, torch.randn(q[:3], generator=draw)]


CASES = {
    "whole blocks": ((4, 8, 8), (4, 8, 8), (4, 4, 4), 128, (1, 1), False),
    "tokens before heads, grouped heads": ((4, 4, 8), (4, 8, 8), (4, 4, 4), 64, (4, 2), True),
    "ragged keys": ((4, 4, 4), (6, 7, 5), (4, 4, 4), 64, (1, 1), False),
    "ragged queries": ((5, 6, 7), (4, 4, 8), (4, 4, 4), 64, (2, 1), True),
    "whole blocks behind shorter ones": ((8, 5, 9), (8, 5, 9), (4, 4, 4), 64, (2, 1), False),
    "whole blocks of 128 behind shorter ones": (
        (8, 5, 8),
        (8, 4, 12),
        (4, 4, 8),
        64,
        (1, 1),
        False,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_gluon_kernels_agree_with_float64(case: str) -> None:
    grid_q, grid_k, block, dim, heads, tokens_first = CASES[case]
    of_q, of_k = BlockLayout(grid_q, block), BlockLayout(grid_k, block)
    tokens = of_q.num_tokens, of_k.num_tokens
    q, k, v, do, dlse = _tensors(heads, tokens, dim, tokens_first, 0)
    draw = torch.Generator().manual_seed(10)
    mask = torch.rand(2, heads[0], of_q.num_blocks, of_k.num_blocks, generator=draw) < 0.6
    mask[0, 0, 0] = False  # a row without keys
    mask[1, :, :, 0] = False  # a key block that nobody reads
    mask[1, -1, -1] = True
    pairs = BlockPairs(BlockIndex.from_dense_mask(mask), of_q.blocks(), of_k.blocks())
    wide = [x.double() for x in (q, k, v, do, dlse)]

    o, lse = launch.forward(q, k, v, pairs, 0.2)
    expected_o, expected_lse = reference.forward(*wide[:3], pairs, 0.2)
    torch.testing.assert_close(o.double(), expected_o, atol=0.02, rtol=0.01)
    torch.testing.assert_close(lse.double(), expected_lse, atol=1e-4, rtol=1e-5)
    assert o.stride() == q.stride()

    gradients = launch.backward(do, q, k, v, o, lse, dlse, pairs, 0.2)
    run = (wide[3], *wide[:3], expected_o, expected_lse, wide[4])
    expected = reference.backward(*run, pairs, 0.2)
    for gradient, wanted in zip(gradients, expected, strict=True):
        error = (gradient.double() - wanted).norm() / wanted.norm()
        assert error < 6e-3


def test_a_head_has_the_same_bits_in_any_company() -> None:
    layout = BlockLayout((4, 4, 20))
    q, k, v, do, dlse = _tensors((3, 3), (320, 320), 64, False, 5)
    mask = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(6)) < 0.8
    results = []
    for clips, heads in ((slice(None), slice(None)), (slice(1, 2), slice(2, 3))):
        own = [x[clips, heads] for x in (q, k, v, do, dlse)]
        index = BlockIndex.from_dense_mask(mask[clips, heads])
        pairs = BlockPairs(index, layout.blocks(), layout.blocks())
        o, lse = launch.forward(*own[:3], pairs, 0.2)
        gradients = launch.backward(own[3], *own[:3], o, lse, own[4], pairs, 0.2)
        results.append([x[-1, -1] for x in (o, lse, *gradients)])
    for together, alone in zip(*results, strict=True):
        assert torch.equal(together, alone)


def test_values_of_other_blocks_do_not_pass() -> None:
    q, k, v, do, _ = _tensors((1, 1), (160, 160), 64, False, 3)
    for x in (q, k, v, do):
        x[:, :, 96:] = math.nan
    # 64 + 32 tokens, then foreign ones: the tile of the last block is half foreign.
    blocks = Blocks(BlockLayout((4, 4, 6)).offsets(), 160, 64)
    index = BlockIndex.from_dense_mask(torch.tensor([[True, True], [False, True]])).expand(2, 1)
    pairs = BlockPairs(index, blocks, blocks)
    o, lse = launch.forward(q, k, v, pairs, 0.1)
    assert o[:, :, :96].isfinite().all() and lse[:, :, :96].isfinite().all()
    o = torch.where(o.isfinite(), o, 0)
    gradients = launch.backward(do, q, k, v, o, lse, None, pairs, 0.1)
    assert all(x[:, :, :96].isfinite().all() for x in gradients)


def test_model_finds_a_buffer_that_is_reused_too_early() -> None:
    machine = Machine()
    memory = torch.ones(1, 1, 64, 64)
    descriptor = types.SimpleNamespace(
        base=memory,
        shape=[1, 1, 64, 64],
        strides=memory.stride(),
        block_shape=[1, 1, 64, 64],
        layout=None,
    )
    box, barrier = Box(descriptor), Barrier()
    tile = machine.allocate_shared_memory(torch.float32, [1, 1, 64, 64], None)
    rows = tile.reshape([64, 64])
    barrier.expect(box.block_type.nbytes)
    machine.async_load(box, [0, 0, 0, 0], barrier, tile)
    early = machine.warpgroup_mma(rows, rows, 0, use_acc=False, is_async=True)
    assert machine.warpgroup_mma_wait(0, [early]).isnan().all()
    barrier.wait(0)
    late = machine.warpgroup_mma(rows, rows, 0, use_acc=False, is_async=True)
    machine.async_load(box, [0, 0, 0, 0], Barrier(), tile)
    assert machine.warpgroup_mma_wait(0, [late]).isnan().all()
    with pytest.raises(AssertionError, match="deadlock"):
        barrier.wait(1)
