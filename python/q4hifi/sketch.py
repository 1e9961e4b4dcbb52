"""Sketches of a matrix' inputs, and the directions in which these lie (``src/sketch.rs``)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from . import _core

SKETCH = _core.sketch_signs(1).size
"""Numbers of each column that a sketch has."""


def directions(sketch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return U, float32 [n_columns, n], of H ≈ U Uᵀ, by Nyström's approximation.

    ``sketch`` is H S, float32 [n_columns, n], H the mean of x xᵀ over inputs x, and S fixed signs. What
    U Uᵀ leaves of H is positive semidefinite.
    """
    return _core.sketch_directions(np.ascontiguousarray(sketch).reshape(-1)).reshape(sketch.shape)
