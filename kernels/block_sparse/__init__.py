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

from longtake.kernels.block_sparse.attention import attention_from_index, block_sparse_attention
from longtake.kernels.block_sparse.index import BlockIndex
from longtake.kernels.block_sparse.layout import BlockLayout
from longtake.kernels.block_sparse.masks import first_frames, local_window, space_and_time
from longtake.kernels.block_sparse.pooling import pool_blocks
from longtake.kernels.block_sparse.selection import select_blocks, select_from_pooled

__all__ = [
    "BlockIndex",
    "BlockLayout",
    "attention_from_index",
    "block_sparse_attention",
    "first_frames",
    "local_window",
    "pool_blocks",
    "select_blocks",
    "select_from_pooled",
    "space_and_time",
]
