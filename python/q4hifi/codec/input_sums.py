"""Sums over the inputs of a tensor's matrices, of which importance matrices are made: :class:`InputSums`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .. import _core
from ..errors import BadOptionError
from ..threads import thread_count
from ..wording import counted
from .core_errors import core_errors
from .input_correlations import pair_count


class InputSums:
    """Sums over the input vectors x of one matrix, or of several, as the experts of a layer are.

    Attributes: ``row_length``, the number of columns; ``n_matrices``; ``n_products``, the number of sums of
    products.
    """

    def __init__(
        self, row_length: int, n_matrices: int = 1, n_products: int = 1, *, threads: int | None = None
    ) -> None:
        """Begin with zeros.

        ``n_products``: 0 sums no products, 1 sums those of all matrices together, ``n_matrices`` those of
        each by itself. Products take row_length² / 2 floats for rows of up to 2048 columns, and at most 1024
        floats per column for longer ones. ``threads`` is the number of threads that :meth:`add` uses; None or
        0 is one per core. Raises :class:`BadOptionError` for sizes below 1 and for another ``n_products``.
        """
        self.row_length, self.n_matrices, self.n_products = row_length, n_matrices, n_products
        self._threads = threads
        with core_errors(BadOptionError):
            self._core = _core.InputSums(row_length, n_matrices, n_products)

    def add(self, rows: npt.NDArray[np.float32], matrices: npt.ArrayLike | None = None) -> None:
        """Add input vectors, float32 [n_rows, row_length].

        ``matrices``, integers [n_rows] or [n_rows, n], are the indices of the matrices that each row goes to:
        the experts of a token. None means the only matrix; -1 means no matrix. Raises :class:`BadOptionError`
        if shapes do not fit, or there is no such matrix.
        """
        if rows.ndim != 2 or rows.shape[1] != self.row_length:
            raise BadOptionError(f"inputs must have the shape [n, {self.row_length}], not {rows.shape}")
        if matrices is None:
            if self.n_matrices != 1:
                raise BadOptionError(f"`matrices` is missing: the inputs go to {self.n_matrices} matrices")
            matrices = np.zeros(len(rows), np.int32)
        indices = np.ascontiguousarray(matrices, np.int32)
        if indices.ndim not in (1, 2) or len(indices) != len(rows):
            raise BadOptionError(
                f"`matrices` has the shape {indices.shape}, but the inputs have {counted(len(rows), 'row')}"
            )
        flat = np.ascontiguousarray(rows, np.float32).reshape(-1)
        with core_errors(BadOptionError):
            self._core.add(flat, indices.reshape(-1), thread_count(self._threads))

    def take(self, other: InputSums) -> None:
        """Add the sums of ``other`` to these, and set ``other`` to zero.

        Raises :class:`BadOptionError` if ``other`` has another shape.
        """
        with core_errors(BadOptionError):
            self._core.take(other._core)

    def empty(self) -> InputSums:
        """Return zeros of the same shape."""
        return InputSums(self.row_length, self.n_matrices, self.n_products, threads=self._threads)

    @property
    def squares(self) -> npt.NDArray[np.float64]:
        """Σ x_i² of each column, float64 [n_matrices, row_length]."""
        return self._core.squares().reshape(self.n_matrices, self.row_length)

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """The number of vectors that each matrix received, int64 [n_matrices]."""
        return self._core.counts().astype(np.int64)

    @property
    def products(self) -> npt.NDArray[np.float32]:
        """Σ x_i x_j of pairs of columns, float32 [n_products, pairs].

        The order of pairs is that of :mod:`q4hifi.codec.input_correlations`. A vector that goes to several
        matrices counts once for each.
        """
        sums = np.empty((self.n_products, pair_count(self.row_length)), np.float32)
        for i in range(self.n_products):
            sums[i] = self._core.products(i)
        return sums
