"""Sums over the inputs of all matrices of a model that the runtime evaluates."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from .. import _core
from ..codec.core_errors import core_errors
from ..codec.input_correlations import pair_count
from ..errors import BadOptionError
from ..formats.tensor_names import EMBEDDINGS, first_with_same_input, is_tied
from .architecture import RoleAndLayer


class ModelInputSums:
    """For every matrix: sums of its inputs' squares and products, over all evaluated tokens."""

    def __init__(self, core: _core.Collector, matrices: Mapping[str, RoleAndLayer]) -> None:
        """Use :meth:`Model.input_sums`."""
        self.core = core
        self._matrices = dict(matrices)
        if is_tied(matrices):
            self._matrices[EMBEDDINGS] = ("output", None)

    @property
    def expected_bytes(self) -> tuple[int, int]:
        """Bytes that the sums take in memory, and about as many as they take in a file."""
        shapes = {name: self.core.shape(*matrix) for name, matrix in self._matrices.items()}
        others = self.same_inputs()
        columns = pairs = 0
        for name, shape in shapes.items():
            if shape is not None:
                row_length, n_matrices, n_products = shape
                columns += row_length * n_matrices
                pairs += 0 if name in others else n_products * pair_count(row_length)
        return 8 * columns + 4 * pairs, 4 * columns + pairs

    def take(self, other: ModelInputSums) -> None:
        """Add the sums of ``other`` to these, and set ``other`` to zero.

        Raises :class:`BadOptionError` if ``other`` is of a model of another shape.
        """
        with core_errors(BadOptionError):
            self.core.take(other.core)

    def all(self) -> dict[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]]:
        """Return the sums of squares, float64 [n_matrices, row length], and the number of tokens of each
        matrix, int64 [n_matrices], by name."""
        sums = {name: self.core.sums(*matrix) for name, matrix in self._matrices.items()}
        return {
            name: (found[0].reshape(found[1].size, -1), found[1].astype(np.int64))
            for name, found in sums.items()
            if found is not None
        }

    def products(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return the sums of products of pairs of columns, float32 [n, pairs], by name.

        n is 1, or the number of experts where each has inputs of its own. Matrices with the same inputs
        appear once, under the name of the first (:meth:`same_inputs`). The order of pairs is that of
        :mod:`q4hifi.codec.input_correlations`.
        """
        others = self.same_inputs()
        found = {
            name: self._products(matrix) for name, matrix in self._matrices.items() if name not in others
        }
        return {name: products for name, products in found.items() if len(products)}

    def _products(self, matrix: RoleAndLayer) -> npt.NDArray[np.float32]:
        row_length, _, n_products = self.core.shape(*matrix) or (0, 0, 0)
        sums = np.empty((n_products, pair_count(row_length) if n_products else 0), np.float32)
        for i in range(n_products):
            sums[i] = self.core.products(*matrix, i)
        return sums

    def same_inputs(self) -> dict[str, str]:
        """Return the name of the first matrix with the same inputs, for every matrix that is not the
        first."""
        first = {name: first_with_same_input(name) for name in self._matrices}
        return {name: other for name, other in first.items() if name != other and other in first}
