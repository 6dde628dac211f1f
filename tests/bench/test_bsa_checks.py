"""The checks that run on GPUs and before benchmarks: they pass on the reference, and can fail."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from longtake.bench.bsa_checks import CHECKS, Finding
from longtake.kernels.block_sparse import reference

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", CHECKS)
def test_reference_passes(name: str) -> None:
    findings = list(CHECKS[name](CPU, "reference"))
    assert findings
    assert [finding for finding in findings if not finding.passed] == []


def _spoil(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    right = reference.forward

    def wrong(*args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        o, lse = right(*args, **options)
        return change(o), lse

    return wrong


def test_small_error_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "forward", _spoil(lambda o: o * 1.005))
    failed = [f.name for f in CHECKS["shapes"](CPU, "reference") if not f.passed]
    assert any("output" in name for name in failed)
    assert not all("output" in name for name in failed), "gradients depend on the output"


def test_randomness_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = torch.Generator().manual_seed(0)

    def jitter(o: Tensor) -> Tensor:
        return torch.where(torch.rand(o.shape, generator=noise) < 0.01, o.nextafter(o * 2), o)

    monkeypatch.setattr(reference, "forward", _spoil(jitter))
    assert not all(f.passed for f in CHECKS["repeats"](CPU, "reference"))


def test_leaking_nan_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "forward", _spoil(lambda o: o + 0 * o.nansum() / 0))
    assert not all(f.passed for f in CHECKS["foreign values"](CPU, "reference"))


def test_nan_never_passes() -> None:
    assert not Finding("x", math.nan, math.inf).passed
    assert Finding("x", 1.0, 1.0).passed
