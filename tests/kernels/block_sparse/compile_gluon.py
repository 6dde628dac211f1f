"""Compile the Gluon kernels for Hopper without a GPU and print a JSON record of each.

    python compile_gluon.py

A process of its own: it replaces Triton's driver with one that names a GPU which is not there.
"""

import itertools
import json
import sys
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.jit import JITFunction

from longtake.kernels.block_sparse.gluon import launch
from longtake.kernels.block_sparse.index import BlockIndex, BlockPairs
from longtake.kernels.block_sparse.layout import BlockLayout


class Driver(DriverBase):
    def __init__(self) -> None:
        self.get_current_device = lambda: 0
        self.get_current_stream = lambda device=0: 0

    @classmethod
    def is_active(cls) -> bool:
        return True

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def map_python_to_cpp_type(self, kind: str) -> str:
        return kind

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        raise NotImplementedError


def main() -> None:
    triton.runtime.driver.set_active(Driver())
    run, records = JITFunction.run, []

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        if "gluon" in self.fn.__module__:
            products = kernel.asm["ptx"].count("wgmma.mma_async.sync")
            record = {"name": self.fn.__name__, "shared": kernel.metadata.shared}
            records.append(record | {"products": products})
        return kernel

    JITFunction.run = compile_only
    chip = SimpleNamespace(multi_processor_count=132)
    torch.cuda.get_device_properties = lambda device: chip
    for dim, grid in itertools.product((128, 64), ((4, 8, 8), (4, 7, 8))):
        layout = BlockLayout(grid)
        q, k = (torch.zeros((1, h, layout.num_tokens, dim), dtype=torch.bfloat16) for h in (2, 1))
        indices = torch.zeros((1, 2, layout.num_blocks, 2), dtype=torch.int32)
        index = BlockIndex(indices, torch.full_like(indices[..., 0], 2), layout.num_blocks)
        pairs = BlockPairs(index, layout.blocks(), layout.blocks())
        o, lse = launch.forward(q, k, k, pairs, 0.1)
        launch.backward(q, q, k, k, o, lse, None, pairs, 0.1)
    sys.stdout.write(json.dumps(records))


if __name__ == "__main__":
    main()
