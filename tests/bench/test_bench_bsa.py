"""bench/bench_bsa.py in its small form."""

import json
from pathlib import Path

import pytest
import torch

from longtake.bench import bench_bsa
from longtake.bench.bsa_checks import Finding
from longtake.bench.bsa_data import input_sets, sampled_errors, useful_flops, with_gradients
from longtake.kernels.block_sparse import BlockLayout, attention_from_index, select_blocks


def _run(tmp_path: Path, *options: str) -> tuple[int, dict]:
    output = tmp_path / "bsa.json"
    small = ["--tiny", "--repeats", "1", "--dense-repeats", "1", "--output", str(output)]
    code = bench_bsa.main([*small, *options])
    return code, json.loads(output.read_text(encoding="utf-8"))


def test_small_run_measures_ours_and_dense_and_compares_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_bsa, "CHECKS", {"one": lambda *where: [Finding("x", 0.0, 1.0)]})
    code, record = _run(tmp_path, "--lists", "random,hub")
    assert code == 0
    assert record["checks"] == {"number": 1, "failed": []}
    measured = {(m["lists"], m["peer"], m["what"]) for m in record["measurements"]}
    for kind in ("random", "hub"):
        assert {(kind, "ours", "forward"), (kind, "ours", "forward+backward")} <= measured
        assert (kind, "selection", "lists") in measured
    assert {("-", "dense", "forward+backward"), ("random", "CDF", "forward")} <= measured
    times = {(m["lists"], m["peer"], m["what"]): m["median_ms"] for m in record["measurements"]}
    row = record["speedups"][0]
    assert row["what"] == "forward" and row["lists"] == "random"
    ratio = times["-", "dense", "forward"] / times["random", "ours", "forward"]
    assert row["dense / ours"] == pytest.approx(ratio)
    assert all(e["equal_runs"] and max(e["relative"].values()) < 1e-4 for e in record["errors"])
    assert [e["deviation"] for e in record["errors"]] == [1.0, 16.0]


def test_no_speed_up_when_a_check_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_bsa, "CHECKS", {"one": lambda *where: [Finding("x", 2.0, 1.0)]})
    code, record = _run(tmp_path, "--lists", "random", "--peers", "ours;dense")
    assert code == 1
    assert record["speedups"] is None
    assert record["checks"]["failed"] == ["reference, one: x: 2 > 1"]
    shown = capsys.readouterr().out
    assert "no speed-ups" in shown and "dense / ours" not in shown


def _lists(kind: str) -> tuple[torch.Tensor, BlockLayout]:
    layout = BlockLayout((16, 32, 32))
    draw = torch.Generator().manual_seed(0)
    shape = {"heads": 1, "dim": 64, "dtype": torch.float32, "draw": draw}
    q, k, _, _ = input_sets(layout, kind, **shape)[0]
    index = select_blocks(q, k, layout, layout, sparsity=0.9375)
    return index.to_dense_mask()[0, 0].float(), layout


def test_kinds_of_lists_are_what_they_are_called() -> None:
    random, local, hub = (_lists(kind)[0] for kind in ("random", "local", "hub"))
    shared = [(mask[1:] * mask[:-1]).sum() / mask[1:].sum() for mask in (random, local, hub)]
    assert shared[0] < 0.1 < 0.5 < shared[1]
    assert random.sum(0).max() < 0.3 * len(random)
    liked = hub.sum(0) > 0.5 * len(hub)
    assert liked.sum() == len(hub) // 64 and liked[::64].all()


def test_sampled_errors_see_an_error_in_every_result() -> None:
    layout = BlockLayout((4, 6, 9))
    draw = torch.Generator().manual_seed(1)
    tensors = input_sets(layout, "random", heads=2, dim=16, dtype=torch.float64, draw=draw)[0]
    index = select_blocks(tensors[0], tensors[1], layout, layout, topk=3)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attention_from_index(q, k, v, index, layout, layout, layout="block")

    results = with_gradients(attend, [tensors])(0)
    assert max(sampled_errors(results, tensors, index, layout).values()) < 1e-12
    for place, name in enumerate(("output", "dq", "dk", "dv")):
        wrong = [x * 1.01 if i == place else x for i, x in enumerate(results)]
        errors = sampled_errors(tuple(wrong), tensors, index, layout)
        assert errors[name] == pytest.approx(0.01, rel=1e-6)
        assert sum(errors.values()) < 0.011
    pairs = sum(
        layout.block_sizes()[row] * layout.block_sizes()[index.indices[0, h, row].long()].sum()
        for h in range(2)
        for row in range(layout.num_blocks)
    )
    assert useful_flops(index, layout, 16) == 4 * 16 * pairs
