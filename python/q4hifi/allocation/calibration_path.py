"""The default name of a file of sensitivities, in a module that loads quickly for the command's help."""

from __future__ import annotations

import os
from collections.abc import Sequence
from zlib import crc32


def calibration_file(
    model: str | os.PathLike[str],
    imatrix: str | os.PathLike[str] | None,
    include_weights: Sequence[str] = (),
    exclude_weights: Sequence[str] = (),
) -> str:
    """Return the default file of a calibration: beside the imatrix, or without one, beside the model.

    A calibration that uses only a part of the imatrix has a name of its own.
    """
    name = os.fspath(model if imatrix is None else imatrix)
    part = part_of_imatrix(include_weights, exclude_weights)
    return f"{name}.{crc32(part):08x}.sensitivity.json" if part else f"{name}.sensitivity.json"


def part_of_imatrix(include_weights: Sequence[str], exclude_weights: Sequence[str]) -> bytes:
    """Return bytes that identify a part of an imatrix; none for the whole."""
    if not (include_weights or exclude_weights):
        return b""
    return repr((sorted(include_weights), sorted(exclude_weights))).encode()
