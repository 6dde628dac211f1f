"""The benchmark of the transformer runs end to end on the CPU with a tiny model."""

import json
from pathlib import Path

import pytest
import torch

from longtake.bench import bench_dit_bsa as bench


def test_the_tiny_benchmark_writes_a_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results" / "dit.json"
    assert bench.main(["--tiny", "--output", str(output)]) == 0
    record = json.loads(output.read_text())
    assert "equal" in capsys.readouterr().out
    for times in record["times"].values():
        for way in bench.WAYS:
            assert len(times[way]["all_s"]) == 2 and min(times[way]["all_s"]) > 0
        assert times["speedup"] == times["dense"]["median_s"] / times["block-sparse"]["median_s"]
    assert record["provenance"]["packages"]["torch"]


def test_no_times_where_the_kernels_differ(tmp_path: Path) -> None:
    output = tmp_path / "dit.json"
    assert bench.main(["--tiny", "--tolerance", "-1", "--output", str(output)]) == 1
    record = json.loads(output.read_text())
    assert record["times"] == {}


def test_gradients_flow_through_the_random_model() -> None:
    options = bench.parse(["--tiny"])
    dit = bench.random_transformer(options, torch.device("cpu"))
    latents, timestep, text, velocity = bench.random_inputs(dit, options.grid, 0)
    dit(latents, timestep, text).backward(velocity)
    for block in dit.blocks:
        assert block.attn.qkv.weight.grad.abs().max() > 1e-6
