"""Sums over the inputs of all matrices of a model that the runtime evaluates."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from .. import _core
from ..codec.core_errors import core_errors
from ..codec.input_correlations import are_correlated, pair_count
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
        lengths = {name: values.size for name, (values, _) in self.all().items()}
        others = self.same_inputs()
        pairs = sum(
            pair_count(n) for name, n in lengths.items() if name not in others and are_correlated(name, n)
        )
        columns = sum(lengths.values())
        return 8 * columns + 4 * pairs, 4 * columns + pairs

    def take(self, other: ModelInputSums) -> None:
        """Add the sums of ``other`` to these, and set ``other`` to zero.

        Raises :class:`BadOptionError` if ``other`` is of a model of another shape.
        """
        with core_errors(BadOptionError):
            self.core.take(other.core)

    def all(self) -> dict[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]]:
        """Return the sums of squares, float64 [1, row length], and the number of tokens, int64 [1], by
        name."""
        sums = {name: self.core.sums(*matrix) for name, matrix in self._matrices.items()}
        return {
            name: (found[0].reshape(1, -1), np.array([found[1]], np.int64))
            for name, found in sums.items()
            if found is not None
        }

    def products(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return the sums of products of pairs of columns, float32 [1, pairs], by name.

        Matrices with the same inputs appear once, under the name of the first (:meth:`same_inputs`). The
        order of pairs is that of :mod:`q4hifi.codec.input_correlations`.
        """
        others = self.same_inputs()
        products = {n: self.core.products(*m) for n, m in self._matrices.items() if n not in others}
        return {name: found[0].reshape(1, -1) for name, found in products.items() if found is not None}

    def same_inputs(self) -> dict[str, str]:
        """Return the name of the first matrix with the same inputs, for every matrix that is not the
        first."""
        first = {name: first_with_same_input(name) for name in self._matrices}
        return {name: other for name, other in first.items() if name != other and other in first}
