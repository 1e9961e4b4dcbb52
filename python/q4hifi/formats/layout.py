"""The two layouts in which a GGUF file stores a Q4_HIFI tensor. All code takes them from here.

split (default)
    The tensor ``NAME`` holds Q4_K blocks. Two companion tensors hold the N outliers of each block:
    ``NAME.outlier_index`` (I8, to be read as unsigned bytes) and ``NAME.outlier_residual`` (F16). Both have
    the shape ``[N, row_length / 256, rows...]`` in GGUF's order, fastest dimension first.
fork
    The tensor ``NAME`` holds blocks of 244 bytes. Its type id is 41, which current GGUF uses for Q1_0, so
    such a file is recognised by ``general.file_type`` = 42.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from .gguf_constants import LlamaFileType
from .types import F16, Q4_HIFI, TYPES, TensorType

SPLIT, FORK = "split", "fork"
LAYOUTS = (SPLIT, FORK)

INDEX_SUFFIX = ".outlier_index"
RESIDUAL_SUFFIX = ".outlier_residual"

BASE = TYPES["Q4_K"]
INDEX = TYPES["I8"]
RESIDUAL = F16
"""Types of the base tensor and of its companions in the split layout."""

FILE_TYPE: Mapping[str, int] = {SPLIT: LlamaFileType.MOSTLY_Q4_K_S.value, FORK: 42}
"""Layout -> ``general.file_type`` of a Q4_HIFI file: that of Q4_K_S, or the fork's own."""

KEY_VERSION = "q4_hifi.version"
KEY_LAYOUT = "q4_hifi.layout"
KEY_OUTLIERS = "q4_hifi.outliers"
KEY_COVERAGE = "q4_hifi.ffn_down_coverage"
KEYS = (KEY_VERSION, KEY_LAYOUT, KEY_OUTLIERS, KEY_COVERAGE)
"""Metadata keys of a Q4_HIFI file."""

VERSION = 1
"""Version of the Q4_HIFI format; a reader refuses a larger one."""

MAX_NAME_BYTES = 63
"""The longest tensor name that ggml reads, in bytes: it keeps names in 64 bytes, with a final zero."""

MAX_ELEMENTS = (1 << 60) - 1
"""The largest product of a tensor's dimensions, zeros left out. Eight bytes per element stay addressable."""

FORK_COUNT_OFFSET = 240
"""Offset in a block of the fork layout of the byte that holds the block's number of outliers."""


def padded(size: int, alignment: int) -> int:
    """Return ``size`` rounded up to a multiple of ``alignment``."""
    return -(-size // alignment) * alignment


@dataclass(frozen=True, slots=True)
class ShapedTensor:
    """A tensor's name and shape; ``shape`` has the row length first.

    The shape of a single value is (). A tensor with a 0 in its shape has no elements.
    """

    name: str
    shape: tuple[int, ...]

    @property
    def row_length(self) -> int:
        """Weights per row: the first dimension, or 1 for a single value."""
        return self.shape[0] if self.shape else 1

    @property
    def n_rows(self) -> int:
        """Number of rows: the product of all dimensions but the first."""
        return prod(self.shape[1:])

    @property
    def n_elements(self) -> int:
        """Number of weights."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class StoredTensor(ShapedTensor):
    """One tensor as a file's header lists it; ``shape`` has the row length first."""

    type: TensorType

    @property
    def row_bytes(self) -> int:
        """Bytes per row."""
        return self.type.row_bytes(self.row_length)

    @property
    def format(self) -> Format:
        """How this tensor's own rows are stored; the base of a Q4_HIFI tensor is Q4_K here."""
        return Format(self.type)

    @property
    def nbytes(self) -> int:
        """Bytes of data, without padding."""
        return self.row_bytes * self.n_rows


@dataclass(frozen=True, slots=True)
class Format:
    """How the rows of a tensor are stored.

    ``outliers`` is the number of outliers per block of 256 weights, and ``layout`` is "split" or "fork". Both
    matter only for Q4_HIFI; other types keep the defaults.

    Examples
    --------
    >>> import numpy as np, q4hifi
    >>> form = q4hifi.quantize(np.ones((2, 512), np.float32), "Q4_HIFI", outliers=8).format
    >>> form.type.name, form.outliers, form.layout
    ('Q4_HIFI', 8, 'split')
    >>> form.part_row_bytes(512)  # of Q4_K blocks, outlier indices and residuals
    (288, 16, 32)
    """

    type: TensorType
    outliers: int = 0
    layout: str = SPLIT

    @property
    def is_fork(self) -> bool:
        """Whether the rows consist of the fork layout's blocks of 244 bytes."""
        return self.type == Q4_HIFI and self.layout == FORK

    @property
    def is_split(self) -> bool:
        """Whether the rows have companion tensors, which hold their outliers."""
        return self.type == Q4_HIFI and self.layout == SPLIT and self.outliers > 0

    @property
    def takes_feedback(self) -> bool:
        """Whether refined rows can be encoded with error feedback: those of all blocks but the fork's."""
        return self.type.quantized and not self.is_fork

    def stored(self, name: str, shape: tuple[int, ...]) -> tuple[StoredTensor, ...]:
        """Return the tensors that store a tensor of this format in a file, in the order of writing.

        These are one tensor, or for Q4_HIFI in the split layout the base and its two companions. ``shape``
        has the row length first.
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
        """Return whether a tensor called ``name`` can have this format.

        It cannot where the name, or that of a companion, is longer than :data:`MAX_NAME_BYTES`.
        """
        longest = name + RESIDUAL_SUFFIX if self.is_split else name
        return len(longest.encode("utf-8", "surrogateescape")) <= MAX_NAME_BYTES

    def part_row_bytes(self, row_length: int) -> tuple[int, ...]:
        """Return the bytes per row of each stored tensor, for rows of ``row_length`` weights."""
        return tuple(part.nbytes for part in self.stored("", (row_length, 1)))
