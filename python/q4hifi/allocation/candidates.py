"""Which formats a matrix may take when measured coverage chooses: a table, cheapest first."""

from __future__ import annotations

from ..formats.layout import Format
from ..formats.types import F16, Q4_HIFI, TYPES, TensorType

STOCK = ("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
"""Types of rows that 256 divides; stock llama.cpp loads them all. What is not here has more error than
one of them at no fewer bits: the types of 32, which have a 16-bit scale for every 32 weights."""

STOCK_OF_32 = ("Q4_0", "IQ4_NL", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
"""Types of rows that only 32 divides."""

OUTLIERS = (4, 8, 16, 32)
"""Of Q4_HIFI, a block: 4.875, 5.25, 6 and 7.5 bits a weight."""

PROBES: tuple[TensorType, ...] = (TYPES["Q4_K"], TYPES["Q4_0"])
"""By which of them it is found out what errors do to a matrix: the first whose blocks divide its rows."""


def candidates(row_length: int, *, stock: bool, layout: str) -> tuple[Format, ...]:
    """Return the formats that rows of that length can take, F16 where no type of blocks fits.

    Without ``stock`` Q4_HIFI is among them, in ``layout``.
    """
    names = STOCK if row_length % Q4_HIFI.block_size == 0 else STOCK_OF_32
    kinds = [TYPES[name] for name in names if TYPES[name].codec]
    formats = [Format(kind) for kind in kinds if row_length % kind.block_size == 0]
    if not stock and row_length % Q4_HIFI.block_size == 0:
        formats += [Format(Q4_HIFI, outliers, layout) for outliers in OUTLIERS]
    return tuple(formats) or (Format(F16),)


def probe_of(row_length: int) -> TensorType | None:
    """Return the first of :data:`PROBES` that rows of that length can take, if there is one."""
    return next((kind for kind in PROBES if row_length % kind.block_size == 0), None)
