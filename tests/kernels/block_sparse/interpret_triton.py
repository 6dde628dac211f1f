"""Run the Triton kernels in Triton's interpreter and write inputs and results to a file.

    TRITON_INTERPRET=1 python interpret_triton.py FILE

A process of its own, started by test_triton_kernels.py: Triton reads the variable when it is
imported. The interpreter runs on NumPy; it has no bfloat16 products.
"""

import math
import sys
from typing import Any

import torch
from torch import Tensor

from longtake.kernels.block_sparse.index import BlockIndex, BlockPairs, pack_bits
from longtake.kernels.block_sparse.layout import BlockLayout
from longtake.kernels.block_sparse.triton import launch, select
from longtake.kernels.block_sparse.triton.lists import key_lists, wholes_first

SCALE = 0.3

ATTENTION: dict[str, dict[str, Any]] = {
    "whole blocks by TMA, float16, tokens before heads": {
        "grids": ((4, 4, 8), (4, 4, 12)),
        "block": (4, 4, 4),
        "dtype": torch.float16,
        "heads": (1, 1),
        "tma": True,
    },
    "ragged, grouped heads": {
        "grids": ((3, 3, 5), (2, 4, 5)),
        "block": (2, 2, 4),
        "dtype": torch.float32,
        "heads": (2, 1),
        "tma": False,
    },
    "blocks of two tiles": {
        "grids": ((4, 4, 5), (4, 4, 6)),
        "block": (4, 4, 4),
        "dtype": torch.float32,
        "heads": (1, 1),
        "tma": False,
    },
}


def attention(case: dict[str, Any], draw: torch.Generator) -> dict[str, Any]:
    of_q, of_k = (BlockLayout(grid, case["block"]) for grid in case["grids"])
    launch.has_tma = lambda device: case["tma"]

    def tensor(heads: int, tokens: int) -> Tensor:
        x = torch.randn((1, tokens, heads, 16), generator=draw).to(case["dtype"])
        return x.transpose(1, 2)

    (heads, key_heads), tokens = case["heads"], (of_q.num_tokens, of_k.num_tokens)
    q, k, v = tensor(heads, tokens[0]), tensor(key_heads, tokens[1]), tensor(key_heads, tokens[1])
    do, dlse = tensor(heads, tokens[0]), torch.randn((1, heads, tokens[0]), generator=draw)
    mask = torch.rand((1, heads, of_q.num_blocks, of_k.num_blocks), generator=draw) < 0.6
    mask[0, 0, 0], mask[0, :, :, 0], mask[0, -1, -1, 1] = False, False, True
    pairs = BlockPairs(BlockIndex.from_dense_mask(mask), of_q.blocks(), of_k.blocks())
    o, lse = launch.forward(q, k, v, pairs, SCALE)
    gradients = launch.backward(do, q, k, v, o, lse, dlse, pairs, SCALE)
    return {"inputs": (q, k, v, do, dlse), "pairs": pairs, "results": (o, lse, *gradients)}


RULES: dict[str, dict[str, Any]] = {
    "top-r": {"least": 5},
    "top-r with ties": {"least": 5, "round": True},
    "share of mass": {"least": 1, "cdf_p": 0.7},
    "both, with ties": {"least": 4, "cdf_p": 0.3, "round": True},
    "kept blocks": {"least": 3, "kept": True},
    "kept blocks, share of mass, cut": {"least": 2, "cdf_p": 0.8, "kept": True, "width": 9},
    "values that are not finite": {"least": 3, "broken": True},
    "infinite scores of both signs": {"least": 9, "infinite": True},
    "all scores equal": {"least": 33, "factor": 0.0},
    "large scores, most blocks": {"least": 36, "factor": 1e18},
    "small scores": {"least": 5, "factor": 1e-18},
}


def selection(rule: dict[str, Any], draw: torch.Generator) -> dict[str, Any]:
    q, k = torch.randn((1, 2, 2, 16), generator=draw), torch.randn((1, 1, 37, 16), generator=draw)
    if rule.get("round"):
        q, k = q.round(), k.round()
    if rule.get("broken"):
        k[0, 0, 3], k[0, 0, 8] = math.nan, math.inf
    if rule.get("infinite"):
        q[0, 0, 0, 2], k[0, 0, 5, 3], k[0, 0, 9, 2] = math.inf, math.inf, -math.inf
    q *= rule.get("factor", 1.0)
    kept = None
    if rule.get("kept"):
        kept = torch.rand((1, 2, 2, 37), generator=draw) < 0.1
    options = rule["least"], rule.get("cdf_p", 0.0)
    width = rule.get("width", 37 if kept is not None or "cdf_p" in rule else rule["least"])
    bits = None if kept is None else pack_bits(kept)
    run = q, k, bits, *options, width, SCALE
    return {"run": run, "results": select.select(*run)}


def pools(draw: torch.Generator) -> list[tuple[Any, Tensor, Tensor]]:
    out = []
    for grid, dtype in (((3, 5, 6), torch.float32), ((4, 4, 10), torch.bfloat16)):
        x = torch.randn((2, math.prod(grid), 3, 16), generator=draw).to(dtype).transpose(1, 2)
        layout = BlockLayout(grid, (4, 4, 4))
        x[:, :, -1] = math.nan  # of the last block only
        out.append((grid, x, select.pool(x, layout.blocks())))
    return out


def inversion(draw: torch.Generator) -> dict[str, Any]:
    layout = BlockLayout((2, 8, 10), (2, 4, 4))  # blocks of 32 and 16 tokens
    mask = torch.rand((1, 2, layout.num_blocks, 35), generator=draw) < 0.4
    mask[0, 0, 3], mask[0, 1, :, 33] = False, True
    index = BlockIndex.from_dense_mask(mask)
    pairs = BlockPairs(index, layout.blocks(), BlockLayout((1, 1, 35), (1, 1, 1)).blocks())
    plain, split = (key_lists(pairs, 1, split=split) for split in (False, True))
    keys = BlockIndex.from_dense_mask(mask[..., : layout.num_blocks])
    first = wholes_first(BlockPairs(keys, layout.blocks(), layout.blocks()))
    return {"mask": mask, "sizes": layout.block_sizes(), "plain": plain, "split": split} | {
        "keys": keys.indices,
        "first": first,
    }


def main(path: str) -> None:
    draw = torch.Generator().manual_seed(0)
    results = {
        "attention": {name: attention(case, draw) for name, case in ATTENTION.items()},
        "selection": {name: selection(rule, draw) for name, rule in RULES.items()},
        "pools": pools(draw),
        "inversion": inversion(draw),
    }
    torch.save(results, path)


if __name__ == "__main__":
    main(sys.argv[1])
