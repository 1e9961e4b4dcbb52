"""How Q4_HIFI depends on the size of a model: outliers per block, covered layers, and size of the file."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from ..errors import BadOptionError

BILLION = 1_000_000_000


@dataclass(frozen=True, slots=True)
class SizeClass:
    """How the recipe Q4_HIFI treats models of one size.

    ``outliers`` is the number of outliers per block of 256 weights. A coverage is a share of the layers, from
    0 to 1: in that share, beginning with the first layer, the tensors of the role become Q4_HIFI.
    """

    outliers: int
    ffn_down_coverage: float
    attn_v_coverage: float = 1.0


SIZE_CLASSES: tuple[tuple[float, SizeClass], ...] = (
    (3 * BILLION, SizeClass(8, 0.50)),
    (10 * BILLION, SizeClass(10, 0.50)),
    (30 * BILLION, SizeClass(10, 0.25)),
    (70 * BILLION, SizeClass(12, 0.25)),
    (inf, SizeClass(16, 0.0)),
)
"""(largest number of parameters, inclusive; size class). The first row that a model fits into applies."""

OVERHEADS: tuple[tuple[float, float], ...] = (
    (3 * BILLION, 0.06),
    (30 * BILLION, 0.05),
    (70 * BILLION, 0.03),
    (inf, 0.015),
)
"""(largest number of parameters, inclusive; overhead): with measured coverage a file may exceed the size that
the recipe Q4_K_S gives by this share. The first row that a model fits into applies."""

MINIMAL = SizeClass(16, 0.0, 0.25)
"""The size class of the option ``minimal``."""

MINIMAL_ABOVE = 100 * BILLION
"""The option ``minimal`` needs a model with more parameters than this."""


def overhead_for(n_params: int) -> float:
    """Return the share by which a file of measured coverage may exceed the size that Q4_K_S gives."""
    return next(overhead for limit, overhead in OVERHEADS if n_params <= limit)


def size_class_for(n_params: int, *, minimal: bool = False) -> SizeClass:
    """Return the size class of a model with ``n_params`` weights in total, or :data:`MINIMAL` if ``minimal``.

    Raises :class:`BadOptionError` for ``minimal`` and a model that is not larger than 100 B.
    """
    if not minimal:
        return next(found for limit, found in SIZE_CLASSES if n_params <= limit)
    if n_params <= MINIMAL_ABOVE:
        raise BadOptionError(
            f"`minimal` is for models above {MINIMAL_ABOVE // BILLION} B parameters, but this model has "
            f"{n_params / BILLION:.3g} B; leave it out"
        )
    return MINIMAL
