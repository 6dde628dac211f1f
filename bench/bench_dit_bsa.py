"""The transformer with dense and with block-sparse self-attention.

    python bench/bench_dit_bsa.py --output FILE.json
    python bench/bench_dit_bsa.py --tiny            on the CPU

Blocks of the published width with random weights on a latent of 720p and 93 frames: forward, and
forward with backward through recomputed blocks, as training runs them. Both ways take turns in one
process. Times are given only if, on a small grid, the kernels of the device give the output of the
plain reference.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from longtake.bench.timing import new_record, parser, positive, read_options, take_turns
from longtake.core.block_order import BSAConfig
from longtake.core.dit import DiTConfig, LongCatDiT, disable_bsa, enable_bsa
from longtake.runtime.files import write_json

WAYS = ("dense", "block-sparse")
TEXT_TOKENS = 512


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Options from the command line."""
    own = parser(__doc__)
    own.add_argument("--grid", type=positive, nargs=3, help="T H W in tokens")
    own.add_argument("--depth", type=positive, default=2, help="blocks of the transformer")
    own.add_argument("--tolerance", type=float, help="relative; 0.02, or 1e-4 with --tiny")
    return read_options(
        own,
        arguments,
        full={"grid": (24, 48, 80), "repeats": 7, "tolerance": 2e-2},
        tiny={"grid": (4, 8, 12), "repeats": 2, "tolerance": 1e-4},
    )


def random_transformer(options: argparse.Namespace, device: torch.device) -> LongCatDiT:
    """Weights and modulations are random: with the zero gates of a new model no gradient flows."""
    small = {"hidden_size": 64, "num_heads": 2, "caption_channels": 32, "adaln_tembed_dim": 32}
    with torch.device("meta"):
        dit = LongCatDiT(DiTConfig(depth=options.depth, **(small if options.tiny else {})))
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


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The record of the benchmark; JSON types."""
    device = torch.device(options.device)
    dit = random_transformer(options, device)
    sparsity = 0.5 if options.tiny else 0.9375
    record = new_record(
        "dit_bsa",
        options,
        sparsity=sparsity,
        parameters=sum(p.numel() for p in dit.parameters()),
        dtype=str(dit.x_embedder.proj.weight.dtype).removeprefix("torch."),
    )
    error = difference_from_reference(dit, options)
    record |= {"relative_difference_from_reference": error, "times": {}}
    if error > options.tolerance:  # a wrong kernel has no speed
        return record
    latents, timestep, text, velocity = random_inputs(dit, options.grid, options.seed)

    def forward() -> None:
        with torch.no_grad():
            dit(latents, timestep, text)

    def both() -> None:
        dit(latents, timestep, text).backward(velocity)
        dit.zero_grad(set_to_none=True)

    for name, call in (("forward", forward), ("forward_backward", both)):

        def dense(call: Callable[[], None] = call) -> None:
            disable_bsa(dit)
            call()

        def sparse(call: Callable[[], None] = call) -> None:
            enable_bsa(dit, BSAConfig(sparsity=sparsity))
            call()

        ways = dict(zip(WAYS, (dense, sparse), strict=True))
        times = take_turns(ways, options.repeats, device)
        factor = times["dense"]["median_s"] / times["block-sparse"]["median_s"]
        record["times"][name] = {**times, "speedup": factor}
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
    for name, times in record["times"].items():
        for way in WAYS:
            peak = times[way]["peak_gib"]
            memory = "" if peak is None else f", peak {peak:.1f} GiB"
            console.print(f"{name:16} {way:12} {times[way]['median_s']:.3f} s{memory}")
        console.print(f"{name:16} {times['speedup']:.2f} times faster")
    return 0 if agrees else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
