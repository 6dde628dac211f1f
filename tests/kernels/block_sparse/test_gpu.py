"""The kernels on a GPU: `python -m pytest -m gpu tests/kernels`."""

import pytest
import torch
from torch import Tensor

from longtake.bench.bsa_checks import CHECKS, compare, make_case
from longtake.kernels.block_sparse import (
    BlockIndex,
    BlockLayout,
    attention_from_index,
    block_sparse_attention,
)
from longtake.runtime.errors import UserError

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda")
GRID = (8, 8, 16)


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_kernels_pass(name: str, backend: str) -> None:
    findings = list(CHECKS[name](GPU, backend))
    assert findings
    assert [finding for finding in findings if not finding.passed] == []


def _inputs(*shape: int, seed: int = 0) -> list[Tensor]:
    draw = torch.Generator(GPU).manual_seed(seed)
    return [torch.randn(shape, generator=draw, device=GPU).bfloat16() for _ in range(3)]


def test_gluon_says_why_it_cannot_run() -> None:
    case = make_case(GPU, torch.float32, GRID, GRID, heads=(1, 1))
    with pytest.raises(UserError, match="Gluon"):
        case.run("gluon")


def test_whole_operator_in_a_cuda_graph() -> None:
    q, k, v = (x.requires_grad_() for x in _inputs(1, 2, 1024, 128))

    def step() -> tuple[Tensor, ...]:
        o = block_sparse_attention(q, k, v, grid_q=GRID, sparsity=0.5)
        assert isinstance(o, Tensor)
        return o, *torch.autograd.grad(o.square().sum(), (q, k, v))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in (1, 2):
        with torch.no_grad():
            for x, new in zip((q, k, v), _inputs(1, 2, 1024, 128, seed=seed), strict=True):
                x.copy_(new)
        graph.replay()
        for a, b in zip(captured, step(), strict=True):
            assert torch.equal(a, b)


def test_whole_operator_compiles_without_graph_breaks() -> None:
    q, k, v = (x.requires_grad_() for x in _inputs(1, 2, 1024, 128))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        o = block_sparse_attention(q * 1.0, k, v, grid_q=GRID, cdf_p=0.5)
        assert isinstance(o, Tensor)
        return o

    compiled = torch.compile(attend, fullgraph=True)
    a, b = attend(q, k, v), compiled(q, k, v)
    assert torch.equal(a, b)
    for x, y in zip(
        torch.autograd.grad(a.sum(), (q, k, v)),
        torch.autograd.grad(b.sum(), (q, k, v)),
        strict=True,
    ):
        assert torch.equal(x, y)


@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_more_than_2_to_31_elements(backend: str) -> None:
    if torch.cuda.mem_get_info()[0] < 60 * 2**30:
        pytest.skip("needs 60 GiB of GPU memory")
    layout = BlockLayout((33, 128, 128))  # the last block row holds one frame: ragged
    heads, tokens = 32, layout.num_tokens
    q, k, v = (
        torch.randn((1, heads, tokens, 128), device=GPU, dtype=torch.bfloat16).requires_grad_()
        for _ in range(3)
    )
    assert q.numel() > 2**31
    last = layout.num_blocks - 1
    indices = torch.full((1, 1, layout.num_blocks, 2), last, dtype=torch.int32, device=GPU)
    indices[..., 0] = last - 1100
    counts = torch.full_like(indices[..., 0], 2)
    index = BlockIndex(indices, counts, layout.num_blocks)
    o = attention_from_index(q, k, v, index, layout, layout, layout="block", backend=backend)
    assert isinstance(o, Tensor)
    gradients = torch.autograd.grad(o, (q, k, v), torch.ones_like(o))
    starts = layout.offsets().tolist()
    near = [slice(starts[b], starts[b + 1]) for b in (last - 1100, last)]
    rows = slice(starts[last - 3], tokens)
    part = [q[0, -1:, rows], *(torch.cat([x[0, -1:, s] for s in near], 1) for x in (k, v))]
    exact = [x.detach().double().requires_grad_() for x in part]
    wanted = torch.nn.functional.scaled_dot_product_attention(*exact)
    assert (o[0, -1:, rows] - wanted).norm() < 5e-3 * wanted.norm()
    (dq,) = torch.autograd.grad(wanted, exact[:1], torch.ones_like(wanted))
    assert (gradients[0][0, -1:, rows] - dq).norm() < 2e-2 * dq.norm()
    unread = slice(starts[5], starts[6])
    assert not gradients[1][0, -1, unread].any() and gradients[2][0, -1, near[1]].all()


def test_many_heads_and_one_block() -> None:
    case = make_case(GPU, torch.bfloat16, (2, 3, 4), (1, 3, 4), heads=(96, 32), density=1.0)
    assert all(finding.passed for finding in compare("one block", case, "auto"))
