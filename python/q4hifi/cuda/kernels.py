"""Names, launch sizes and source of the kernels. Nothing in this module needs a GPU."""

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
"""Types with a dot product of quantized weights. The others are dequantized before a product."""

COLUMNS = range(1, 9)
"""Numbers of columns of activations for which the dot product of quantized weights is used."""

BLOCK, WEIGHTS, Q8, SHARES = 256, 8, 32, 8
"""Weights per block, weights that a thread writes, activations per block of Q8_1, lanes per block."""

ENOUGH_WARPS = 8448
"""Number of warps that fills a GPU: twice what the 132 SMs of an H100 hold at 32 warps each."""

ENOUGH_TURNS = 3
"""Turns of its loop after which a warp's start and end no longer matter for the time."""

FLOATS = {"float32": "float", "float16": "Half"}
"""Name of an array's dtype -> type in the kernels."""


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel, as a C++ expression, with the sizes of its launch. ``grid`` is one-dimensional."""

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
    """Return the launch that dequantizes a number of ``weights`` to ``dtype``."""
    threads = constant("DEQUANTIZE_THREADS")
    kernel = f"dequantize<{device_type(form)}, {FLOATS[dtype]}>"
    return Launch(kernel, -(-weights // WEIGHTS // threads), (threads, 1, 1))


def quantize_q8_1(activations: int, dtype: str) -> Launch:
    """Return the launch that quantizes a number of ``activations``, a multiple of 32, of ``dtype``."""
    threads = constant("QUANTIZE_THREADS")
    return Launch(f"quantize_q8_1<{FLOATS[dtype]}>", -(-activations // threads), (threads, 1, 1))


def matvec(form: Format, rows: int, row_length: int, columns: int) -> Launch:
    """Return the launch that multiplies ``rows`` of ``row_length`` by 1 to 8 columns of activations.

    A thread block has four warps, of which 1, 2 or 4 share a row. The more warps share a row, the more evenly
    the work ends on the whole GPU. But each warp should have enough turns of its loop. If there are too few
    warps for the GPU, as many as possible share a row.
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
    """Return the launch that multiplies ``rows`` by any number of columns with tensor cores."""
    tiles = -(-rows // constant("MATMUL_ROWS")) * -(-columns // constant("MATMUL_COLUMNS"))
    return Launch(f"matmul<{device_type(form)}>", tiles, (constant("MATMUL_THREADS"), 1, 1))


def every_kernel() -> tuple[str, ...]:
    """Return the names of all kernels that the functions above can return."""
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
    """Return the source of all kernels as one text with the includes inserted, as NVRTC takes it."""
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
    """Return the value of a constant in the source. Raises KeyError if there is none."""
    found = re.search(rf"constexpr int {name} = (\d+);", source())
    if found is None:
        raise KeyError(name)
    return int(found[1])
