"""Tensor types and file types: names, ids and block sizes.

The names and ids are ggml's, read from the tables of the ``gguf`` package so that there is one
source for them. This module adds which of them q4hifi can encode and decode, and its own type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from ..errors import BadOptionError
from .gguf_constants import GGML_QUANT_SIZES, GGMLQuantizationType

MAX_OUTLIERS = 32
"""The most outliers that a 256-weight block of Q4_HIFI can hold."""


@dataclass(frozen=True, slots=True)
class TensorType:
    """How the rows of a tensor are stored.

    ``block_size`` is in weights, ``block_bytes`` in bytes. The Rust core encodes and decodes a type with
    ``codec``. A type that is only ``decodable`` is decoded by the ``gguf`` package, which is slower.
    All other types can only be copied.
    """

    name: str
    id: int
    block_size: int
    block_bytes: int
    codec: bool = False
    decodable: bool = False

    @property
    def quantized(self) -> bool:
        """Whether the type stores blocks (True) or single numbers (False)."""
        return self.block_size > 1

    @property
    def bits_per_weight(self) -> float:
        """Bits of storage a weight."""
        return 8 * self.block_bytes / self.block_size

    def row_bytes(self, row_length: int) -> int:
        """Bytes of one row of ``row_length`` weights, which ``block_size`` must divide."""
        return row_length // self.block_size * self.block_bytes

    def __str__(self) -> str:
        return self.name


CODEC_TYPES = (
    *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ4_NL", "IQ4_XS"),
)
"""Names of the ggml types that the Rust core encodes and decodes (equal to ``_core``'s by test)."""

GGUF_DECODED_TYPES = (
    *("MXFP4", "NVFP4", "TQ1_0", "TQ2_0"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"),
)
"""Names of the other types that ``gguf.quants.dequantize`` decodes (equal to the package's by test)."""

STORED_TYPES: Mapping[int, TensorType] = {
    int(t): TensorType(
        t.name, int(t), size, nbytes, t.name in CODEC_TYPES, t.name in CODEC_TYPES + GGUF_DECODED_TYPES
    )
    for t, (size, nbytes) in GGML_QUANT_SIZES.items()
    for t in [GGMLQuantizationType(t)]
}
"""GGUF type id -> type, for every type a GGUF file may hold."""

Q4_HIFI = TensorType("Q4_HIFI", 41, 256, 244, codec=True, decodable=True)
"""q4hifi's own type. Its id and block bytes are those of the fork layout; in the split layout it is
stored as Q4_K with two companion tensors (see :mod:`q4hifi.formats.layout`)."""

TYPES: Mapping[str, TensorType] = {t.name: t for t in STORED_TYPES.values()} | {"Q4_HIFI": Q4_HIFI}
"""Upper-case name -> type: ggml's and Q4_HIFI."""

F32, F16, BF16 = TYPES["F32"], TYPES["F16"], TYPES["BF16"]


def tensor_type(name: str | TensorType, *, codec: bool = True) -> TensorType:
    """Return the type called ``name`` in any case; with ``codec``, only a type that q4hifi can encode.

    Raises :class:`BadOptionError` for an unknown name.
    """
    found = name if isinstance(name, TensorType) else TYPES.get(name.strip().upper())
    if found is None or (codec and not found.codec):
        known, wrong = [t.name for t in TYPES.values() if t.codec], str(name).strip().upper()
        close = [] if found else get_close_matches(wrong, known, n=1) or get_close_matches(wrong, TYPES, n=1)
        hint = f"did you mean {close[0]}? Or " if close else ""
        raise BadOptionError(f"unknown tensor type {str(name)!r}; {hint}choose one of {', '.join(known)}")
    return found
