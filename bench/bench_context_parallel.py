"""Context parallelism of block-sparse attention: every mode against one device.

    torchrun --standalone --nproc-per-node=2 bench/bench_context_parallel.py --output FILE.json
    torchrun --standalone --nproc-per-node=2 bench/bench_context_parallel.py --tiny    CPU, gloo

Every rank first measures the whole attention on its own device, then all ranks measure each mode
together; the slowest rank counts. Efficiency is the time of one device over ranks times that of
the mode: 1 if transfers cost nothing. Selection is included. Times are given only for modes whose
output and gradients agree with one device's.
"""

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor

from longtake.bench.timing import new_record, parser, positive, read_options, seconds
from longtake.kernels.block_sparse import BlockLayout, block_sparse_attention
from longtake.kernels.block_sparse.context_parallel import BlockShards, context_parallel_attention
from longtake.kernels.block_sparse.context_parallel.api import MODES
from longtake.runtime.files import write_json

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
SPARSITY = 0.9375


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Options from the command line."""
    own = parser(__doc__)
    own.add_argument("--grid", type=positive, nargs=3, help="T H W in tokens")
    own.add_argument("--tolerance", type=float, help="relative; 0.02, or 1e-5 with --tiny")
    return read_options(
        own,
        arguments,
        full={"grid": (24, 48, 80), "repeats": 20, "tolerance": 2e-2},
        tiny={"grid": (5, 9, 10), "repeats": 2, "tolerance": 1e-5},
    )


def measure(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """The record of the benchmark, equal on all ranks; JSON types."""
    layout = BlockLayout(tuple(options.grid))
    rank, ranks = dist.get_rank(), dist.get_world_size()
    shards = BlockShards.of(layout, ranks)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    g = torch.Generator(device).manual_seed(options.seed)
    heads, dim = (4, 16) if options.tiny else (32, 128)
    shape = (1, heads, layout.num_tokens, dim)
    whole = [torch.randn(shape, generator=g, device=device).to(dtype) for _ in range(4)]

    def one_device(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        o = block_sparse_attention(q, k, v, grid_q=layout.grid, sparsity=SPARSITY, layout="block")
        assert isinstance(o, Tensor)
        return o

    record = {"one device": times(one_device, whole, options.repeats, device)}
    expected = [shards.local(x, rank, 2) for x in results(one_device, whole)]
    local = [shards.local(x, rank, 2).contiguous() for x in whole]
    for mode in MODES:

        def together(q: Tensor, k: Tensor, v: Tensor, mode: Any = mode) -> Tensor:
            rule = {"layout_q": layout, "sparsity": SPARSITY}
            o = context_parallel_attention(q, k, v, mode=mode, **rule)
            assert isinstance(o, Tensor)
            return o

        measured = results(together, local)
        error = max(relative(a, b) for a, b in zip(measured, expected, strict=True))
        record[mode] = {"error": slowest(error, device)}
        if record[mode]["error"] <= options.tolerance:
            record[mode] |= times(together, local, options.repeats, device)
            for name in ("forward_s", "forward_backward_s"):
                alone = record["one device"][name]
                record[mode][f"efficiency_{name}"] = alone / (ranks * record[mode][name])
    settings = {"heads": heads, "dim": dim, "sparsity": SPARSITY, "ranks": ranks}
    settings["dtype"] = str(dtype).removeprefix("torch.")
    return new_record("context_parallel", options, **settings) | {"modes": record}


def results(attention: Attention, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Output and gradients of q, k and v."""
    q, k, v, do = tensors
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    o = attention(*leaves)
    return [o.detach(), *torch.autograd.grad(o, leaves, do)]


def times(
    attention: Attention, tensors: Sequence[Tensor], repeats: int, device: torch.device
) -> dict[str, float]:
    """Median seconds of the slowest rank and, on a GPU, its peak of additional memory."""
    measured: dict[str, float] = {}
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    calls: dict[str, Callable[[], object]] = {
        "forward_s": torch.no_grad()(lambda: attention(*tensors[:3])),
        "forward_backward_s": lambda: results(attention, tensors),
    }
    for name, call in calls.items():
        taken = []
        for _ in range(repeats + 1):
            dist.barrier()  # a rank that waits for a late one would count its delay
            taken.append(seconds(call, device))
        measured[name] = slowest(statistics.median(taken[1:]), device)  # the first one warms up
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) - before
        measured["peak_gib"] = slowest(peak / 2**30, device)
    return measured


def slowest(value: float, device: torch.device) -> float:
    """The largest value of all ranks."""
    largest = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return float(largest)


def relative(a: Tensor, b: Tensor) -> float:
    """Norm of the difference over the norm of ``b``."""
    return float((a.double() - b.double()).norm() / b.double().norm())


def main(arguments: Sequence[str]) -> int:
    """Run, print a summary on rank 0, write the record; 1 if some mode does not agree."""
    options = parse(arguments)
    device = torch.device("cpu")
    if not options.tiny:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("gloo" if options.tiny else "nccl")
    record = measure(options, device)
    rank = dist.get_rank()
    dist.destroy_process_group()
    agree = all(fields.get("error", 0) <= options.tolerance for fields in record["modes"].values())
    if rank:  # the launcher ends all ranks when one fails: rank 0 decides
        return 0
    if options.output is not None:
        write_json(options.output, record)
    console = Console(highlight=False)
    for name, fields in record["modes"].items():
        shown = "  ".join(f"{key} {value:.4g}" for key, value in fields.items())
        disagrees = fields.get("error", 0) > options.tolerance
        console.print(f"{name:10}  {shown}{'  DISAGREES with one device' * disagrees}")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
