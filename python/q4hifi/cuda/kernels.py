"""The kernels by name, how many threads they take, and their source: all that needs no GPU."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..formats.layout import Format
from ..formats.types import MAX_OUTLIERS

FOLDER = Path(__file__).parent
MAIN = "kernels.cu"

TYPES = ("Q4_K", "Q5_K", "Q6_K", "Q8_0", "Q4_HIFI")
"""Names of the tensor types that have kernels."""

DOT = ("Q4_K", "Q5_K", "Q6_K", "Q4_HIFI")
"""Those that are multiplied as they are; the others are dequantized for it."""

COLUMNS = range(1, 9)
"""Columns of activations that a matrix is multiplied by as it is."""

BLOCK, WEIGHTS, Q8, SHARES = 256, 8, 32, 8
"""Weights in a block, weights that a thread writes, activations in a block of Q8_1, lanes a block."""

ENOUGH_WARPS = 8448
"""Twice what the 132 SMs of an H100 hold at 32 warps each."""

ENOUGH_TURNS = 3
"""Turns of the loop that make up for a warp's beginning and end."""

FLOATS = {"float32": "float", "float16": "Half"}
"""Names of the arrays' dtypes -> the kernels' types."""


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel, as a C++ expression, and its launch; ``grid`` is one-dimensional."""

    kernel: str
    grid: int
    block: tuple[int, int, int]


def device_type(form: Format) -> str:
    """Return the C++ type of rows stored as ``form``."""
    if form.is_fork:
        return "Q4_HIFI_FORK"
    if form.is_split:
        return f"Q4_HIFI<{-(-form.outliers // SHARES)}>"
    return "Q4_K" if form.type.name == "Q4_HIFI" else form.type.name


def dequantize(form: Format, weights: int, dtype: str) -> Launch:
    """Launch that writes so many weights as ``dtype``."""
    threads = constant("DEQUANTIZE_THREADS")
    kernel = f"dequantize<{device_type(form)}, {FLOATS[dtype]}>"
    return Launch(kernel, -(-weights // WEIGHTS // threads), (threads, 1, 1))


def quantize_q8_1(activations: int, dtype: str) -> Launch:
    """Launch that quantizes so many activations, a multiple of 32, of ``dtype``."""
    threads = constant("QUANTIZE_THREADS")
    return Launch(f"quantize_q8_1<{FLOATS[dtype]}>", -(-activations // threads), (threads, 1, 1))


def matvec(form: Format, rows: int, row_length: int, columns: int) -> Launch:
    """Launch that multiplies rows by 1 to 8 columns.

    A block has four warps, of which 1, 2 or 4 share a row. The more do, the more evenly the end of the
    work is spread over the GPU; so they are as many as have enough turns each, or any, where there are not
    enough warps for the whole GPU.
    """
    warps, warp_rows = constant("MATVEC_WARPS"), constant("MATVEC_ROWS")
    groups = -(-rows // warp_rows)
    steps = row_length // BLOCK * SHARES / 32
    sharing = 1
    while sharing < warps:
        turns = 1 if sharing * groups < ENOUGH_WARPS else ENOUGH_TURNS
        if steps < 2 * sharing * turns:
            break
        sharing *= 2
    side_by_side = warps // sharing
    kernel = f"matvec<{device_type(form)}, {columns}>"
    return Launch(kernel, -(-groups // side_by_side), (32, sharing, side_by_side))


def matmul(form: Format, rows: int, columns: int) -> Launch:
    """Launch that multiplies rows by any number of columns, on tensor cores."""
    tiles = -(-rows // constant("MATMUL_ROWS")) * -(-columns // constant("MATMUL_COLUMNS"))
    return Launch(f"matmul<{device_type(form)}>", tiles, (constant("MATMUL_THREADS"), 1, 1))


def every_kernel() -> tuple[str, ...]:
    """All kernels that the functions above can name."""
    rounds = [f"Q4_HIFI<{-(-n // SHARES)}>" for n in range(SHARES, MAX_OUTLIERS + 1, SHARES)]
    dots = ["Q4_K", "Q5_K", "Q6_K", *rounds, "Q4_HIFI_FORK"]
    return (
        *(f"dequantize<{t}, {out}>" for t in [*dots, "Q8_0"] for out in FLOATS.values()),
        *(f"quantize_q8_1<{x}>" for x in FLOATS.values()),
        *(f"matvec<{t}, {c}>" for t in dots for c in COLUMNS),
        *(f"matmul<{t}>" for t in [*dots, "Q8_0"]),
    )


@cache
def source() -> str:
    """Return the source in one piece: what NVRTC, and the cache of what it made, can be given."""
    seen = {MAIN}

    def lines(name: str) -> Iterator[str]:
        yield f'#line 1 "{name}"'
        for number, line in enumerate((FOLDER / name).read_text().splitlines(), 1):
            included = re.fullmatch(r'#include "(.+)"', line)
            if included is None:
                yield "" if line == "#pragma once" else line
            elif included[1] not in seen:
                seen.add(included[1])
                yield from lines(included[1])
                yield f'#line {number + 1} "{name}"'

    return "\n".join([*lines(MAIN), ""])


@cache
def constant(name: str) -> int:
    """Return the value that the source gives to a constant."""
    found = re.search(rf"constexpr int {name} = (\d+);", source())
    if found is None:
        raise KeyError(name)
    return int(found[1])
