"""Graded judgements: a measured quantity to a score in [0, 1], never a hard step."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def ramp(value: Array | float, zero: float, one: float) -> Array:
    """Smoothstep from 0 at ``zero`` to 1 at ``one``; ``zero`` may be the larger of the two."""
    # No corner at either end: a policy must not feel an edge where the judgement saturates.
    u = np.clip((np.asarray(value, dtype=np.float64) - zero) / (one - zero), 0.0, 1.0)
    return u * u * (3.0 - 2.0 * u)


def decay(value: Array | float, free: float, scale: float) -> Array:
    """1 up to ``free``, then exponential decay with length ``scale``."""
    excess = np.maximum(0.0, np.asarray(value, dtype=np.float64) - free)
    return np.exp(-excess / scale)


def nearest_of(value: Array, options: Array, own: int) -> Array:
    """How clearly a colour [..., 3] is option ``own`` of [K, 3]: 1 on it, 0 on another one."""
    distance = np.linalg.norm(value[..., None, :] - options, axis=-1)  # [..., K]
    other = np.delete(distance, own, axis=-1).min(axis=-1)
    distance = distance[..., own]
    return ramp(other / (other + distance + 1e-9), 0.3, 0.8)


def weighted_product(terms: Sequence[tuple[float, float]]) -> float:
    """Product of score ** weight: any defect shows, and a weight below 1 softens it."""
    return float(np.prod([score**weight for score, weight in terms]))
