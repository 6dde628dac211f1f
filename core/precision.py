"""The float32 islands of the model: norms, modulation, rotation and guidance never run lower."""

from torch import Tensor, float64


def widen(x: Tensor) -> Tensor:
    """``x`` in float32, or unchanged in float64 (so that the model can be its own fp64 oracle)."""
    return x if x.dtype == float64 else x.float()
