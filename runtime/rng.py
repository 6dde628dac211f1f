"""Counter-based random keys: every draw is named by (seed, path), never by call order.

Samples, critical timesteps and advantages must not depend on the batch split, the micro-batch or
the number of ranks (CONTRIBUTING.md). So no generator is ever advanced across samples: each
draw hashes its own name into a fresh generator, on the CPU, whatever the compute device.
"""

import torch
from torch import Tensor

from longtake.runtime.keys import derive_key as derive_key


def generator(seed: int, *path: int | str) -> torch.Generator:
    """A fresh CPU generator for the draw named by (seed, path)."""
    return torch.Generator().manual_seed(derive_key(seed, *path))


def normal(
    shape: tuple[int, ...] | torch.Size,
    seed: int,
    *path: int | str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Standard normal noise of ``shape`` named by (seed, path).

    Drawn in float32 on the CPU and moved, so that the values are the same on every device.
    """
    noise = torch.randn(tuple(shape), generator=generator(seed, *path))
    return noise.to(device=device, dtype=dtype)
