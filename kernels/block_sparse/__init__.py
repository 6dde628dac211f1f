"""3D block-sparse attention (section 3.4.2, Appendix A.2).

Tokens that stay in block order through a network are moved once, not in every layer::

    layout = BlockLayout((24, 45, 80))
    x = layout.to_block(x, dim=1)  # [B, N, C]
    ...  # in every layer, with q, k, v [B, N, H, D]:
    out = block_sparse_attention(
        q, k, v, grid_q=layout.grid, sparsity=0.9375, layout="block", heads_first=False
    )
    ...
    x = layout.from_block(x, dim=1)
"""

from longtake.kernels.block_sparse.api import attention_from_index, block_sparse_attention
from longtake.kernels.block_sparse.index import BlockIndex
from longtake.kernels.block_sparse.layout import BlockLayout, Size3
from longtake.kernels.block_sparse.select import (
    count_from_rule,
    first_frames,
    local_window,
    pool_blocks,
    select_blocks,
    select_from_pooled,
    space_and_time,
)

__all__ = [
    "BlockIndex",
    "BlockLayout",
    "Size3",
    "attention_from_index",
    "block_sparse_attention",
    "count_from_rule",
    "first_frames",
    "local_window",
    "pool_blocks",
    "select_blocks",
    "select_from_pooled",
    "space_and_time",
]
