"""The golden files pass, and the check itself can fail."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from longtake.core import blocks
from longtake.core.golden import CHECKS, GoldenResult, check_file, compare
from longtake.runtime.errors import CheckpointError, UserError

DATA = Path(__file__).parents[1] / "data"
DIT_OUTPUTS = {
    "t2v.out",
    "zero_pad.out",
    "cond.out",
    "kv.0.k",
    "kv.0.v",
    "kv.1.k",
    "kv.1.v",
    "kv.out",
    "lora.out",
}


def by_name(results: list[GoldenResult]) -> dict[str, GoldenResult]:
    return {result.name: result for result in results}


def edited(tmp_path: Path, with_lora: bool = True, **changes: Tensor) -> Path:
    """A copy of the DiT file with tensors replaced or added (``__`` stands for a dot)."""
    tensors = load_file(DATA / "dit.safetensors")
    with safe_open(DATA / "dit.safetensors", "pt") as file:
        metadata = file.metadata()
    tensors |= {name.replace("__", "."): tensor for name, tensor in changes.items()}
    path = tmp_path / "dit.safetensors"
    save_file(tensors, path, metadata=metadata)
    if with_lora:
        shutil.copy(DATA / "dit_lora.safetensors", tmp_path)
    return path


def test_dit_matches_every_recorded_output() -> None:
    results = by_name(check_file(DATA / "dit.safetensors"))
    gradients = {name for name in results if name.startswith("grad.")}
    assert results.keys() - gradients == DIT_OUTPUTS and len(gradients) == 7
    assert all(result.passed for result in results.values())
    for name in gradients:
        assert results[name].tolerance <= 2e-4 * max(1.0, results[name].magnitude), name


def test_cosines_of_another_cpu_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vector libraries differ in the last digit of the angle; here the angles are exact."""

    def exact(t: Tensor, dim: int) -> Tensor:
        step = torch.arange(dim // 2, dtype=torch.float64) / (dim // 2)
        angle = t.double()[:, None] * torch.exp(-math.log(10000.0) * step)
        return torch.cat((angle.cos(), angle.sin()), dim=-1).to(t.dtype)

    monkeypatch.setattr(blocks, "timestep_features", exact)
    result = by_name(check_file(DATA / "dit.safetensors"))["grad.t_embedder.mlp.0.weight"]
    assert result.passed and result.max_abs_error > 1.03e-5  # more than a bound of 1e-5 allows


def test_lora_file_is_checked_through_its_model() -> None:
    (result,) = check_file(DATA / "dit_lora.safetensors")
    assert result.name == "lora.out" and result.passed


def test_schedules_match() -> None:
    results = by_name(check_file(DATA / "schedules.json"))
    assert len(results) == 2 * 12 + 3 + 2 + 3
    assert all(result.passed and result.max_abs_error <= 1e-6 for result in results.values())


def test_a_changed_output_fails_alone(tmp_path: Path) -> None:
    value = load_file(DATA / "dit.safetensors")["cond.out"]
    results = check_file(edited(tmp_path, cond__out=value + 1e-3))
    assert {result.name for result in results if not result.passed} == {"cond.out"}


def test_a_changed_weight_fails_everything(tmp_path: Path) -> None:
    name = "weights.blocks.0.attn.qkv.weight"
    value = load_file(DATA / "dit.safetensors")[name]
    results = check_file(edited(tmp_path, **{name.replace(".", "__"): value * 1.01}))
    failed = {result.name for result in results if not result.passed}
    assert failed >= DIT_OUTPUTS


def test_missing_lora_and_unknown_outputs_are_failures(tmp_path: Path) -> None:
    path = edited(tmp_path, with_lora=False, future__out=torch.zeros(2))
    failed = {result.name for result in check_file(path) if not result.passed}
    assert failed == {"lora.out", "future.out"}


def test_tolerance_is_honoured() -> None:
    results = check_file(DATA / "dit.safetensors", tolerance=0.0)
    assert not any(result.passed for result in results if result.name == "t2v.out")
    assert {result.tolerance for result in results} == {0.0}


def test_negative_controls_must_not_match(tmp_path: Path) -> None:
    value = load_file(DATA / "dit.safetensors")["t2v.out"]
    far = by_name(check_file(edited(tmp_path, wrong__far=value + 1)))
    assert far["wrong.far"].is_control and far["wrong.far"].passed
    near = by_name(check_file(edited(tmp_path, wrong__near=value)))
    assert not near["wrong.near"].passed


def test_shape_difference_and_nan_fail() -> None:
    recorded = {"a": torch.zeros(2), "b": torch.zeros(2), "wrong.c": torch.zeros(3)}
    ours = {"a": torch.zeros(2, 1), "b": torch.tensor([0.0, float("nan")])}
    a, b, c = compare(recorded, ours, 1e-4)
    assert not a.passed and not b.passed and c.passed
    (control,) = compare({"wrong.b": torch.zeros(2)}, {"b": ours["b"]}, 1e-4)[1:]
    assert not control.passed  # a NaN proves nothing


def test_changed_schedule_fails(tmp_path: Path) -> None:
    content = json.loads((DATA / "schedules.json").read_text())
    content["schedules"][5]["sigmas"][3] += 1e-5
    content["prompt_clean"][0][1] += "s"
    (tmp_path / "schedules.json").write_text(json.dumps(content))
    failed = [r.name for r in check_file(tmp_path / "schedules.json") if not r.passed]
    assert failed == ["schedules.distilled.16.shift_3", "prompt_clean.0"]


def test_unsupported_and_unreadable_files(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "new.safetensors", metadata={"kind": "new"})
    with pytest.raises(UserError, match="not supported yet") as caught:
        check_file(tmp_path / "new.safetensors")
    assert "new" in str(caught.value) and all(kind in str(caught.value) for kind in CHECKS)
    with pytest.raises(UserError, match="not found"):
        check_file(tmp_path / "absent.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"broken\.safetensors"):
        check_file(tmp_path / "broken.safetensors")
    (tmp_path / "other.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match="not supported yet"):
        check_file(tmp_path / "other.json")


def test_more_kinds_can_be_given(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors", metadata={"kind": "mine"})
    result = GoldenResult(name="x", max_abs_error=0.0, tolerance=0.0)
    assert check_file(tmp_path / "x.safetensors", checks={"mine": lambda *_: [result]}) == [result]
