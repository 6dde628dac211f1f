"""The ranks of the context-parallel tests: ``python rank_worker.py FOLDER BACKEND RANKS``.

Reads ``cases.pt``, a list of keyword dicts with whole tensors in block order, and writes
``rank-N.pt``: for every case that the rank takes part in, its results or its error. With gloo, a
process of its own that forks after importing torch once: starting interpreters takes far longer.
"""

import multiprocessing
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from longtake.kernels.block_sparse.context_parallel import BlockShards, context_parallel_attention
from longtake.runtime.errors import UserError


def shards(case: dict[str, Any], name: str) -> BlockShards:
    blocks = case["options"].get(f"blocks_{name}")
    return BlockShards.of(case[f"layout_{name}"], case["ranks"], blocks)


def run_case(case: dict[str, Any], group: dist.ProcessGroup) -> dict[str, Tensor] | str:
    """This rank's output, log-sum-exp and gradients, or its error."""
    local = local_tensors(case, dist.get_rank(group))
    try:
        results = step(case, local, group)
        if case["device"] == "cuda":  # layouts are known and kernels compiled: nothing may wait
            torch.cuda.set_sync_debug_mode("error")
            again = step(case, local, group)
            torch.cuda.set_sync_debug_mode("default")
            assert all(torch.equal(results[name], again[name]) for name in results)
    except UserError as error:
        return str(error)
    return {name: x.cpu() for name, x in results.items()}


def local_tensors(case: dict[str, Any], rank: int) -> dict[str, Tensor]:
    axis = 2 if case["options"].get("heads_first", True) else 1
    local = {}
    for name in ("q", "k", "v", "do", "dlse"):
        owner = shards(case, "k" if name in "kv" else "q")
        part = owner.local(case[name], rank, 2 if name == "dlse" else axis)
        local[name] = part.detach().to(case["device"], copy=True).requires_grad_(name in "qkv")
    return local


def step(
    case: dict[str, Any], local: dict[str, Tensor], group: dist.ProcessGroup
) -> dict[str, Tensor]:
    result = context_parallel_attention(
        *(local[name] for name in "qkv"),
        layout_q=case["layout_q"],
        layout_k=case["layout_k"],
        mode=case["mode"],
        group=group,
        return_lse=True,
        **case["options"],
    )
    assert isinstance(result, tuple)
    o, lse = result
    # A query without keys has log-sum-exp -inf, which no loss may read.
    loss = (o * local["do"]).sum() + (lse.nan_to_num(neginf=0.0) * local["dlse"]).sum()
    dq, dk, dv = torch.autograd.grad(loss, [local[name] for name in "qkv"])
    return {"o": o.detach(), "lse": lse.detach(), "dq": dq, "dk": dk, "dv": dv}


def run_rank(rank: int, folder: Path, backend: str, num_ranks: int) -> None:
    torch.set_num_threads(1)
    device = torch.device("cuda", rank) if backend == "nccl" else None
    if device is not None:
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend,
        init_method=f"file://{folder / 'rendezvous'}",
        rank=rank,
        world_size=num_ranks,
        device_id=device,
    )
    cases = torch.load(folder / "cases.pt", weights_only=False)
    sizes = sorted({case["ranks"] for case in cases})
    # The last ranks, so that ranks within a group and ranks of all differ.
    groups = {size: dist.new_group(range(num_ranks - size, num_ranks)) for size in sizes}
    results = {}
    for case in cases:
        if rank >= num_ranks - case["ranks"]:
            results[case["name"]] = run_case(case, groups[case["ranks"]])
    torch.save(results, folder / f"rank-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def main(folder: Path, backend: str, num_ranks: int) -> int:
    context = multiprocessing.get_context("spawn" if backend == "nccl" else "fork")
    ranks = [
        context.Process(target=run_rank, args=(rank, folder, backend, num_ranks), daemon=True)
        for rank in range(num_ranks)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=300)
    return sum(process.exitcode != 0 for process in ranks)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
