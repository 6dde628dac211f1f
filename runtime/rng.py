"""Counter-based random keys: every draw is named by (seed, path), never by call order.

Samples, critical timesteps and advantages must not depend on the batch split, the micro-batch or
the number of ranks (CONTRIBUTING.md). So no generator is ever advanced across samples: each
draw hashes its own name into a fresh generator, on the CPU, whatever the compute device.
"""

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # plans and seeds need keys only, without seconds of importing torch
    import torch
    from torch import Tensor


def derive_key(seed: int, *path: int | str) -> int:
    """Hash (seed, path) into a 63-bit non-negative integer.

    The encoding tags each part with its type, so ``("1",)`` and ``(1,)`` differ, and separates the
    parts, so ``("ab", "c")`` and ``("a", "bc")`` differ.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in (int(seed), *path))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & (2**63 - 1)


def generator(seed: int, *path: int | str) -> "torch.Generator":
    """A fresh CPU generator for the draw named by (seed, path)."""
    import torch

    return torch.Generator().manual_seed(derive_key(seed, *path))


def normal(
    shape: tuple[int, ...],
    seed: int,
    *path: int | str,
    dtype: "torch.dtype | None" = None,
    device: "torch.device | str" = "cpu",
) -> "Tensor":
    """Standard normal noise of ``shape`` named by (seed, path), float32 by default.

    Drawn in float32 on the CPU and moved, so that the values are the same on every device.
    """
    import torch

    noise = torch.randn(tuple(shape), generator=generator(seed, *path))
    return noise.to(device=device, dtype=dtype or torch.float32)
