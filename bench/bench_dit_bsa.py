"""The transformer with dense and with block-sparse self-attention.

    python bench/bench_dit_bsa.py --output FILE.json
    python bench/bench_dit_bsa.py --tiny            on the CPU

Blocks of the published width with random weights on a latent of 720p and 93 frames: forward, and
forward with backward through recomputed blocks, as training runs them. Both ways take turns in one
process. Times are given only if, on a small grid, the kernels of the device give the output of the
plain reference.
"""

import argparse
import datetime
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from longtake.core.block_order import BSAConfig
from longtake.core.dit import DiTConfig, LongCatDiT, disable_bsa, enable_bsa
from longtake.runtime.files import write_json
from longtake.runtime.provenance import collect

WAYS = ("dense", "block-sparse")
TEXT_TOKENS = 512


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Options from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--grid", type=int, nargs=3, default=(24, 48, 80), help="T H W in tokens")
    parser.add_argument("--depth", type=int, default=2, help="blocks of the transformer")
    parser.add_argument("--sparsity", type=float, default=0.9375)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tolerance", type=float, help="relative; 0.02, or 1e-4 with --tiny")
    parser.add_argument("--tiny", action="store_true", help="a small model in float32 on the CPU")
    parser.add_argument("--output", type=Path, help="JSON record")
    options = parser.parse_args(arguments)
    if options.tiny:
        options.grid, options.sparsity, options.repeats = (4, 8, 12), 0.5, min(options.repeats, 2)
    if options.tolerance is None:
        options.tolerance = 1e-4 if options.tiny else 2e-2
    if min(*options.grid, options.depth, options.repeats) < 1 or not 0 <= options.sparsity < 1:
        parser.error("expected --grid, --depth and --repeats >= 1, and --sparsity in [0, 1)")
    if not (options.tiny or torch.cuda.is_available()):
        parser.error("no CUDA device is visible; --tiny runs on the CPU")
    return options


def random_transformer(options: argparse.Namespace, device: torch.device) -> LongCatDiT:
    """Weights and modulations are random: with the zero gates of a new model no gradient flows."""
    config = DiTConfig(depth=options.depth)
    if options.tiny:
        config = DiTConfig(
            depth=options.depth,
            hidden_size=64,
            num_heads=2,
            caption_channels=32,
            adaln_tembed_dim=32,
        )
    with torch.device("meta"):
        dit = LongCatDiT(config)
    dit = dit.to_empty(device=device)
    draw = torch.Generator(device).manual_seed(options.seed)
    with torch.no_grad():
        for parameter in dit.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 4096
            parameter.normal_(0, fan_in**-0.5, generator=draw)
    if device.type == "cuda":
        dit.to(torch.bfloat16)
    dit.gradient_checkpointing = True
    return dit


def random_inputs(
    dit: LongCatDiT, grid: Sequence[int], seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents, timestep, text states and the gradient of the velocity."""
    weight = dit.x_embedder.proj.weight
    draw = torch.Generator(weight.device).manual_seed(seed)
    config = dit.config
    frames, height, width = (n * p for n, p in zip(grid, config.patch_size, strict=True))
    options = {"generator": draw, "device": weight.device}
    latents, velocity = (
        torch.randn(1, channels, frames, height, width, **options).to(weight.dtype)
        for channels in (config.in_channels, config.out_channels)
    )
    text = torch.randn(1, TEXT_TOKENS, config.caption_channels, **options).to(weight.dtype)
    return latents, torch.full((1,), 500.0, device=weight.device), text, velocity


def difference_from_reference(dit: LongCatDiT, options: argparse.Namespace) -> float:
    """Relative difference of outputs between the device's kernels and the reference."""
    grid = (4, 8, 12)
    latents, timestep, text, _ = random_inputs(dit, grid, options.seed + 1)
    found = []
    for backend in ("auto", "reference"):
        enable_bsa(dit, BSAConfig(sparsity=0.5, backend=backend))
        with torch.no_grad():
            found.append(dit(latents, timestep, text).double())
    return float((found[0] - found[1]).norm() / found[1].norm())


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Duration of a call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The record of the benchmark; JSON types."""
    device = torch.device("cpu" if options.tiny else "cuda")
    dit = random_transformer(options, device)
    error = difference_from_reference(dit, options)
    record: dict[str, Any] = {
        "benchmark": "dit_bsa",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "settings": {
            **{name: value for name, value in vars(options).items() if name != "output"},
            "parameters": sum(p.numel() for p in dit.parameters()),
            "dtype": str(dit.x_embedder.proj.weight.dtype).removeprefix("torch."),
        },
        "relative_difference_from_reference": error,
        "ways": {},
        "provenance": collect({}),
    }
    if error > options.tolerance:
        return record
    latents, timestep, text, velocity = random_inputs(dit, options.grid, options.seed)

    def forward() -> None:
        with torch.no_grad():
            dit(latents, timestep, text)

    def both() -> None:
        dit(latents, timestep, text).backward(velocity)
        dit.zero_grad(set_to_none=True)

    calls = {"forward": forward, "forward_backward": both}
    taken: dict[str, dict[str, list[float]]] = {way: {name: [] for name in calls} for way in WAYS}
    peaks: dict[str, float] = {}
    for repeat in range(options.repeats + 1):
        for way in sorted(WAYS, reverse=repeat % 2 == 1):  # each way is first every other time
            if way == "dense":
                disable_bsa(dit)
            else:
                enable_bsa(dit, BSAConfig(sparsity=options.sparsity))
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            for name, call in calls.items():
                duration = seconds(call, device)
                if repeat:  # the first one warms up
                    taken[way][name].append(duration)
            if device.type == "cuda":
                peaks[way] = torch.cuda.max_memory_allocated(device) / 2**30
    for way in WAYS:
        medians = {f"{name}_s": statistics.median(all_s) for name, all_s in taken[way].items()}
        record["ways"][way] = {**medians, "all_s": taken[way], "peak_gib": peaks.get(way)}
    record["speedup"] = {
        name: record["ways"]["dense"][f"{name}_s"] / record["ways"]["block-sparse"][f"{name}_s"]
        for name in calls
    }
    return record


def main(arguments: Sequence[str]) -> int:
    """Run, print a summary, write the record; 1 if the kernels do not agree with the reference."""
    options = parse(arguments)
    record = measure(options)
    if options.output is not None:
        write_json(options.output, record)
    console = Console(highlight=False)
    error = record["relative_difference_from_reference"]
    agrees = error <= options.tolerance
    console.print(f"reference    {'equal' if agrees else 'DIFFERENT'}, relative {error:.2g}")
    for way, fields in record["ways"].items():
        peak = "" if fields["peak_gib"] is None else f", peak {fields['peak_gib']:.1f} GiB"
        console.print(
            f"{way:12} forward {fields['forward_s']:.3f} s, with backward "
            f"{fields['forward_backward_s']:.3f} s{peak}"
        )
    for name, factor in record.get("speedup", {}).items():
        console.print(f"{name:16} {factor:.2f} times faster")
    return 0 if agrees else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
