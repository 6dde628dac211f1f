"""Cases of context parallelism: inputs, the ranks' results put together, and those of one rank."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from longtake.kernels.block_sparse import BlockLayout, attention_from_index, select_blocks

Case = dict[str, Any]


def build_case(
    name: str,
    *,
    mode: str,
    ranks: int,
    layout_q: BlockLayout,
    layout_k: BlockLayout | None = None,
    heads: tuple[int, int] = (12, 12),
    dim: int = 8,
    batch: int = 2,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    device: str = "cpu",
    **options: Any,
) -> Case:
    """Random tensors of all tokens in block order."""
    layout_k = layout_k or layout_q
    g = torch.Generator().manual_seed(seed)

    def draw(num_heads: int, layout: BlockLayout) -> Tensor:
        shape = (batch, num_heads, layout.num_tokens, dim)
        x = torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)
        return x if options.get("heads_first", True) else x.transpose(1, 2).contiguous()

    case: Case = {"name": name, "mode": mode, "ranks": ranks, "device": device}
    case |= {"layout_q": layout_q, "layout_k": layout_k, "options": options}
    case |= {"q": draw(heads[0], layout_q), "k": draw(heads[1], layout_k)}
    case |= {"v": draw(heads[1], layout_k), "do": draw(heads[0], layout_q)}
    wide = torch.promote_types(dtype, torch.float32)
    case["dlse"] = torch.randn((batch, heads[0], layout_q.num_tokens), generator=g).to(wide)
    return case


def run_ranks(folder: Path, cases: list[Case], backend: str, num_ranks: int) -> dict[str, Any]:
    """Name -> the ranks' results put together, or the list of their errors."""
    torch.save(cases, folder / "cases.pt")
    worker = Path(__file__).with_name("rank_worker.py")
    done = subprocess.run(
        [sys.executable, str(worker), str(folder), backend, str(num_ranks)],
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    by_rank = [torch.load(folder / f"rank-{rank}.pt") for rank in range(num_ranks)]
    joined: dict[str, Any] = {}
    for case in cases:
        parts = [found[case["name"]] for found in by_rank if case["name"] in found]
        assert len(parts) == case["ranks"]
        if isinstance(parts[0], str):
            joined[case["name"]] = parts
            continue
        axis = 2 if case["options"].get("heads_first", True) else 1
        joined[case["name"]] = {
            key: torch.cat([part[key] for part in parts], 2 if key == "lse" else axis)
            for key in parts[0]
        }
    return joined


def run_alone(case: Case, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """What one rank with all tokens computes: in the case's type, or on a CPU in another one."""
    device = case["device"] if dtype is None else "cpu"
    options = dict(case["options"])
    q, k, v, do = (case[name].to(device, dtype) for name in ("q", "k", "v", "do"))
    q, k, v = (x.detach().clone().requires_grad_() for x in (q, k, v))
    heads_first = options.pop("heads_first", True)
    rule = {name: x for name, x in options.items() if not name.startswith("blocks_")}
    layouts = case["layout_q"], case["layout_k"]
    # From the tensors in their own type: rounding must not change the selection.
    whole = [case[name].to(case["device"]) for name in "qk"]
    q_heads, k_heads = whole if heads_first else [x.transpose(1, 2) for x in whole]
    index = select_blocks(q_heads, k_heads, *layouts, **rule).to(device)
    o, lse = attention_from_index(
        q,
        k,
        v,
        index,
        *layouts,
        scale=rule.get("scale"),
        layout="block",
        heads_first=heads_first,
        return_lse=True,
    )
    dlse = case["dlse"].to(lse)
    loss = (o * do).sum() + (lse.nan_to_num(neginf=0.0) * dlse).sum()
    dq, dk, dv = torch.autograd.grad(loss, (q, k, v))
    results = {"o": o.detach(), "lse": lse.detach(), "dq": dq, "dk": dk, "dv": dv}
    return {name: x.cpu() for name, x in results.items()}


@pytest.fixture(scope="session")
def make_case() -> Callable[..., Case]:
    return build_case


@pytest.fixture(scope="session")
def together() -> Callable[[Path, list[Case], str, int], dict[str, Any]]:
    return run_ranks


@pytest.fixture(scope="session")
def alone() -> Callable[..., dict[str, Tensor]]:
    return run_alone
