"""Parameter count -> how much Q4_HIFI spends: outliers a block, and which layers it covers."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from ..errors import BadOptionError

BILLION = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Scale:
    """What Q4_HIFI spends on a model.

    ``outliers`` is per block of 256 weights; a coverage is the share of the layers, from the
    first on, whose tensors of that role become Q4_HIFI.
    """

    outliers: int
    ffn_down_coverage: float
    attn_v_coverage: float = 1.0


SCALES: tuple[tuple[float, Scale], ...] = (
    (3 * BILLION, Scale(8, 0.50)),
    (10 * BILLION, Scale(10, 0.50)),
    (30 * BILLION, Scale(10, 0.25)),
    (70 * BILLION, Scale(12, 0.25)),
    (inf, Scale(16, 0.0)),
)
"""The most parameters (inclusive) that a scale is for, and the scale."""

OVERHEADS: tuple[tuple[float, float], ...] = (
    (3 * BILLION, 0.06),
    (30 * BILLION, 0.05),
    (70 * BILLION, 0.03),
    (inf, 0.015),
)
"""The most parameters (inclusive), and how much larger than Q4_K_S's a file of measured coverage may be."""

MINIMAL = Scale(16, 0.0, 0.25)
MINIMAL_ABOVE = 100 * BILLION
"""``minimal`` is for models of more parameters than this."""


def overhead_for(n_params: int) -> float:
    """Return the share by which measured coverage may exceed the size of Q4_K_S."""
    return next(overhead for limit, overhead in OVERHEADS if n_params <= limit)


def scale_for(n_params: int, *, minimal: bool = False) -> Scale:
    """Return the scale for a model whose tensors hold ``n_params`` elements in all.

    Raises :class:`BadOptionError` where ``minimal`` is asked for a model that is not above 100 B.
    """
    if not minimal:
        return next(scale for limit, scale in SCALES if n_params <= limit)
    if n_params <= MINIMAL_ABOVE:
        raise BadOptionError(
            f"`minimal` is for models above {MINIMAL_ABOVE // BILLION} B parameters, and this one has "
            f"{n_params / BILLION:.3g} B; leave it out"
        )
    return MINIMAL
