"""Sums over the inputs of a model's matrices, from which importance matrices are made."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from .. import _core
from ..codec.core_errors import core_errors
from ..errors import BadOptionError
from ..formats.tensor_names import EMBEDDINGS, first_with_same_input, is_tied


class InputSums:
    """For every matrix: sums of its inputs' squares and products, over all evaluated tokens."""

    def __init__(self, core: _core.Collector, places: Mapping[str, tuple[str, int | None]]) -> None:
        """Use :meth:`Model.input_sums`."""
        self.core = core
        self._places = dict(places)
        if is_tied(places):
            self._places[EMBEDDINGS] = ("output", None)

    def take(self, other: InputSums) -> None:
        """Add the sums of ``other`` to these, and set ``other`` to zero.

        Raises :class:`BadOptionError` if ``other`` is of a model of another shape.
        """
        with core_errors(BadOptionError):
            self.core.take(other.core)

    def of(self, name: str) -> tuple[npt.NDArray[np.float64], int] | None:
        """Return a matrix' sums of squares, float64 [row length], and the number of tokens.

        None for a name that is not a matrix of the model.
        """
        place = self._places.get(name)
        return self.core.sums(*place) if place else None

    def products(self) -> dict[str, tuple[npt.NDArray[np.float32], int]]:
        """Return the sums of products of pairs of inputs, float32 [pairs], and the tokens, by matrix name.

        Matrices with the same inputs appear once, under the name of the first
        (:data:`~q4hifi.formats.tensor_names.SAME_INPUT`). The order of pairs is that of
        :mod:`q4hifi.codec.input_correlations`.
        """
        found = {}
        for name, place in self._places.items():
            if first_with_same_input(name) in self._places and first_with_same_input(name) != name:
                continue
            if (products := self.core.products(*place)) is not None:
                found[name] = products
        return found

    def all(self) -> dict[str, tuple[npt.NDArray[np.float64], int]]:
        """Return the result of :meth:`of` for all matrices, by name."""
        return {name: found for name in self._places if (found := self.of(name)) is not None}
