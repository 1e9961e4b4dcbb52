"""Correlations between the inputs of a matrix, for error feedback (GPTQ; QuIP's LDLQ).

Over the inputs x of a matrix, the Hessian is H = E[x xᵀ]. The importance matrix holds its diagonal. Off the
diagonal, the correlation of columns i and j is H_ij / √(H_ii H_jj). It is stored as int8, where 127 is a
correlation of 1. Only columns of one group have correlations; a group has at most 2048 columns, so that
memory grows linearly with the row length. The order is: groups in order, then pairs (i, j) with i < j, sorted
by i, then by j.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .. import _core
from ..errors import BadFileError
from ..formats.tensor_names import role_of
from .core_errors import core_errors

Floats = npt.NDArray[np.float32]
Correlations = npt.NDArray[np.int8]

Hessian = _core.Inputs
"""Importance and correlations of a matrix's inputs, prepared for the encoder by :func:`known_inputs`."""

NONE: Correlations = np.zeros(0, np.int8)
"""The correlations of inputs of which only the importance is known."""


def pair_count(row_length: int) -> int:
    """Return the number of pairs of columns that have a correlation, for rows of ``row_length`` weights."""
    return _core.correlation_pairs(row_length)


def are_correlated(name: str, row_length: int) -> bool:
    """Return whether products are summed of the inputs of a matrix, by its name and row length.

    Rows must be a multiple of 32 weights long. Long inputs of ffn_down are left out: their correlations gain
    little (``src/feedback/correlations.rs``).
    """
    return _core.are_correlated(row_length, role_of(name) == "ffn_down")


def correlations_of(products: Floats, squares: Floats) -> Correlations:
    """Return the correlations, int8 [pairs], of sums over input vectors x.

    ``products`` is Σ x_i x_j of each pair of columns, float32 [pairs]; ``squares`` is Σ x_i², float32
    [row_length]. Raises :class:`BadFileError` where the lengths do not fit together.
    """
    with core_errors(BadFileError):
        return _core.correlations_of(products, np.ascontiguousarray(squares))


def products_of(correlations: Correlations, squares: Floats) -> Floats:
    """Return the sums of products, float32 [pairs], of correlations; the inverse of :func:`correlations_of`.

    ``correlations`` is int8 [pairs], ``squares`` float32 [row_length]. Raises :class:`BadFileError` where the
    lengths do not fit together.
    """
    with core_errors(BadFileError):
        return _core.products_of(correlations, np.ascontiguousarray(squares))


class TensorInputs:
    """The inputs of a tensor's matrices, in the form that the encoder takes: :meth:`of` each matrix."""

    def __init__(
        self,
        importance: Floats,
        correlations: Correlations | None = None,
        tokens: Floats | None = None,
        *,
        threads: int = 0,
    ) -> None:
        """Prepare inputs with the importance of columns, float32 [n_matrices, row_length].

        ``correlations`` is int8 [n, pairs], measured over ``tokens`` [n]. n is 1 if the inputs of all
        matrices were taken together, or n_matrices. None means that only the importance is known.
        """
        self._importance, self._correlations, self._tokens = importance, correlations, tokens
        self._threads = threads
        self._pooled: Hessian | None = None
        self._last: tuple[int, Hessian] | None = None

    def of(self, matrix: int) -> Hessian:
        """Return the inputs of the matrix with an index. Those of the last matrix that was asked for are
        kept."""
        if self._last is None or self._last[0] != matrix:
            self._last = (matrix, self._hessian(matrix))
        return self._last[1]

    def _hessian(self, matrix: int) -> Hessian:
        importance = np.ascontiguousarray(self._importance[matrix])
        if self._correlations is None or self._tokens is None:
            return known_inputs(importance, threads=self._threads)
        if len(self._correlations) > 1 or len(self._importance) == 1:
            correlations, tokens = self._correlations[matrix], float(self._tokens[matrix])
            return known_inputs(importance, correlations, tokens, threads=self._threads)
        if self._pooled is None:  # factorized once for all matrices
            mean = self._importance.mean(axis=0, dtype=np.float64).astype(np.float32)
            tokens = float(self._tokens[0])
            self._pooled = known_inputs(mean, self._correlations[0], tokens, threads=self._threads)
        with core_errors(BadFileError):
            return self._pooled.with_importance(importance, self._threads)


def known_inputs(
    importance: Floats, correlations: Correlations = NONE, tokens: float = 0, *, threads: int = 0
) -> Hessian:
    """Prepare the importance and the correlations of inputs for :func:`q4hifi.codec.rows.encode`.

    ``importance`` is float32 [row_length], ``correlations`` int8 [pairs] or :data:`NONE`. ``tokens`` is the
    number of tokens over which the correlations were measured: the fewer, the closer to 0 they are moved.

    H is factorized, group by group. For rows of up to 2048 weights that takes row_length³ / 6 operations; for
    longer rows the operations grow linearly. Raises :class:`BadFileError` where lengths do not fit, or an
    importance is negative or not finite.
    """
    with core_errors(BadFileError):
        return _core.Inputs(np.ascontiguousarray(importance), correlations, tokens, threads)
