"""The recorded block-sparse attention is met, and faults are not.

tests/data/bsa.safetensors is a cut of the recorded file: of its cases topr_64 and topr_cdf_64, head
1 and the queries of token rows 4 to 7 (the second row of 4 x 4 x 4 blocks), with all keys. The
recorded dk and dv need all queries, so they are not in it.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from longtake.core.golden import GRADIENT_TOLERANCE, GoldenResult, check_file
from longtake.runtime.errors import CheckpointError, UserError

DATA = Path(__file__).parents[1] / "data" / "bsa.safetensors"
NAMES = {
    "topr_64.block_mask",
    "topr_64.out",
    "topr_64.dq",
    "topr_cdf_64.block_mask",
    "topr_cdf_64.out",
}


def check(path: Path, tolerance: float | None = None) -> dict[str, GoldenResult]:
    return {r.name: r for r in check_file(path, tolerance)}


def edited(tmp_path: Path, tensors: dict[str, Tensor | None], **metadata: str) -> Path:
    """A copy of the file with tensors and metadata replaced, or removed with None."""
    with safe_open(DATA, "pt") as file:
        header = {**file.metadata(), **metadata}
    kept = {k: v for k, v in {**load_file(DATA), **tensors}.items() if v is not None}
    save_file(kept, tmp_path / "x.safetensors", header)
    return tmp_path / "x.safetensors"


def rule(case: str, **changes: Any) -> str:
    with safe_open(DATA, "pt") as file:
        return json.dumps({**json.loads(file.metadata()[case]), **changes})


def failed(results: dict[str, GoldenResult]) -> set[str]:
    return {name for name, result in results.items() if not result.passed}


def test_masks_outputs_and_gradients_are_met() -> None:
    results = check(DATA)
    assert results.keys() == NAMES and not failed(results)
    for name, result in results.items():
        if name.endswith("block_mask"):
            assert result.max_abs_error == result.tolerance == 0
        else:  # not met by accident: half of the tolerance, and entries above 2
            assert result.max_abs_error < 0.5 * result.tolerance and result.magnitude > 2


def test_another_selected_block_fails(tmp_path: Path) -> None:
    name = "topr_64.block_mask"
    mask = load_file(DATA)[name]
    mask[0, 0, 2] = mask[0, 0, 2].roll(1)
    assert check(edited(tmp_path, {name: mask}))[name].max_abs_error == 1
    more = mask | 1
    assert check(edited(tmp_path, {name: more}))[name].max_abs_error == 4
    with pytest.raises(UserError, match="does not fit the layouts"):
        check(edited(tmp_path, {name: mask[..., :2, :]}))


def test_a_changed_rule_fails_the_mask_alone(tmp_path: Path) -> None:
    path = edited(tmp_path, {}, topr_cdf_64=rule("topr_cdf_64", cdf_threshold=0.6))
    assert failed(check(path)) == {"topr_cdf_64.block_mask"}


def test_changed_values_fail(tmp_path: Path) -> None:
    tensors = load_file(DATA)
    out, dq = tensors["topr_64.out"], tensors["topr_64.dq"]
    out[0, 0, 17, 3] += 0.05
    assert failed(check(edited(tmp_path, {"topr_64.out": out}))) == {"topr_64.out"}
    wrong = dq * (1 + 3 * GRADIENT_TOLERANCE)
    assert failed(check(edited(tmp_path, {"topr_64.dq": wrong}))) == {"topr_64.dq"}
    values = tensors["topr_cdf_64.v"]
    assert "topr_cdf_64.out" in failed(check(edited(tmp_path, {"topr_cdf_64.v": values * 1.02})))


def test_unknown_outputs_and_a_strict_tolerance_fail(tmp_path: Path) -> None:
    assert failed(check(edited(tmp_path, {"topr_64.future": torch.zeros(2)}))) == {"topr_64.future"}
    assert failed(check(DATA, 1e-5)) == {"topr_64.out", "topr_64.dq", "topr_cdf_64.out"}


@pytest.mark.parametrize("name", ["topr_64.q", "topr_64.block_mask"])
def test_missing_inputs_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=f"lacks inputs[\\s\\S]*{name}"):
        check(edited(tmp_path, {name: None}))


@pytest.mark.parametrize("broken", ["{", '{"grid_q": [4, 4, 16]}', '{"grid_q": 3}'])
def test_an_unreadable_rule_is_explained(tmp_path: Path, broken: str) -> None:
    with pytest.raises(CheckpointError, match="topr_64"):
        check(edited(tmp_path, {}, topr_64=broken))
