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
    block_q: int
    """Tokens of a whole query block."""
    block_k: int
    """Tokens of a whole key block."""

    def forward(self, options: Options) -> tuple[Tensor, Tensor]:
        """Output [B, Hq, n, D] and log-sum-exp [B, Hq, n]; see :func:`block_sparse_forward`."""
        if not self._meet():
            o, lse = empty_outputs(self.q)
            return o.zero_(), lse.fill_(-torch.inf)
        return block_sparse_forward(
            self.q, self.k, self.v, *self._lists(), *dataclasses.astuple(options)
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
        if not self._meet():
            dq, dk, dv = (empty_in_order_of(x).zero_() for x in (self.q, self.k, self.v))
            return dq, dk, dv
        do = do if do.stride(-1) == 1 else do.contiguous()
        saved = self.q, self.k, self.v, o, lse, dlse
        return block_sparse_backward(do, *saved, *self._lists(), *dataclasses.astuple(options))

    def _meet(self) -> bool:
        """Kernels are not launched on nothing: a rank may own no queries or no keys."""
        return self.q.shape[2] > 0 and self.k.shape[2] > 0

    def _lists(self) -> tuple[Tensor, Tensor, Tensor, Tensor, int, int]:
        offsets = self.q_offsets, self.k_offsets
        return self.indices, self.counts, *offsets, self.block_q, self.block_k
