"""An oracle for block-sparse attention: dense, float64, tokens in plain order, autograd."""

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

Size3 = tuple[int, int, int]


def block_of_token(grid: Size3, block: Size3) -> Tensor:
    """Number of the block of every token in plain order, one token at a time."""
    nh, nw = -(-grid[1] // block[1]), -(-grid[2] // block[2])
    t, h, w = block
    return torch.tensor(
        [((z // t) * nh + y // h) * nw + x // w for z, y, x in product(*map(range, grid))]
    )


@pytest.fixture
def tokens_to_blocks() -> Callable[[Size3, Size3], Tensor]:
    return block_of_token


@pytest.fixture
def dense_attention() -> Callable[..., tuple[Tensor, Tensor]]:
    def attend(
        q: Tensor, k: Tensor, v: Tensor, mask: Tensor, of_q: Tensor, of_k: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Output [B, H, N, D] and log-sum-exp, from a block mask [B, H, Nq, Nk]."""
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        attended = mask[:, :, of_q][:, :, :, of_k]
        s = (q @ k.mT * scale).masked_fill(~attended, -torch.inf)
        empty = ~attended.any(-1)
        lse = s.masked_fill(empty[..., None], 0.0).logsumexp(-1)
        p = torch.where(attended, (s - lse[..., None]).exp(), 0.0)
        return p @ v, torch.where(empty, -torch.inf, lse)

    return attend
