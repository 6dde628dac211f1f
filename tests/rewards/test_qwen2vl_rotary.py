"""Rotary tables against float64 formulas and against a hand-written rounding to bfloat16."""

import math

import numpy as np
import pytest
import torch

from longtake.rewards.qwen2vl.layers import TextRotary, VisionRotary


def bf16(value: float) -> float:
    """Round to nearest even at 8 significant bits, from the definition."""
    if value == 0:
        return 0.0
    unit = 2.0 ** (math.floor(math.log2(abs(value))) - 7)
    return round(value / unit) * unit  # Python rounds halves to even


def frequency(i: int, dim: int, theta: float) -> float:
    return float(np.float32(theta ** (-2 * i / dim)))


@pytest.mark.parametrize("precision", ["float32", "bf16_frequencies", "bf16"])
def test_text_tables(precision: str) -> None:
    positions = torch.tensor([[0, 1, 7, 900], [3, 4, 5, 6]])
    cos, sin = TextRotary(16, 1e6, precision)(torch.zeros(1), positions.expand(3, 2, 4))
    assert cos.shape == sin.shape == (2, 4, 16) and cos.dtype == torch.float32
    for row, column, i in np.ndindex(2, 4, 8):
        exact = frequency(i, 16, 1e6)
        angle = int(positions[row, column]) * (exact if precision == "float32" else bf16(exact))
        for half in (i, i + 8):
            assert abs(float(cos[row, column, half]) - math.cos(angle)) < 1e-4
            assert abs(float(sin[row, column, half]) - math.sin(angle)) < 1e-4


def test_text_rounding_is_as_large_as_documented() -> None:
    exact, rounded = (
        [frequency(i, 128, 1e6) for i in range(64)],
        [bf16(frequency(i, 128, 1e6)) for i in range(64)],
    )
    error = max(abs(a - b) for a, b in zip(exact, rounded, strict=True)) * 900
    assert 0.9 < error < 1.2  # about one radian at position 900


def test_text_tables_follow_the_dtype_of_the_states() -> None:
    cos, sin = TextRotary(16, 1e6, "bf16")(
        torch.zeros(1, dtype=torch.bfloat16), torch.arange(5).expand(3, 1, 5)
    )
    assert cos.dtype == sin.dtype == torch.bfloat16


@pytest.mark.parametrize("precision", ["float32", "bf16_frequencies", "bf16"])
def test_vision_tables(precision: str) -> None:
    places = torch.tensor([[0, 0], [1, 5], [23, 41], [40, 2]])
    cos, sin = VisionRotary(16, 1e4, precision)(torch.zeros(1), places)
    assert cos.shape == sin.shape == (4, 16) and cos.dtype == torch.float32
    for patch, axis, i in np.ndindex(4, 2, 4):
        omega = frequency(i, 8, 1e4)
        if precision != "float32":
            omega = bf16(omega)
        angle = int(places[patch, axis]) * omega
        expected = (math.cos(angle), math.sin(angle))
        if precision == "bf16":
            angle = bf16(angle)
            expected = (bf16(math.cos(angle)), bf16(math.sin(angle)))
        for half in (0, 8):  # row channels, then column channels, and the same again
            channel = half + 4 * axis + i
            assert abs(float(cos[patch, channel]) - expected[0]) < 1e-5
            assert abs(float(sin[patch, channel]) - expected[1]) < 1e-5


def test_the_modules_hold_no_state() -> None:
    for module in (TextRotary(16, 1e6, "bf16"), VisionRotary(16, 1e4, "bf16")):
        assert not list(module.parameters()) and not list(module.buffers())
