"""Where a calibration is kept if nothing else is said, in a module that loads quickly."""

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
    """Return where a calibration is kept if nothing else is said: beside the imatrix, or the model.

    One with a part of the imatrix has another name than one with the whole.
    """
    name = os.fspath(model if imatrix is None else imatrix)
    part = part_of_imatrix(include_weights, exclude_weights)
    return f"{name}.{crc32(part):08x}.sensitivity.json" if part else f"{name}.sensitivity.json"


def part_of_imatrix(include_weights: Sequence[str], exclude_weights: Sequence[str]) -> bytes:
    """Return what tells one part of an imatrix from another; nothing for the whole."""
    if not (include_weights or exclude_weights):
        return b""
    return repr((sorted(include_weights), sorted(exclude_weights))).encode()
