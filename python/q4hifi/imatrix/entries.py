"""The entries of an importance matrix file, their checks, and the choice of those that are used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import BadFileError, BadOptionError, NotFiniteError

Floats = npt.NDArray[np.float32]

MAX_I32 = 2**31 - 1
"""Limit on a number of chunks, and on tokens per chunk: the older form has 32 bits for them."""


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """Where the sums of one tensor are in the file, and the token count of each of its matrices (experts)."""

    path: Path
    offset: int
    n_values: int
    counts: Floats


@dataclass(frozen=True, slots=True)
class WeightsFilter:
    """Which tensors use an importance matrix.

    With ``include``, only tensors whose names contain one of these strings. With ``exclude``, all tensors but
    those. With neither, all. The strings are plain substrings, as for ``--include-weights`` and
    ``--exclude-weights`` of llama-quantize. Raises :class:`BadOptionError` if both are given.
    """

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Check that at most one of the two is given."""
        if self.include and self.exclude:
            raise BadOptionError(
                "`include_weights` and `exclude_weights` cannot be used together; choose one"
            )

    def __contains__(self, name: str) -> bool:
        """Return whether the tensor uses the importance matrix."""
        if self.include:
            return any(part in name for part in self.include)
        return not any(part in name for part in self.exclude)


def remedy(name: str) -> str:
    """Return the end of a message about a bad entry: what the user can do."""
    return f"make the imatrix again, or leave it out with `exclude_weights={name}`"


def check_values(values: npt.NDArray[np.floating[Any]], where: str, name: str) -> None:
    """Raise an error that names the first value that is negative, infinite or NaN, if there is one."""
    for bad, error, what in (
        (~np.isfinite(values), NotFiniteError, "not finite"),
        (values < 0, BadFileError, "negative"),
    ):
        if bad.any():
            i = int(bad.argmax())
            raise error(f"{where}: value {i} is {what} ({values[i]}); {remedy(name)}")


def checked_count(value: object, where: str) -> int:
    """Return a number of chunks, or of tokens per chunk. Raises :class:`BadFileError` if it cannot be one."""
    if not isinstance(value, int) or not 0 <= value <= MAX_I32:
        raise BadFileError(f"{where} is {value}, but must be a whole number from 0 to {MAX_I32}")
    return int(value)
