"""What every mode of context parallelism is given: ranks, shards, and how to attend."""

import dataclasses

import torch
import torch.distributed as dist
from torch import Tensor

from longtake.kernels.block_sparse.context_parallel.sharding import BlockShards
from longtake.kernels.block_sparse.operator import block_sparse_backward, block_sparse_forward
from longtake.kernels.block_sparse.reference import empty_in_order_of, empty_outputs


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Who owns which blocks, seen from this rank."""

    group: dist.ProcessGroup | None
    """The ranks; None for all."""
    rank: int
    """This rank within the group."""
    queries: BlockShards
    """Shards of the queries."""
    keys: BlockShards
    """Shards of the keys and values."""

    @property
    def num_ranks(self) -> int:
        """Ranks of the group."""
        return len(self.queries.blocks)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of the attention operator; see :func:`block_sparse_forward`."""

    scale: float
    backend: str
    deterministic: bool


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Blocks:
    """Queries and keys that meet on this rank, and which of their blocks attend."""

    q: Tensor
    """[B, Hq, n, D]."""
    k: Tensor
    """[B, Hk, m, D]."""
    v: Tensor
    """As ``k``."""
    indices: Tensor
    """int32 [B, Hq, query blocks, R]: key blocks, counted from the first one here."""
    counts: Tensor
    """int32 [B, Hq, query blocks]."""
    q_offsets: Tensor
    """int32 [query blocks + 1]."""
    k_offsets: Tensor
    """int32 [key blocks + 1]."""

    def forward(self, options: Options) -> tuple[Tensor, Tensor]:
        """Output [B, Hq, n, D] and log-sum-exp [B, Hq, n]; see :func:`block_sparse_forward`."""
        if self._nothing():
            o, lse = empty_outputs(self.q)
            return o.zero_(), lse.fill_(-torch.inf)
        return block_sparse_forward(
            self.q,
            self.k,
            self.v,
            self.indices,
            self.counts,
            self.q_offsets,
            self.k_offsets,
            options.scale,
            options.backend,
            options.deterministic,
        )

    def backward(
        self, do: Tensor, o: Tensor, lse: Tensor, dlse: Tensor | None, options: Options
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What these pairs add to the gradients of q, k and v.

        Args:
            do: gradient of the output [B, Hq, n, D].
            o: output over all keys of the queries, wherever they are.
            lse: log-sum-exp over all keys.
            dlse: gradient of the log-sum-exp [B, Hq, n]; None for zero.
            options: as in the forward pass.
        """
        if self._nothing():
            dq, dk, dv = (empty_in_order_of(x).zero_() for x in (self.q, self.k, self.v))
            return dq, dk, dv
        return block_sparse_backward(
            do if do.stride(-1) == 1 else do.contiguous(),
            self.q,
            self.k,
            self.v,
            o,
            lse,
            dlse,
            self.indices,
            self.counts,
            self.q_offsets,
            self.k_offsets,
            options.scale,
            options.backend,
            options.deterministic,
        )

    def _nothing(self) -> bool:
        return not self.q.shape[2] or not self.k.shape[2]
