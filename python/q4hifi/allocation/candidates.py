"""The types that a matrix may take when measured errors decide: a table, the smallest first."""

from __future__ import annotations

from ..formats.layout import Format
from ..formats.types import F16, Q4_HIFI, TYPES, TensorType

STOCK = ("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
"""Types for rows of a multiple of 256 weights; stock llama.cpp loads them all. The types with blocks of 32
are left out: they have a 16-bit scale for every 32 weights, and so more error at the same number of bits."""

STOCK_OF_32 = ("Q4_0", "IQ4_NL", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
"""Types for rows of a multiple of 32 weights, but not of 256."""

OUTLIERS = (4, 8, 16, 32)
"""Outliers per block of Q4_HIFI: 4.875, 5.25, 6 and 7.5 bits per weight."""

PROBES: tuple[TensorType, ...] = (TYPES["Q4_K"], TYPES["Q4_0"])
"""Probe types: a matrix is quantized to one of them to measure what an error in it does. The first whose
blocks divide its rows is used."""


def candidates(row_length: int, *, stock: bool, layout: str) -> tuple[Format, ...]:
    """Return the formats that rows of this length can take; F16 alone if no type of blocks fits.

    Without ``stock``, Q4_HIFI in the given ``layout`` is among them.
    """
    names = STOCK if Q4_HIFI.divides(row_length) else STOCK_OF_32
    kinds = [TYPES[name] for name in names if TYPES[name].codec]
    formats = [Format(kind) for kind in kinds if kind.divides(row_length)]
    if not stock and Q4_HIFI.divides(row_length):
        formats += [Format(Q4_HIFI, outliers, layout) for outliers in OUTLIERS]
    return tuple(formats) or (Format(F16),)


def probe_of(row_length: int) -> TensorType | None:
    """Return the probe type for rows of this length, None if none fits."""
    return next((kind for kind in PROBES if kind.divides(row_length)), None)
