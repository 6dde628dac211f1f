"""Block-sparse attention on GPUs: the functions of the reference, run by Gluon or Triton kernels.

Importing this module imports Triton. Gluon kernels serve Hopper GPUs, 16-bit types, head sizes 64
and 128, blocks of a multiple of 64 tokens and tensors that TMA can address; Triton kernels serve
all else.
"""

import importlib
from types import ModuleType

import torch
from torch import Tensor

from longtake.kernels.block_sparse import triton_launch
from longtake.kernels.block_sparse.launch import BOX_ROWS, Blocks, Call, Lists, in_reach_of_tma
from longtake.kernels.block_sparse.reference import empty_in_order_of, empty_outputs
from longtake.kernels.block_sparse.triton_lists import lists_per_key
from longtake.kernels.block_sparse.triton_selection import MAX_KEY_BLOCKS, block_means, choose
from longtake.runtime.errors import UserError

#: Below this share of tokens in the room of their blocks, most blocks are not whole, and masked
#: tiles are faster than whole ones with the rest in grains.
MIN_FILL = 0.75


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor,
    counts: Tensor,
    q_offsets: Tensor,
    k_offsets: Tensor,
    scale: float,
    backend: str = "auto",
    *,
    block_q: int | None = None,
    block_k: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of every query to the keys of its block's list.

    Args:
        q: [B, Hq, N, D] in block order; any strides, the last axis contiguous.
        k: [B, Hk, M, D]; Hk divides Hq, query head h reads key head h // (Hq / Hk).
        v: as ``k``.
        indices: int32 [B, Hq, Nq, R], distinct blocks; ascending ones are read fastest.
        counts: int32 [B, Hq, Nq].
        q_offsets: int32 [Nq + 1], first token of every query block.
        k_offsets: int32 [Nk + 1].
        scale: factor of the scores, positive.
        backend: "gluon", "triton", or "auto" for the best one of the device.
        block_q: tokens of the largest query block. None looks, which waits for the device.
        block_k: tokens of the largest key block.

    Returns:
        Output [B, Hq, N, D] in the type and memory order of ``q``, and log-sum-exp [B, Hq, N] in
        float32, natural logarithm. A query without keys gets 0 and -inf.

    Raises:
        UserError: tensors or a backend that no kernel serves.
    """
    call = _call(q, k, v, indices, counts, q_offsets, k_offsets, scale, block_q, block_k)
    o, lse = empty_outputs(q)
    _kernels(backend, call, q, k, v).forward(call, o, lse)
    return o, lse


def backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    dlse: Tensor | None,
    indices: Tensor,
    counts: Tensor,
    q_offsets: Tensor,
    k_offsets: Tensor,
    num_key_blocks: int,
    scale: float,
    deterministic: bool = True,
    backend: str = "auto",
    *,
    block_q: int | None = None,
    block_k: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`forward`, bitwise equal from run to run on one kind of GPU.

    Args:
        do: gradient of the output [B, Hq, N, D], any strides.
        q: and all further tensors as in :func:`forward`.
        k: keys.
        v: values.
        o: output.
        lse: log-sum-exp; that of several calls merged gives their joint gradient.
        dlse: gradient of the log-sum-exp [B, Hq, N], any strides; None for zero.
        indices: lists.
        counts: lengths of the lists.
        q_offsets: query blocks.
        k_offsets: key blocks.
        num_key_blocks: Nk.
        scale: factor of the scores.
        deterministic: both values give the same, deterministic gradients.
        backend: as in :func:`forward`.
        block_q: as in :func:`forward`.
        block_k: as in :func:`forward`.

    Returns:
        ``dq``, ``dk``, ``dv`` in the types and memory orders of ``q``, ``k``, ``v``.

    Raises:
        UserError: tensors or a backend that no kernel serves.
    """
    call = _call(q, k, v, indices, counts, q_offsets, k_offsets, scale, block_q, block_k)
    if do.stride(-1) != 1:
        do = do.contiguous()
    lse = lse.contiguous()
    run = _kernels(backend, call, q, k, v, do)
    # Before the gradients are allocated: the inversion needs some memory for a moment.
    per_key = run.lists_for_keys(call)
    delta = triton_launch.delta(o, do, lse, dlse)
    dq, dk, dv = (empty_in_order_of(x) for x in (q, k, v))
    run.query_gradient(call, do, lse, delta, dq)
    run.key_gradient(call, per_key, do, lse, delta, dk, dv)
    return dq, dk, dv


def pool(x: Tensor, offsets: Tensor) -> Tensor:
    """Mean of the tokens of every block, summed in float32.

    Args:
        x: [B, H, N, D] in block order with a contiguous last axis.
        offsets: int32 [Nblk + 1], first token of every block.

    Returns:
        float32 [B, H, Nblk, D].

    Raises:
        UserError: a tensor that no kernel serves.
    """
    _check(x)
    return block_means(x, offsets)


