"""Limits, names and defaults that the command's options state as well, in a module that loads quickly."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from zlib import crc32

from .types import BF16, F16, F32, TYPES, TensorType

MIN_CONTEXT = 4
"""The shortest chunk that scores anything."""

LONGEST_CHUNK = 512
"""Tokens that can be followed through the layers at a time."""

FISHER_CHUNKS = 12
"""Chunks whose Fisher information is measured. Of eight it is known to some ten percent on the example model;
on larger ones single tokens have more of it."""

GGUF, DAT = "gguf", "dat"
FORMS = (GGUF, DAT)
"""Of importance matrices: the one that llama.cpp writes today, and its older one."""

DROP = "drop"
EXPORTS: Mapping[str, TensorType] = {
    DROP: TYPES["Q4_K"],
    "q5_k": TYPES["Q5_K"],
    "q6_k": TYPES["Q6_K"],
    "q8_0": TYPES["Q8_0"],
    "f16": F16,
}
"""What stock llama.cpp may get in place of a Q4_HIFI tensor: the base without its outliers, or the
decoded weights in a type that holds them well."""

DEQUANTIZED: Mapping[str, TensorType] = {"F32": F32, "F16": F16, "BF16": BF16}
"""What matrices may be decoded to."""


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
