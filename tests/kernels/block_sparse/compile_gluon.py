"""Compile the Gluon kernels for Hopper without a GPU and print a JSON record of each.

    python compile_gluon.py

A process of its own: it replaces Triton's driver with one that names a GPU which is not there.

The records name factors of products that ptxas lost: version 12.8 can give the registers of a
factor that a loop reads again and again to a factor that the loop computes. PTX and machine code
list products in the same order, so each factor in registers that PTX never writes inside a loop
must be left alone by the machine code of that loop too.
"""

import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
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

PTX_PRODUCT = re.compile(r"wgmma\.mma_async\S* \{[^}]*\}, (?:\{([^}]*)\})?")
PTX_RESULT = re.compile(r"\s*(?:@\S+ )?\S+\s+(?:\{ ?)?(%r\d+(?:, ?%r\d+)*)")
INSTRUCTION = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\d+ )?(.*?);")
WITHOUT_RESULT = ("ST", "BAR", "SYNCS", "UTMA", "ISETP", "FSETP", "R2UR", "RED", "HGMMA")


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


def disassembled(kernel: Any) -> str:
    """Machine code of a compiled kernel; the program that shows it comes with Triton."""
    program = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        return subprocess.check_output([program, "-sass", file.name], text=True)


def lost_factors(ptx: str, sass: str) -> list[str]:
    """Addresses of products whose unchanging factor is overwritten in their loop."""
    lines, products, written = ptx.splitlines(), [], {}
    for number, line in enumerate(lines):
        if product := PTX_PRODUCT.search(line):
            products.append((number, re.findall(r"%r\d+", product[1] or "")))
        elif (result := PTX_RESULT.match(line)) and not line.lstrip().startswith(("st.", "//")):
            for register in re.findall(r"%r\d+", result[1]):
                written.setdefault(register, []).append(number)
    labels = {line.split(":")[0]: n for n, line in enumerate(lines) if line.startswith("$L")}
    ends = [(re.search(r"\bbra\S*\s+(\$L\w+);", line), n) for n, line in enumerate(lines)]
    loops = [(labels[end[1]], n) for end, n in ends if end and labels[end[1]] < n]

    found = [INSTRUCTION.match(line) for line in sass.splitlines()]
    code = [(int(x[1], 16), x[2]) for x in found if x]
    in_code = [at for at, (_, text) in enumerate(code) if text.startswith("HGMMA")]
    assert len(in_code) == len(products)
    lost = []
    for at, (number, factor) in zip(in_code, products, strict=True):
        around = [loop for loop in loops if loop[0] < number < loop[1]]
        fixed = around and not any(
            first < n < last for r in factor for n in written[r] for first, last in around
        )
        if factor and fixed:
            start = int(re.search(r" R\d+, R(\d+)", code[at][1])[1])
            registers = set(range(start, start + 4))
            if any(registers & results for results in _results(code, at)):
                lost.append(f"{code[at][0]:x}")
    return lost


def _results(code: list[tuple[int, str]], at: int) -> Iterator[set[int]]:
    """Registers that the instructions of the loops around one instruction write."""
    places = {address: n for n, (address, _) in enumerate(code)}
    for end, (_, text) in enumerate(code):
        jump = re.match(r"BRA\S* (?:\S+, )?0x([0-9a-f]+)", text)
        if jump and places.get(int(jump[1], 16), end) < at < end:
            for _, other in code[places[int(jump[1], 16)] : end]:
                name, _, operands = other.partition(" ")
                target = re.match(r"R(\d+)", operands)
                if target and not name.startswith(WITHOUT_RESULT):
                    wide = 4 if ".128" in name else 2 if re.search(r"64|WIDE|CS2R", name) else 1
                    yield set(range(int(target[1]), int(target[1]) + wide))


def main() -> None:
    triton.runtime.driver.set_active(Driver())
    run, records = JITFunction.run, []

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        if "gluon" in self.fn.__module__:
            products = kernel.asm["ptx"].count("wgmma.mma_async.sync")
            record = {"name": self.fn.__name__, "shared": kernel.metadata.shared}
            lost = lost_factors(kernel.asm["ptx"], disassembled(kernel))
            records.append(record | {"products": products, "lost": lost})
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
