"""Block-sparse attention on one device: ours, dense attention and FlexAttention in one run.

    python bench/bench_bsa.py           one GPU, minutes; writes bench/results/bsa.json
    python bench/bench_bsa.py --tiny    CPU, seconds, the reference backend

The operator is timed as a user calls it: block means, scores, selection and, for gradients, the
inversion of the lists are included. The lists follow from the queries and keys: independent ones
give uniform lists ("random"), smooth ones near blocks ("local"), and some keys that suit all
queries give lists that share blocks ("hub"). Speed-ups are shown only if the operator's checks,
which the GPU tests run too, pass in the same run.
"""

import argparse
import functools
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from longtake.bench.bsa_checks import CHECKS
from longtake.bench.bsa_data import (
    INPUT_SETS,
    input_sets,
    sampled_errors,
    useful_flops,
    with_gradients,
)
from longtake.bench.timing import new_record, parser, positive, read_options, seconds
from longtake.kernels.block_sparse import (
    BlockIndex,
    BlockLayout,
    Size3,
    attention_from_index,
    block_sparse_attention,
    select_blocks,
)
from longtake.runtime.files import write_json
from longtake.runtime.progress import result_table

GRIDS = "24x48x80,24x44x80,24x45x80,48x48x80"
"""720p x 93 frames aligned, as published, and ragged; 720p x 189 frames. Tokens after patching."""
OUTPUT = Path("bench/results/bsa.json")
LISTS = ("random", "local", "hub")
PEERS = ("ours", "ours, Triton", "lists given", "CDF", "dense", "Flex")
FLEX_BLOCK = 128


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Options from the command line."""
    own = parser(__doc__)
    own.add_argument("--grids", help=f"T x H x W in tokens; default {GRIDS}, tiny 4x8x12")
    own.add_argument("--lists", default=",".join(LISTS))
    own.add_argument("--peers", default=";".join(PEERS), help="separated by semicolons")
    own.add_argument("--dense-repeats", type=positive, help="default 5, tiny 3")
    options = read_options(
        own,
        arguments,
        full={"grids": GRIDS, "repeats": 20, "dense_repeats": 5, "output": OUTPUT},
        tiny={"grids": "4x8x12", "repeats": 3, "dense_repeats": 3},
    )
    options.grids = [tuple(map(int, grid.split("x"))) for grid in options.grids.split(",")]
    options.lists, options.peers = options.lists.split(","), options.peers.split(";")
    unknown = set(options.lists) - set(LISTS) | set(options.peers) - set(PEERS)
    if unknown or any(len(grid) != 3 for grid in options.grids):
        own.error(f"unknown: {unknown}; lists {LISTS}, peers {PEERS}, grids like 24x48x80")
    return options


class Benchmark:
    """Measurements and the record that they go to."""

    def __init__(self, options: argparse.Namespace, console: Console):
        self.options, self.console = options, console
        self.device = torch.device(options.device)
        self.on_gpu = self.device.type == "cuda"
        self.backend = "auto" if self.on_gpu else "reference"
        self.dtype = torch.bfloat16 if self.on_gpu else torch.float32
        self.heads, self.dim, self.sparsity = (32, 128, 0.9375) if self.on_gpu else (2, 128, 0.5)
        shape = {"heads": self.heads, "dim": self.dim, "sparsity": self.sparsity}
        self.record = new_record("bsa", options, **shape)
        self.record |= {"checks": None, "measurements": [], "errors": []}

    def save(self) -> None:
        """Write the record as it is."""
        if self.options.output is not None:
            write_json(self.options.output, self.record)

    def check(self) -> bool:
        """Run the operator's checks on the backends that are measured."""
        failed, number = [], 0
        for backend in ("auto", "triton") if self.on_gpu else ("reference",):
            for name, run in CHECKS.items():
                for finding in run(self.device, backend):
                    number += 1
                    if not finding.passed:
                        bound = f"{finding.value:.3g} > {finding.bound:.3g}"
                        failed.append(f"{backend}, {name}: {finding.name}: {bound}")
        self.record["checks"] = {"number": number, "failed": failed}
        self.save()
        for line in failed:
            self.console.print(f"FAILED {line}", markup=False)
        self.console.print(f"checks: {number - len(failed)} of {number} passed")
        return not failed

    def inputs(self, grid: Size3, kind: str) -> list[list[Tensor]]:
        """Sets of q, k, v and output gradient."""
        return input_sets(
            BlockLayout(grid),
            kind,
            heads=self.heads,
            dim=self.dim,
            dtype=self.dtype,
            draw=torch.Generator(self.device).manual_seed(self.options.seed),
        )

    def errors(self, grid: Size3, tensors: list[Tensor], index: BlockIndex, spread: float) -> None:
        """Errors against float64 for scores of a standard deviation, and equality of two runs."""
        layout = BlockLayout(grid)

        def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            o = attention_from_index(
                q, k, v, index, layout, layout, layout="block", backend=self.backend
            )
            assert isinstance(o, Tensor)
            return o

        step = with_gradients(forward, [[tensors[0] * spread, *tensors[1:]]])
        results, again = step(0), step(0)
        equal = all(torch.equal(a, b) for a, b in zip(results, again, strict=True))
        del again
        errors = sampled_errors(results, [tensors[0] * spread, *tensors[1:]], index, layout)
        self.record["errors"].append(
            {"grid": grid, "deviation": spread, "relative": errors, "equal_runs": equal}
        )
        self.save()
        shown = ", ".join(f"{name} {error:.2e}" for name, error in errors.items())
        size = "x".join(map(str, grid))
        self.console.print(f"{size} deviation {spread:g}: errors {shown}; equal runs: {equal}")

    def measure(
        self,
        peer: str,
        what: str,
        grid: Size3,
        kind: str,
        call: Callable[[int], Any],
        *,
        flops: float | None = None,
        repeats: int | None = None,
    ) -> float:
        """Median milliseconds of a call, which takes the number of an input set."""
        repeats = repeats or self.options.repeats
        for number in range(2 if repeats < 10 else 4):
            call(number % INPUT_SETS)
        extra = self.extra_memory(call) if self.on_gpu else None
        times = timed(call, repeats, self.device)
        median = statistics.median(times)
        rate = None if flops is None else flops / median / 1e9
        entry = {
            "peer": peer, "what": what, "grid": grid, "tokens": math.prod(grid), "lists": kind,
            "median_ms": median, "all_ms": times, "useful_tflops": rate, "extra_mib": extra,
        }  # fmt: skip
        self.record["measurements"].append(entry)
        self.save()
        shown = "" if rate is None else f", {rate:.0f} TFLOP/s"
        shown += "" if extra is None else f", {extra:.0f} MiB extra"
        size = "x".join(map(str, grid))
        self.console.print(
            f"{size} {kind:6} {peer:18} {what:16} {median:9.3f} ms{shown}", highlight=False
        )
        return median

    def both_ways(
        self,
        peer: str,
        grid: Size3,
        kind: str,
        forward: Callable[..., Any],
        sets: list[list[Tensor]],
        flops: float,
        repeats: int | None = None,
    ) -> None:
        """Measure the forward alone, and with the backward pass: 3.5 times the products."""
        calls = (
            ("forward", without_gradients(forward, sets), flops),
            ("forward+backward", with_gradients(forward, sets), 3.5 * flops),
        )
        for what, call, products in calls:
            self.measure(peer, what, grid, kind, call, flops=products, repeats=repeats)

    def extra_memory(self, call: Callable[[int], Any]) -> float:
        """MiB that a call holds at its peak beyond inputs and results."""
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        results = call(0)
        torch.cuda.synchronize(self.device)
        peak = torch.cuda.max_memory_allocated(self.device)
        kept = sum(x.untyped_storage().nbytes() for x in results if isinstance(x, Tensor))
        return (peak - before - kept) / 2**20


