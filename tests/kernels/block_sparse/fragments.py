"""Look for factors of products that ptxas lost.

ptxas 12.8 can give the registers of a factor that a loop reads again and again to a factor that the
loop computes. PTX and machine code list products in the same order, so each factor in registers
that PTX never writes inside a loop must be left alone by the machine code of that loop too.
"""

import re
from collections.abc import Iterator

PTX_PRODUCT = re.compile(r"wgmma\.mma_async\S* \{[^}]*\}, (?:\{([^}]*)\})?")
PTX_RESULT = re.compile(r"\s*(?:@\S+ )?\S+\s+(?:\{ ?)?(%r\d+(?:, ?%r\d+)*)")
INSTRUCTION = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\d+ )?(.*?);")
WITHOUT_RESULT = ("ST", "BAR", "SYNCS", "UTMA", "ISETP", "FSETP", "R2UR", "RED", "HGMMA")


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
