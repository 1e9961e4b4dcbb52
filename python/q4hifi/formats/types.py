"""Tensor types: names, ids and block sizes, and which of them q4hifi can encode and decode.

Names, ids and sizes of ggml's types come from the ``gguf`` package. This module adds the type Q4_HIFI.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from ..errors import BadOptionError
from .gguf_constants import GGML_QUANT_SIZES, GGMLQuantizationType

MAX_OUTLIERS = 32
"""The largest number of outliers that a Q4_HIFI block of 256 weights can hold."""


@dataclass(frozen=True, slots=True)
class TensorType:
    """A tensor type: ggml's name and id, and the size of a block in weights (``block_size``) and in bytes.

    ``codec``: the Rust core encodes and decodes this type. ``decodable``: the type can be decoded, by the
    core or by the ``gguf`` package, which is slower. All other types can only be copied. ``refinable``: the
    encoder can search longer for blocks with less error than ggml's.
    """

    name: str
    id: int
    block_size: int
    block_bytes: int
    codec: bool = False
    decodable: bool = False
    refinable: bool = False

    @property
    def quantized(self) -> bool:
        """Whether the type stores blocks of several weights (True) or each weight by itself (False)."""
        return self.block_size > 1

    @property
    def bits_per_weight(self) -> float:
        """Bits of storage per weight."""
        return 8 * self.block_bytes / self.block_size

    def divides(self, row_length: int) -> bool:
        """Return whether rows of this length consist of whole blocks."""
        return row_length % self.block_size == 0

    def row_bytes(self, row_length: int) -> int:
        """Return the bytes of a row of ``row_length`` weights, a multiple of ``block_size``."""
        return row_length // self.block_size * self.block_bytes

    def __str__(self) -> str:
        return self.name


CODEC_TYPES = (
    *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ4_NL", "IQ4_XS"),
)
"""Names of the ggml types that the Rust core encodes and decodes. A test compares them with ``_core``'s."""

REFINABLE_TYPES = ("IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q4_HIFI")
"""Names of the types that can be refined. A test compares the bytes that the core encodes."""

GGUF_DECODED_TYPES = (
    *("MXFP4", "NVFP4", "TQ1_0", "TQ2_0"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"),
)
"""Names of further types that ``gguf.quants.dequantize`` decodes. A test compares them with the package's."""

STORED_TYPES: Mapping[int, TensorType] = {
    int(t): TensorType(
        t.name,
        int(t),
        size,
        nbytes,
        codec=t.name in CODEC_TYPES,
        decodable=t.name in CODEC_TYPES + GGUF_DECODED_TYPES,
        refinable=t.name in REFINABLE_TYPES,
    )
    for t, (size, nbytes) in GGML_QUANT_SIZES.items()
    for t in [GGMLQuantizationType(t)]
}
"""GGUF type id -> type, for every type of the ``gguf`` package."""

Q4_HIFI = TensorType("Q4_HIFI", 41, 256, 244, codec=True, decodable=True, refinable=True)
"""q4hifi's own type. Its id and block size are those of the fork layout. The split layout stores it as Q4_K
with two companion tensors (see :mod:`q4hifi.formats.layout`)."""

TYPES: Mapping[str, TensorType] = {t.name: t for t in STORED_TYPES.values()} | {"Q4_HIFI": Q4_HIFI}
"""Name in upper case -> type: ggml's types and Q4_HIFI."""

F32, F16, BF16 = TYPES["F32"], TYPES["F16"], TYPES["BF16"]


def tensor_type(name: str | TensorType, *, codec: bool = True) -> TensorType:
    """Return the type called ``name``, in any case.

    Raises :class:`BadOptionError` for an unknown name, and with ``codec`` also for a type that q4hifi cannot
    encode.
    """
    found = name if isinstance(name, TensorType) else TYPES.get(str(name).strip().upper())
    if found is None or (codec and not found.codec):
        known, wrong = [t.name for t in TYPES.values() if t.codec], str(name).strip().upper()
        close = [] if found else get_close_matches(wrong, known, n=1) or get_close_matches(wrong, TYPES, n=1)
        hint = f"did you mean {close[0]}? Or " if close else ""
        raise BadOptionError(f"unknown tensor type {str(name)!r}; {hint}choose one of {', '.join(known)}")
    return found