def timed(call: Callable[[int], Any], repeats: int, device: torch.device) -> list[float]:
    """Milliseconds of every call. On a GPU all are queued before the first time is read."""
    if device.type != "cuda":
        calls = (functools.partial(call, number % INPUT_SETS) for number in range(repeats))
        return [1000 * seconds(each, device) for each in calls]
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    torch.cuda.synchronize(device)
    for number, (first, last) in enumerate(events):
        first.record()
        call(number % INPUT_SETS)
        last.record()
    torch.cuda.synchronize(device)
    return [first.elapsed_time(last) for first, last in events]


def without_gradients(
    forward: Callable[..., Any], sets: list[list[Tensor]]
) -> Callable[[int], tuple[Tensor, ...]]:
    """Forward alone as one call on a set of inputs."""

    def step(number: int) -> tuple[Tensor]:
        with torch.no_grad():
            return (forward(*sets[number][:3]),)

    return step


def measure_ours(run: Benchmark, grid: Size3, kind: str) -> None:
    """The operator with everything included, its parts, and its variants."""
    options, layout = run.options, BlockLayout(grid)
    sets = run.inputs(grid, kind)
    attend = functools.partial(
        block_sparse_attention, grid_q=grid, layout="block", backend=run.backend
    )
    choose = functools.partial(select_blocks, layout_q=layout, layout_k=layout, backend=run.backend)
    top = functools.partial(attend, sparsity=run.sparsity)
    index = choose(*sets[0][:2], sparsity=run.sparsity)
    flops = useful_flops(index, layout, run.dim)
    where = grid, kind
    given = functools.partial(
        attention_from_index, index=index, layout_q=layout, layout_k=layout, layout="block",
        backend=run.backend,
    )  # fmt: skip
    calls = {"ours": top, "lists given": given}
    if run.on_gpu:
        calls["ours, Triton"] = functools.partial(top, backend="triton")
    for name, forward in calls.items():
        if name in options.peers:
            run.both_ways(name, *where, forward, sets, flops)
    if "lists given" in options.peers:
        run.measure("selection", "lists", *where, lambda n: [
            choose(*sets[n][:2], sparsity=run.sparsity).indices
        ])  # fmt: skip
    if kind != "random":
        return
    if "CDF" in options.peers:
        share = equal_density(choose, sets[0], float(index.density()))
        mass = functools.partial(attend, cdf_p=share)
        flops = useful_flops(choose(*sets[0][:2], cdf_p=share), layout, run.dim)
        run.measure("CDF", "forward", *where, without_gradients(mass, sets), flops=flops)
    for deviation in (1.0, 16.0):
        run.errors(grid, sets[0], index, deviation)


