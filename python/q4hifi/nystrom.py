"""The directions in which a matrix' inputs lie, from their sketch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from . import _core

SKETCH = _core.sketch_signs(1).size
"""Numbers of each column that a sketch has."""

NOISE = 1e-6
"""Of the sketch's magnitude: what float32 sums may be wrong by, and directions are not told from."""


def nystrom(sketch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return U, float32 [n_columns, n], of H ≈ U Uᵀ, by Nyström's approximation from H S.

    ``sketch`` is H S, float32 [n_columns, n], H the mean of x xᵀ over inputs x, and S the signs of
    ``src/model/collector.rs``. What U Uᵀ leaves of H is positive semidefinite.
    """
    columns, n = sketch.shape
    wide = sketch.astype(np.float64)
    signs = _core.sketch_signs(columns).reshape(columns, n)
    core = signs.T @ wide
    core = (core + core.T) / 2 + np.eye(n) * (NOISE * np.trace(core) / n)
    values, vectors = np.linalg.eigh(core)
    kept = values > NOISE * max(values[-1], np.finfo(np.float64).tiny)
    return np.ascontiguousarray((wide @ vectors[:, kept]) / np.sqrt(values[kept]), np.float32)
