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
KEYS = (KEY_VERSION, KEY_LAYOUT, KEY_OUTLIERS, KEY_COVERAGE)
VERSION = 1

MAX_NAME_BYTES = 63
"""The longest name of a tensor that ggml reads: it keeps names in 64 bytes, with a final zero."""

MAX_ELEMENTS = (1 << 60) - 1
"""The most weights of a tensor, sizes of 0 not counted: eight bytes each can still be addressed."""

FORK_COUNT_OFFSET = 240
"""Where a block of the fork layout says how many outliers it holds."""


def padded(size: int, alignment: int) -> int:
    """``size`` rounded up to a multiple of ``alignment``."""
    return -(-size // alignment) * alignment


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor as the file's table lists it; ``shape`` has the row length first.

    A shape () is that of a single number; with a 0 in its shape a tensor has no elements.
    """

    name: str
    shape: tuple[int, ...]
    type: TensorType

    @property
    def row_length(self) -> int:
        """Weights in a row: the first dimension."""
        return self.shape[0] if self.shape else 1

    @property
    def n_rows(self) -> int:
        """Rows: the product of the other dimensions."""
        return prod(self.shape[1:])

    @property
    def n_elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.type.row_bytes(self.row_length)

    @property
    def format(self) -> Format:
        """How its rows are stored, taken alone."""
        return Format(self.type)

    @property
    def nbytes(self) -> int:
        """Bytes of data, without padding."""
        return self.row_bytes * self.n_rows


@dataclass(frozen=True, slots=True)
class Format:
    """How the rows of a tensor are stored.

    ``outliers`` (a block) and ``layout`` tell Q4_HIFI formats apart; other types keep the defaults.
    """

    type: TensorType
    outliers: int = 0
    layout: str = SPLIT

    @property
    def is_fork(self) -> bool:
        """Whether rows are 244-byte blocks."""
        return self.type == Q4_HIFI and self.layout == FORK

    @property
    def is_split(self) -> bool:
        """Whether rows have companions."""
        return self.type == Q4_HIFI and self.layout == SPLIT and self.outliers > 0

    def stored(self, name: str, shape: tuple[int, ...]) -> tuple[StoredTensor, ...]:
        """What a tensor becomes in the file, in the order of writing: itself, or base and companions.

        ``shape`` has the row length first.
        """
        if self.is_fork or self.type != Q4_HIFI:
            return (StoredTensor(name, shape, self.type),)
        base = StoredTensor(name, shape, BASE)
        if not self.is_split:
            return (base,)
        companion = (self.outliers, shape[0] // Q4_HIFI.block_size, prod(shape[1:]))
        return (
            base,
            StoredTensor(name + INDEX_SUFFIX, companion, INDEX),
            StoredTensor(name + RESIDUAL_SUFFIX, companion, RESIDUAL),
        )

    def can_name(self, name: str) -> bool:
        """Whether a tensor called ``name`` can be stored so: its companions' names may be too long."""
        longest = name + RESIDUAL_SUFFIX if self.is_split else name
        return len(longest.encode("utf-8", "surrogateescape")) <= MAX_NAME_BYTES

    def part_row_bytes(self, row_length: int) -> tuple[int, ...]:
        """Bytes of one row in each of the stored tensors."""
        return tuple(part.nbytes for part in self.stored("", (row_length, 1)))