def equal_density(choose: Callable[..., BlockIndex], tensors: list[Tensor], wanted: float) -> float:
    """Share of mass whose sets have that mean density, by halving."""
    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        density = float(choose(*tensors[:2], cdf_p=middle).density())
        low, high = (middle, high) if density < wanted else (low, middle)
    return (low + high) / 2


def measure_dense(run: Benchmark, grid: Size3) -> None:
    """PyTorch's dense attention, on a GPU cuDNN's."""
    sets = run.inputs(grid, "random")
    flops = 4.0 * math.prod(grid) ** 2 * run.dim * run.heads
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION) if run.on_gpu else nullcontext():
        dense = scaled_dot_product_attention
        run.both_ways("dense", grid, "-", dense, sets, flops, run.options.dense_repeats)


def measure_flex(run: Benchmark, grid: Size3) -> None:
    """FlexAttention at its own block size of 128, on uniform lists of the same density."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    tokens = math.prod(grid)
    if tokens % FLEX_BLOCK or not run.on_gpu:
        return
    sets = run.inputs(grid, "random")
    blocks, heads = tokens // FLEX_BLOCK, run.heads
    count = max(1, round((1 - run.sparsity) * blocks))
    chance = torch.rand((1, heads, blocks, blocks), device=run.device)
    listed = chance.topk(count, sorted=False).indices.sort(-1).values.int()
    unused = torch.zeros_like(chance, dtype=torch.int32)
    indices = torch.cat((listed, unused[..., count:]), -1).contiguous()
    counts = torch.full((1, heads, blocks), count, dtype=torch.int32, device=run.device)
    mask = BlockMask.from_kv_blocks(
        torch.zeros_like(counts), unused, counts, indices, BLOCK_SIZE=FLEX_BLOCK
    )
    compiled = torch.compile(flex_attention)
    attend = functools.partial(compiled, block_mask=mask)
    flops = 4.0 * FLEX_BLOCK * count * tokens * run.dim * heads
    run.both_ways("Flex", grid, "random", attend, sets, flops)


def speedups(record: dict[str, Any]) -> list[list[str | float]]:
    """Rows (grid, lists, what, ours in ms, dense / ours, Flex / ours) of what was measured."""
    times = {
        (tuple(m["grid"]), m["lists"], m["peer"], m["what"]): m["median_ms"]
        for m in record["measurements"]
    }
    rows: list[list[str | float]] = []
    for (grid, kind, peer, what), ours in times.items():
        if peer == "ours":
            dense = times.get((grid, "-", "dense", what), math.nan) / ours
            flex = times.get((grid, "random", "Flex", what), math.nan) / ours
            rows.append(["x".join(map(str, grid)), kind, what, ours, dense, flex])
    return rows


def main(arguments: Sequence[str]) -> int:
    """Check, measure, write the record; 1 if a check failed."""
    options = parse(arguments)
    console = Console(highlight=False, soft_wrap=True)
    run = Benchmark(options, console)
    passed = run.check()
    for grid in options.grids:
        for kind in options.lists:
            measure_ours(run, grid, kind)
        if "dense" in options.peers:
            measure_dense(run, grid)
        if "Flex" in options.peers:
            measure_flex(run, grid)
    run.record["speedups"] = None
    if passed:
        columns = ["grid", "lists", "what", "ours, ms", "dense / ours", "Flex / ours"]
        rows = speedups(run.record)
        run.record["speedups"] = [dict(zip(columns, row, strict=True)) for row in rows]
        console.print(result_table("everything included, medians", columns, rows))
    else:
        console.print("no speed-ups: the checks did not pass in this run")
    run.save()
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
