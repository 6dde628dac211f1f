import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from longtake.kernels.block_sparse.api import block_sparse_backward, block_sparse_forward
from longtake.kernels.block_sparse.backends import gpu_module, runs_on_gpu
from longtake.kernels.block_sparse.index import BlockIndex, BlockPairs
from longtake.kernels.block_sparse.layout import BlockLayout
from longtake.runtime.errors import UserError

QUERIES, KEYS = BlockLayout((1, 3, 4), (1, 2, 2)), BlockLayout((3, 2, 3), (2, 2, 2))


def arguments(dtype: torch.dtype = torch.float64, tokens_first: bool = False) -> tuple[Any, ...]:
    """Queries [1, 2, 12, 2], keys [1, 1, 18, 2], and the other arguments; one row is empty."""
    g = torch.Generator().manual_seed(0)

    def leaf(heads: int, tokens: int) -> Tensor:
        shape = (1, tokens, heads, 2) if tokens_first else (1, heads, tokens, 2)
        x = torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)
        return (x.transpose(1, 2) if tokens_first else x).requires_grad_()

    mask = torch.rand(1, 2, QUERIES.num_blocks, KEYS.num_blocks, generator=g) < 0.5
    mask[0, 1, 2] = False
    pairs = BlockPairs(BlockIndex.from_dense_mask(mask), QUERIES.blocks(), KEYS.blocks())
    return leaf(2, 12), leaf(1, 18), leaf(1, 18), *pairs.flat(), 0.4, "auto"


def test_gradients_of_both_results() -> None:
    q, k, v, *rest = arguments()

    def run(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        o, lse = block_sparse_forward(q, k, v, *rest)
        return o, lse.masked_fill(lse == -torch.inf, 0.0)

    assert torch.autograd.gradcheck(run, (q, k, v))


@pytest.mark.parametrize("tokens_first", [False, True])
def test_any_strides_of_the_upstream_gradient(tokens_first: bool) -> None:
    q, k, v, *rest = arguments(tokens_first=tokens_first)
    o, _ = block_sparse_forward(q, k, v, *rest)
    base = torch.randn(1, 12, 2, 2, dtype=torch.float64)
    for cotangent in (
        base.transpose(1, 2),  # heads and tokens swapped
        base.permute(0, 2, 1, 3).contiguous(),
        base.mT.transpose(1, 2),  # the last axis is not contiguous
        torch.ones((), dtype=torch.float64).expand(1, 2, 12, 2),
    ):
        found = torch.autograd.grad(o, (q, k, v), cotangent, retain_graph=True)
        packed = torch.autograd.grad(o, (q, k, v), cotangent.contiguous(), retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(found, packed, strict=True))


def test_differentiating_twice_is_refused() -> None:
    q, k, v, *rest = arguments()
    o, _ = block_sparse_forward(q, k, v, *rest)
    (dq,) = torch.autograd.grad(o.square().sum(), q, create_graph=True)
    with pytest.raises(UserError, match="gradients of gradients"):
        dq.sum().backward()


@pytest.mark.parametrize(
    ("dtype", "tokens_first"), [(torch.float64, False), (torch.bfloat16, True)]
)
def test_the_ops_are_registered_properly(dtype: torch.dtype, tokens_first: bool) -> None:
    q, k, v, *rest = arguments(dtype, tokens_first)
    torch.library.opcheck(block_sparse_forward, (q, k, v, *rest))
    o, lse = (x.detach() for x in block_sparse_forward(q, k, v, *rest))
    q, k, v = q.detach(), k.detach(), v.detach()
    for dlse in (None, torch.randn_like(lse)):
        args = (torch.randn_like(o), q, k, v, o, lse, dlse, *rest)
        torch.library.opcheck(block_sparse_backward, args)


def test_unusable_backends_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1, 1, 4, 16)
    for name in ("cutlass", "triton", "gluon"):
        with pytest.raises(UserError, match=f"{name} on cpu"):
            runs_on_gpu(name, x)
    # Without Triton, a GPU gets an explanation instead of an import error.
    monkeypatch.setitem(sys.modules, "longtake.kernels.block_sparse.triton.launch", None)
    with pytest.raises(UserError, match="need Triton"):
        gpu_module("triton.launch")
    assert not runs_on_gpu("reference", x) and not runs_on_gpu("auto", x)


def test_triton_is_never_imported_on_a_cpu() -> None:
    code = """
import sys, torch
import longtake.kernels.block_sparse as bsa
x = torch.randn(1, 2, 128, 8, requires_grad=True)
bsa.block_sparse_attention(x, x, x, grid_q=(4, 4, 8), topk=1).sum().backward()
print([name for name in sys.modules if name.split(".")[0] == "triton" or "sparse.triton" in name])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
