"""Context parallelism of block-sparse attention (Appendix A.2.2)."""

from longtake.kernels.block_sparse.context_parallel.api import context_parallel_attention
from longtake.kernels.block_sparse.context_parallel.shards import BlockShards

__all__ = ["BlockShards", "context_parallel_attention"]
