"""Golden check of the block-sparse attention: recorded masks, outputs and gradients.

A file of kind ``bsa`` holds several cases, each with queries, keys and values in plain order, the
selected blocks, the output and perhaps gradients, recorded in bfloat16.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longtake.core.golden import (
    GoldenCheck,
    GoldenResult,
    compare,
    metadata_json,
    not_computed,
    require_inputs,
)
from longtake.core.weights import read_metadata, read_tensors
from longtake.kernels.block_sparse.attention import attention_from_index
from longtake.kernels.block_sparse.index import BlockIndex
from longtake.kernels.block_sparse.layout import BlockLayout
from longtake.kernels.block_sparse.pooling import pool_blocks
from longtake.kernels.block_sparse.selection import select_from_pooled
from longtake.runtime.errors import CheckpointError

#: Of outputs, relative to the largest entry where that is above 1 (measured: 3.2e-3; one rounding
#: of the recorded bfloat16 alone is 3.9e-3 of an entry).
OUTPUT_TOLERANCE = 5e-3
#: The recorded backward pass rounds scaled keys to bfloat16 as well (measured: 5.9e-3).
GRADIENT_TOLERANCE = 1e-2
GRADIENTS = {"dq": "q", "dk": "k", "dv": "v"}


def check_block_sparse(path: Path, tolerance: float | None = None) -> list[GoldenResult]:
    """Kind ``bsa``: masks up to ties, outputs and gradients of the recorded masks.

    The error of a mask is the number of query blocks whose selection differs by more than the
    order of exactly tied blocks; it has to be 0. Attention runs in float32 on the recorded
    values, so that no rounding but the recorded one enters. ``tolerance`` replaces
    :data:`OUTPUT_TOLERANCE` and :data:`GRADIENT_TOLERANCE`.
    """
    tensors, metadata = read_tensors(path), read_metadata(path)
    cases = sorted({name.split(".")[0] for name in tensors})
    results = []
    for case in cases:
        require_inputs(tensors, (f"{case}.{name}" for name in ("q", "k", "v", "block_mask")), path)
        recorded = {
            name.removeprefix(f"{case}."): tensor
            for name, tensor in tensors.items()
            if name.startswith(f"{case}.")
        }
        rule = metadata_json(metadata, case, path)
        try:
            found = _check_case(recorded, rule, tolerance)
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"the golden file's rule of the case {case} cannot be read: {error}",
                received=str(rule),
                expected="grid_q, grid_k, block_q, block_k, sparsity, cdf_threshold",
                remedy="copy the file again from its source",
            ) from error
        results += [dataclasses.replace(r, name=f"{case}.{r.name}") for r in found]
    return results


BLOCK_SPARSE_CHECKS: dict[str, GoldenCheck] = {"bsa": check_block_sparse}
"""Checks by kind, for :func:`longtake.core.golden.check_file`."""


def _check_case(
    recorded: Mapping[str, Tensor], rule: Mapping[str, Any], tolerance: float | None
) -> list[GoldenResult]:
    layout_q = BlockLayout(tuple(rule["grid_q"]), tuple(rule["block_q"]))
    layout_k = BlockLayout(tuple(rule["grid_k"]), tuple(rule["block_k"]))
    mask = recorded["block_mask"].bool()
    inputs = {name: recorded[name].float().requires_grad_() for name in "qkv"}
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    out = attention_from_index(q, k, v, BlockIndex.from_dense_mask(mask), layout_q, layout_k)
    assert isinstance(out, Tensor)
    names = [name for name in GRADIENTS if name in recorded]
    ours = {"out": out.detach()}
    if names and "do" in recorded:
        sources = [inputs[GRADIENTS[name]] for name in names]
        gradients = torch.autograd.grad(out, sources, recorded["do"].float())
        ours |= dict(zip(names, gradients, strict=True))
    differing = _rows_beyond_ties(recorded, rule, layout_q, layout_k)
    results = [GoldenResult(name="block_mask", max_abs_error=differing, tolerance=0.0)]
    for result in compare({name: recorded[name] for name in ours if name in recorded}, ours, 0.0):
        default = OUTPUT_TOLERANCE if result.name == "out" else GRADIENT_TOLERANCE
        bound = (default if tolerance is None else tolerance) * max(1.0, result.magnitude)
        results.append(dataclasses.replace(result, tolerance=bound))
    known = {"q", "k", "v", "do", "block_mask", *ours}
    return results + not_computed(recorded.keys() - known, 0.0)


def _rows_beyond_ties(
    recorded: Mapping[str, Tensor],
    rule: Mapping[str, Any],
    layout_q: BlockLayout,
    layout_k: BlockLayout,
) -> float:
    """Query blocks whose recorded and own blocks differ in more than which of the tied ones."""
    dtype = recorded["q"].dtype
    q_pool = pool_blocks(layout_q.to_block(recorded["q"], 2), layout_q).to(dtype)
    k_pool = pool_blocks(layout_k.to_block(recorded["k"], 2), layout_k).to(dtype)
    index = select_from_pooled(
        q_pool,
        k_pool,
        sparsity=rule["sparsity"],
        cdf_p=rule["cdf_threshold"],
        min_blocks=0,
        compat=True,
    )
    ranked = q_pool @ k_pool.mT
    if rule["cdf_threshold"] is not None:
        ranked = (ranked * q_pool.shape[-1] ** -0.5).softmax(-1)
    masks = index.to_dense_mask(), recorded["block_mask"].bool()
    ours, theirs = (ranked.masked_fill(~mask, -torch.inf).sort(dim=-1).values for mask in masks)
    return float((ours != theirs).any(-1).sum())
