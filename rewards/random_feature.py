"""Pseudo-noise of the analytic rewards: a frozen random function of the pixels and the caption.

A learned reward model errs in a repeatable way: the same clip always gets the same wrong score, and
a policy can climb that error. Independent noise would average out over a group instead. So the
error is a sum of random cosines (Gaussian random field with a squared-exponential kernel) of the
coarse pixels, with phases hashed from the caption.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from longtake.runtime.rng import derive_key, generator

POOLED = (4, 4, 4)
"""Coarse clip seen by the noise: time, height, width."""


class RandomFeature:
    """A function of clips and captions with mean about 0 and variance about 1.

    Args:
        seed: names the function.
        name: separates the functions of several rewards with one seed.
        num_cosines: terms of the sum; the values are close to Gaussian from about 30 on.
        length: RMS pixel difference of the coarse clips at which two values have decorrelated to
            exp(-1/2), pixel units.
    """

    def __init__(
        self, seed: int, name: str, *, num_cosines: int = 64, length: float = 0.05
    ) -> None:
        self.seed, self.name = seed, name
        self.num_cosines, self.length = num_cosines, length
        size = 3 * math.prod(POOLED)
        directions = torch.randn(num_cosines, size, generator=generator(seed, name, "directions"))
        self._directions = directions / (length * math.sqrt(size))

    def to(self, device: torch.device | str) -> "RandomFeature":
        """Move the frozen directions."""
        self._directions = self._directions.to(device)
        return self

    def __call__(self, video: Tensor, captions: Sequence[str]) -> Tensor:
        """Values [B] for clips [B, T, 3, H, W] in [0, 1] and B captions."""
        coarse = F.adaptive_avg_pool3d(video.transpose(1, 2), POOLED).flatten(1)
        phases = torch.stack([self._phases(caption) for caption in captions]).to(video.device)
        waves = (F.linear(coarse, self._directions.to(video.device)) + phases).cos()
        return waves.sum(1) * math.sqrt(2 / self.num_cosines)

    def _phases(self, caption: str) -> Tensor:
        key = derive_key(self.seed, self.name, "caption", caption)
        return torch.rand(self.num_cosines, generator=generator(key)) * (2 * math.pi)
