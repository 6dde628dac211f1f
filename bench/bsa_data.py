"""Inputs of the block-sparse benchmark, what they are worth, and how wrong results on them are."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from longtake.kernels.block_sparse import BlockIndex, BlockLayout, attention_from_index

#: Sets of inputs that calls take in turn, so that none finds its own in the cache.
INPUT_SETS = 2


def input_sets(
    layout: BlockLayout,
    kind: str,
    *,
    heads: int,
    dim: int,
    dtype: torch.dtype,
    draw: torch.Generator,
) -> list[list[Tensor]]:
    """Sets of q, k, v and output gradient in block order, [1, H, N, D].

    Kinds: "random" for independent values; "local" for queries and keys that suit each other when
    they are near; "hub" for local ones and keys of every 64th block that suit all.
    """
    device = draw.device
    shape = (1, heads, layout.num_tokens, dim)
    sets = []
    for _ in range(INPUT_SETS):
        q, k, v, do = (
            torch.randn(shape, generator=draw, device=device, dtype=dtype) for _ in range(4)
        )
        if kind != "random":
            field = smooth_field(layout, heads, dim, draw)
            q, k = q.add_(field), k.add_(field)
        if kind == "hub":
            liked = torch.randn(dim, generator=draw, device=device)
            every = (torch.arange(layout.num_blocks, device=device) % 64 == 0).float()
            share = every.repeat_interleave(layout.block_sizes(device))
            q = q.add_(liked.to(dtype))
            k = k.add_((share[:, None] * liked).to(dtype))
        sets.append([q, k, v, do])
    return sets


def smooth_field(layout: BlockLayout, heads: int, dim: int, draw: torch.Generator) -> Tensor:
    """Features [1, H, N, D] whose products fall with the distance of two tokens in the grid."""
    device = draw.device
    axes = [torch.arange(n, device=device, dtype=torch.float32) for n in layout.grid]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2)
    points = layout.to_block(points, 0)
    waves = torch.randn((heads, 3, dim), generator=draw, device=device) / 8
    shifts = torch.rand((heads, 1, dim), generator=draw, device=device) * 2 * math.pi
    field = torch.empty((1, heads, len(points), dim), device=device, dtype=torch.bfloat16)
    for head in range(heads):
        field[0, head] = (points @ waves[head] + shifts[head]).cos() * math.sqrt(2)
    return field


def useful_flops(index: BlockIndex, layout: BlockLayout, dim: int) -> float:
    """Floating point operations of the forward on the selected token pairs alone."""
    sizes = layout.block_sizes(index.device).double()
    listed = index.indices
    keys = torch.where(listed >= 0, sizes[listed.clamp(min=0).long()], 0.0).sum(-1)
    return float((keys * sizes).sum()) * 4 * dim


def with_gradients(
    forward: Callable[..., Any], sets: list[list[Tensor]]
) -> Callable[[int], tuple[Tensor, ...]]:
    """Forward and backward as one call on a set of inputs."""

    def step(number: int) -> tuple[Tensor, ...]:
        *inputs, do = sets[number]
        inputs = [x.detach().requires_grad_() for x in inputs]
        o = forward(*inputs)
        return o.detach(), *torch.autograd.grad(o, inputs, do)

    return step


def sampled_errors(
    results: tuple[Tensor, ...], tensors: list[Tensor], index: BlockIndex, layout: BlockLayout
) -> dict[str, float]:
    """Relative errors against float64 on a sample: one key block and all that attend to it.

    ``output`` and ``dq`` are compared over the query blocks that attend to the key block, ``dk``
    and ``dv`` over the key block, all in the last head; ``tensors`` are q, k, v and the gradient of
    the output.
    """
    lists, counts = index.indices[:, -1:], index.counts[:, -1:]
    target = int(lists[0, 0, 0, 0])
    # The reference has no other query blocks to work on: a whole head would take minutes.
    attending = (lists == target).any(-1)
    sample = BlockIndex(
        torch.where(attending[..., None], lists, -1),
        torch.where(attending, counts, 0),
        index.num_key_blocks,
    )
    *inputs, do = (x[:, -1:].double() for x in tensors)
    inputs = [x.requires_grad_() for x in inputs]
    o = attention_from_index(*inputs, sample, layout, layout, layout="block", backend="reference")
    exact = o.detach(), *torch.autograd.grad(o, inputs, do)
    sizes = layout.block_sizes(do.device)
    rows = attending[0, 0].repeat_interleave(sizes)
    keys = (torch.arange(len(sizes), device=do.device) == target).repeat_interleave(sizes)
    errors = {}
    for name, ours, truth in zip(("output", "dq", "dk", "dv"), results, exact, strict=True):
        where = rows if name in ("output", "dq") else keys
        difference = ours[0, -1, where].double() - truth[0, 0, where]
        errors[name] = float(difference.norm() / truth[0, 0, where].norm())
    return errors
