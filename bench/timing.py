"""What the benchmarks share: their common options, times, and the head of a record."""

import argparse
import datetime
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from longtake.runtime.provenance import collect


def parser(story: str | None) -> argparse.ArgumentParser:
    """The options of every benchmark; the first line of its docstring describes it."""
    common = argparse.ArgumentParser(description=(story or "").partition("\n")[0])
    common.add_argument("--tiny", action="store_true", help="small, in float32, on the CPU")
    common.add_argument("--repeats", type=positive, help="times of each kind, besides the first")
    common.add_argument("--seed", type=int, default=0)
    common.add_argument("--output", type=Path, help="JSON record; default: only the summary")
    return common


def positive(text: str) -> int:
    """An integer of at least 1."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def read_options(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str],
    full: Mapping[str, Any],
    tiny: Mapping[str, Any],
) -> argparse.Namespace:
    """Options of which those left out take the value for the size; ``device`` goes by it too."""
    options = parser.parse_args(arguments)
    for name, value in (tiny if options.tiny else full).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if not (options.tiny or torch.cuda.is_available()):
        parser.error("no CUDA device is visible; --tiny runs on the CPU")
    options.device = "cpu" if options.tiny else "cuda"
    return options


def new_record(name: str, options: argparse.Namespace, **settings: Any) -> dict[str, Any]:
    """What every record begins with; JSON types."""
    return {
        "benchmark": name,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "settings": {k: v for k, v in vars(options).items() if k != "output"} | settings,
        "provenance": collect({}),
    }


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Duration of a call, which has the device to itself."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def take_turns(
    ways: Mapping[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Way -> ``median_s``, ``all_s`` and, on a GPU, ``peak_gib``."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    peaks: dict[str, float] = {}
    for repeat in range(repeats + 1):
        # Each way is first every other time: clocks fall while a GPU gets warm.
        for way in sorted(ways, reverse=repeat % 2 == 1):
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            times[way].append(seconds(ways[way], device))
            if device.type == "cuda":
                peaks[way] = torch.cuda.max_memory_allocated(device) / 2**30
    return {
        way: {
            "median_s": statistics.median(all_s[1:]),  # the first one compiles and allocates
            "all_s": all_s[1:],
            "peak_gib": peaks.get(way),
        }
        for way, all_s in times.items()
    }