def select(
    q_pool: Tensor,
    k_pool: Tensor,
    kept: Tensor | None,
    least: int,
    cdf_p: float,
    width: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Lists of selected key blocks.

    Args:
        q_pool: float32 [B, Hq, Nq, D].
        k_pool: float32 [B, Hk, Nk, D]; Hk divides Hq.
        kept: bit rows of blocks that are always selected, int32 [B or 1, Hq or 1, Nq, words].
        least: blocks that every row gets at least.
        cdf_p: share of mass of softmax(scale * score) that the selected blocks have at least, 0 for
            no such rule.
        width: R, which bounds the number of blocks of a row.
        scale: factor of the scores.

    Returns:
        int32 indices [B, Hq, Nq, R], ascending, then -1; and int32 counts [B, Hq, Nq].

    Raises:
        UserError: means or a number of key blocks that the kernel does not serve.
    """
    if k_pool.shape[2] > MAX_KEY_BLOCKS:
        raise UserError(
            "too many key blocks for the selection kernel",
            received=k_pool.shape[2],
            expected=f"at most {MAX_KEY_BLOCKS}",
            remedy='use larger key blocks, or backend="reference"',
        )
    _check(q_pool, k_pool)
    q_pool, k_pool = q_pool.float().contiguous(), k_pool.float().contiguous()
    return choose(q_pool, k_pool, kept, least, cdf_p, width, scale)


def csr(indices: Tensor, counts: Tensor, num_key_blocks: int) -> tuple[Tensor, Tensor]:
    """Lists per key block: ``row_pointers`` and ``query_blocks`` of :meth:`BlockIndex.csr`."""
    row_pointers, query_blocks, _ = lists_per_key(indices, counts, num_key_blocks)
    return row_pointers, query_blocks


def _check(*tensors: Tensor) -> None:
    dtype, dim = tensors[0].dtype, tensors[0].shape[-1]
    typed = dtype in (torch.bfloat16, torch.float16, torch.float32)
    if not typed or dim & (dim - 1) or not 16 <= dim <= 256:
        raise UserError(
            "the GPU kernels do not serve these tensors",
            received=f"{dtype}, head size {dim}",
            expected="bfloat16, float16 or float32, head size 16, 32, 64, 128 or 256",
            remedy='cast or pad them, or use backend="reference"',
        )
    if any(x.stride(-1) != 1 for x in tensors):
        raise UserError(
            "the GPU kernels read heads whose values are contiguous",
            received=", ".join(f"strides {x.stride()}" for x in tensors),
            expected="a last stride of 1",
            remedy="call .contiguous()",
        )


def _call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor,
    counts: Tensor,
    q_offsets: Tensor,
    k_offsets: Tensor,
    scale: float,
    block_q: int | None,
    block_k: int | None,
) -> Call:
    _check(q, k, v)
    if block_q is None:
        block_q = int(q_offsets.diff().max())
    if block_k is None:
        block_k = int(k_offsets.diff().max())
    keys = Blocks(k_offsets, k.shape[2], block_k)
    return Call(
        q=q,
        k=k,
        v=v,
        lists=Lists.of(indices, counts, keys.count),
        queries=Blocks(q_offsets, q.shape[2], block_q),
        keys=keys,
        scale=scale,
    )


def _kernels(backend: str, call: Call, *tensors: Tensor) -> ModuleType:
    """The module that launches the kernels of a call.

    Raises:
        UserError: unknown backend, or Gluon kernels were asked for and cannot run.
    """
    if backend not in ("auto", "gluon", "triton"):
        raise UserError(
            "unknown backend of the GPU kernels",
            received=backend,
            expected='"auto", "gluon" or "triton"',
            remedy="use auto",
        )
    if backend == "triton":
        return triton_launch
    reason = _against_gluon(call, *tensors)
    if backend == "gluon" and reason:
        raise UserError(
            "the Gluon kernels do not serve this call",
            received=reason,
            expected="a Hopper GPU, 16-bit types, head size 64 or 128, blocks of a multiple of "
            f"{BOX_ROWS} tokens, 16-byte aligned tensors and strides",
            remedy='use backend="auto"',
        )
    filled = min(blocks.fill for blocks in (call.queries, call.keys))
    if reason or (backend == "auto" and filled < MIN_FILL):
        return triton_launch
    return importlib.import_module("longtake.kernels.block_sparse.gluon_launch")


def _against_gluon(call: Call, *tensors: Tensor) -> str:
    """Why the Gluon kernels cannot run, or nothing."""
    q, blocks = call.q, (call.queries.largest, call.keys.largest)
    if not is_hopper(q.device):
        return "another device than a Hopper GPU"
    if q.dtype not in (torch.bfloat16, torch.float16) or q.shape[-1] not in (64, 128):
        return f"{q.dtype}, head size {q.shape[-1]}"
    if any(size % BOX_ROWS for size in blocks):
        return f"blocks of {blocks[0]} queries and {blocks[1]} keys"
    if q.shape[:3].numel() >= 2**31:
        return f"{q.shape[:3].numel()} queries in all heads"
    if not all(in_reach_of_tma(x) for x in tensors):
        return "tensors that TMA cannot address"
    return ""


def is_hopper(device: torch.device) -> bool:
    """Whether the device has Hopper's tensor cores: compute capability 9."""
    return torch.cuda.get_device_capability(device)[0] == 9
