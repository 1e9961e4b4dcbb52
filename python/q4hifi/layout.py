"""How a Q4_HIFI tensor lies in a GGUF file: the one place where both file layouts are decided.

split (default)
    ``NAME`` holds the Q4_K base blocks, and two companions hold the outliers, both of shape
    ``[N, row_length / 256, rows...]`` in GGUF's order (fastest dimension first):
    ``NAME.outlier_index`` (I8, bytes read as unsigned) and ``NAME.outlier_residual`` (F16).
fork
    ``NAME`` holds 244-byte blocks under type id 41, which current GGUF gives to Q1_0; such a file
    is known by ``general.file_type`` = 42.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from .errors import BadOptionError
from .types import F16, Q4_HIFI, TYPES, TensorType

SPLIT, FORK = "split", "fork"
LAYOUTS = (SPLIT, FORK)

INDEX_SUFFIX = ".outlier_index"
RESIDUAL_SUFFIX = ".outlier_residual"

BASE = TYPES["Q4_K"]
INDEX = TYPES["I8"]
RESIDUAL = F16

FILE_TYPE: Mapping[str, int] = {SPLIT: 14, FORK: 42}
"""``general.file_type`` of a Q4_HIFI file: that of Q4_K_S, or the fork's own."""

KEY_VERSION = "q4_hifi.version"
KEY_LAYOUT = "q4_hifi.layout"
KEY_OUTLIERS = "q4_hifi.outliers"
KEY_COVERAGE = "q4_hifi.ffn_down_coverage"
VERSION = 1


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor as the file's table lists it; ``shape`` has the row length first."""

    name: str
    shape: tuple[int, ...]
    type: TensorType

    @property
    def n_elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of data, without padding."""
        return self.type.row_bytes(self.shape[0]) * prod(self.shape[1:])


def stored_tensors(
    name: str, shape: tuple[int, ...], kind: TensorType, outliers: int, layout: str
) -> tuple[StoredTensor, ...]:
    """What a tensor of type ``kind`` becomes in the file: itself, or its parts.

    ``shape`` has the row length first. In the split layout a Q4_HIFI tensor becomes its base and,
    where ``outliers`` > 0, the two companions, in the order in which they are written.
    """
    if kind != Q4_HIFI or layout == FORK:
        return (StoredTensor(name, shape, kind),)
    if layout != SPLIT:
        raise BadOptionError(f"unknown layout {layout!r}; choose one of {', '.join(LAYOUTS)}")
    base = StoredTensor(name, shape, BASE)
    if outliers == 0:
        return (base,)
    rows = prod(shape[1:])
    companion = (outliers, shape[0] // Q4_HIFI.block_size, rows)
    return (
        base,
        StoredTensor(name + INDEX_SUFFIX, companion, INDEX),
        StoredTensor(name + RESIDUAL_SUFFIX, companion, RESIDUAL),
    )
