"""The benchmark of the transformer runs end to end on the CPU with a tiny model."""

import json
from pathlib import Path

import pytest

from longtake.bench import bench_dit_bsa as bench


def test_the_tiny_benchmark_writes_a_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results" / "dit.json"
    assert bench.main(["--tiny", "--output", str(output)]) == 0
    record = json.loads(output.read_text())
    assert "equal" in capsys.readouterr().out
    assert set(record["ways"]) == {"dense", "block-sparse"}
    for fields in record["ways"].values():
        assert all(len(times) == 2 and min(times) > 0 for times in fields["all_s"].values())
    dense, sparse = (record["ways"][way]["forward_s"] for way in bench.WAYS)
    assert record["speedup"]["forward"] == dense / sparse
    assert record["provenance"]["packages"]["torch"]


def test_no_times_where_the_kernels_differ(tmp_path: Path) -> None:
    output = tmp_path / "dit.json"
    assert bench.main(["--tiny", "--tolerance", "-1", "--output", str(output)]) == 1
    record = json.loads(output.read_text())
    assert record["ways"] == {} and "speedup" not in record


@pytest.mark.parametrize(
    "arguments",
    [["--tiny", "--repeats", "0"], ["--tiny", "--depth", "-1"], ["--grid", "0", "4", "4"], ["--x"]],
)
def test_wrong_options_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        bench.main(arguments)
    assert stopped.value.code == 2


def test_gradients_flow_through_the_random_model() -> None:
    import torch

    options = bench.parse(["--tiny"])
    dit = bench.random_transformer(options, torch.device("cpu"))
    latents, timestep, text, velocity = bench.random_inputs(dit, options.grid, 0)
    dit(latents, timestep, text).backward(velocity)
    for block in dit.blocks:
        assert block.attn.qkv.weight.grad.abs().max() > 1e-6
