"""Correlations of a matrix' inputs, and what is known of these in all (``src/correlations.rs``).

They are of pairs of columns, in groups of at most 2048: those of the first column with the second, the third
and so on, of the second with the third and so on, in int8, 127 being a correlation of 1.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .. import _core
from ..errors import BadFileError
from .core_errors import core_errors

Floats = npt.NDArray[np.float32]
Correlations = npt.NDArray[np.int8]

Inputs = _core.Inputs
"""What an encoder can know of the inputs of rows: importances, and how columns are correlated."""

NONE: Correlations = np.zeros(0, np.int8)
"""For inputs of which only the importance is known."""


def pair_count(row_length: int) -> int:
    """Return how many pairs of columns there are of rows of that length."""
    return _core.correlation_pairs(row_length)


def correlations_of(products: Floats, squares: Floats) -> Correlations:
    """Return the correlations, from the sums of products of pairs and of squares, float32 [row length]."""
    with core_errors(BadFileError):
        return _core.correlations_of(products, np.ascontiguousarray(squares))


def products_of(correlations: Correlations, squares: Floats) -> Floats:
    """Return the sums of products, float32 [pairs], that correlations stand for."""
    with core_errors(BadFileError):
        return _core.products_of(correlations, np.ascontiguousarray(squares))


def known_inputs(
    importance: Floats, correlations: Correlations = NONE, tokens: float = 0, *, threads: int = 0
) -> Inputs:
    """Return what is known of inputs: their importance, float32 [row length], and correlations, if any.

    The fewer ``tokens`` these were seen over, the less they are believed.

    Takes (row length)³ / 6 operations for rows of up to 2048.
    """
    with core_errors(BadFileError):
        return _core.Inputs(np.ascontiguousarray(importance), correlations, tokens, threads)
