"""What the benchmarks share, and wrong options of each."""

import time
from types import ModuleType

import pytest
import torch

from longtake.bench import bench_bsa, bench_dit_bsa, bench_hpsv3
from longtake.bench.timing import take_turns


@pytest.mark.parametrize(
    ("bench", "arguments"),
    [
        (bench_bsa, ["--tiny", "--peers", "theirs"]),
        (bench_dit_bsa, ["--tiny", "--repeats", "0"]),
        (bench_dit_bsa, ["--grid", "0", "4", "4"]),
        (bench_hpsv3, ["--tiny", "--frames", "-1"]),
        (bench_hpsv3, ["--what"]),
    ],
)
def test_wrong_options_are_refused(bench: ModuleType, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        bench.main(arguments)
    assert stopped.value.code == 2


def test_ways_take_turns_and_the_first_time_does_not_count() -> None:
    order = []

    def way(name: str, pause: float) -> None:
        order.append(name)
        time.sleep(pause if len(order) > 2 else 0.2)

    calls = {"a": lambda: way("a", 0.0), "b": lambda: way("b", 0.01)}
    times = take_turns(calls, 2, torch.device("cpu"))
    assert "".join(order) == "abbaab"
    assert len(times["b"]["all_s"]) == 2 and 0.01 <= times["b"]["median_s"] < 0.1
    assert times["a"]["peak_gib"] is None
