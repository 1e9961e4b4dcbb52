"""The key-value pairs of a GGUF file, kept as the bytes that stand in the file.

Most keys are only carried from one file to the next, and vocabularies hold hundreds of thousands of
strings. So every pair stays as it was read, to the byte, whatever its kind, and a value is decoded
when somebody asks for it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import BadOptionError
from ..formats.gguf_constants import GGUFValueType

SCALARS: Mapping[GGUFValueType, struct.Struct] = {
    GGUFValueType.UINT8: struct.Struct("<B"),
    GGUFValueType.INT8: struct.Struct("<b"),
    GGUFValueType.UINT16: struct.Struct("<H"),
    GGUFValueType.INT16: struct.Struct("<h"),
    GGUFValueType.UINT32: struct.Struct("<I"),
    GGUFValueType.INT32: struct.Struct("<i"),
    GGUFValueType.FLOAT32: struct.Struct("<f"),
    GGUFValueType.BOOL: struct.Struct("<?"),
    GGUFValueType.UINT64: struct.Struct("<Q"),
    GGUFValueType.INT64: struct.Struct("<q"),
    GGUFValueType.FLOAT64: struct.Struct("<d"),
}
"""How each value type of fixed size stands in a file; strings and arrays are the two others."""

U32, U64 = struct.Struct("<I"), struct.Struct("<Q")
ARRAY_HEAD = struct.Struct("<IQ")  # element type, count


def encode_string(text: str) -> bytes:
    """Length (u64) and bytes; the inverse of :func:`decode_text` even where it was not UTF-8."""
    data = text.encode("utf-8", "surrogateescape")
    return U64.pack(len(data)) + data


def decode_text(data: bytes) -> str:
    """UTF-8 as str; bytes that are not UTF-8 become lone surrogates, so this never fails."""
    return data.decode("utf-8", "surrogateescape")


class Metadata(Mapping[str, Any]):
    """The key-value pairs of a GGUF file: ordered and immutable, the raw bytes kept.

    Integers read as int, floats as float, booleans as bool, strings as str and arrays as list, nested
    for arrays of arrays. A decoded value is cached: do not modify a list that you got from here.
    """

    def __init__(self, pairs: Mapping[str, bytes] | None = None) -> None:
        """``pairs``: key -> its whole pair as it stands in a file, already found to be well-formed."""
        self._pairs = dict(pairs or {})
        self._values: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        if key not in self._values:
            raw = self._pairs[key]
            self._values[key] = _decode(raw, _value_start(raw), self.value_type(key))[0]
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __contains__(self, key: object) -> bool:
        return key in self._pairs  # Mapping's own would decode the value

    def __repr__(self) -> str:
        return f"Metadata({', '.join(self)})"

    def value_type(self, key: str) -> GGUFValueType:
        """Type of the value of ``key``. KeyError if there is no such key."""
        raw = self._pairs[key]
        return GGUFValueType(U32.unpack_from(raw, _value_start(raw) - U32.size)[0])

    def element_type(self, key: str) -> GGUFValueType | None:
        """Type of an array's elements, None where the value is not an array; decodes nothing."""
        head = self._array_head(key)
        return GGUFValueType(head[0]) if head else None

    def array_length(self, key: str) -> int | None:
        """Number of elements of an array, None where the value is not an array; decodes nothing."""
        head = self._array_head(key)
        return head[1] if head else None

    def _array_head(self, key: str) -> tuple[int, int] | None:
        if self.value_type(key) != GGUFValueType.ARRAY:
            return None
        raw = self._pairs[key]
        element, count = ARRAY_HEAD.unpack_from(raw, _value_start(raw))
        return element, count

    def with_value(self, key: str, value: Any, value_type: GGUFValueType) -> Metadata:
        """Return these pairs with ``key`` set, at the end even if it was there before, as ggml does.

        A list becomes an array whose elements are of ``value_type``; a list of lists an array of arrays.
        Raises :class:`BadOptionError` where the value does not fit the type.
        """
        try:
            kind, data = _encode(value, value_type)
        except (struct.error, AttributeError, OverflowError, KeyError) as cause:
            raise BadOptionError(f"{key}: {value!r:.80} does not fit {value_type.name}") from cause
        pair = encode_string(key) + U32.pack(kind) + data
        return Metadata({k: raw for k, raw in self._pairs.items() if k != key} | {key: pair})

    def without(self, *keys: str) -> Metadata:
        """Return these pairs less ``keys``, which need not be there."""
        return Metadata({k: raw for k, raw in self._pairs.items() if k not in keys})

    def raw(self, key: str) -> bytes:
        """Return the whole pair (key, type and value) as it stands in a file."""
        return self._pairs[key]

    def encode(self) -> bytes:
        """Return all pairs as they stand in a file: the :meth:`raw` bytes one after the other."""
        return b"".join(self._pairs.values())


def _value_start(raw: bytes) -> int:
    """Where the value begins in a raw pair: after the key, with its length, and the type."""
    return U64.size + int(U64.unpack_from(raw)[0]) + U32.size


def _decode(raw: bytes, at: int, kind: GGUFValueType) -> tuple[Any, int]:
    """Decode the value of type ``kind`` at ``at``; return it and where it ends."""
    if kind == GGUFValueType.STRING:
        start = at + U64.size
        end = start + U64.unpack_from(raw, at)[0]
        return decode_text(raw[start:end]), end
    if kind != GGUFValueType.ARRAY:
        return SCALARS[kind].unpack_from(raw, at)[0], at + SCALARS[kind].size
    element, count = ARRAY_HEAD.unpack_from(raw, at)
    at += ARRAY_HEAD.size
    if element in SCALARS:
        numbers = struct.Struct(f"<{count}{SCALARS[element].format[1:]}")
        return list(numbers.unpack_from(raw, at)), at + numbers.size
    values = []
    for _ in range(count):
        value, at = _decode(raw, at, element)
        values.append(value)
    return values, at


def _encode(value: Any, kind: GGUFValueType) -> tuple[GGUFValueType, bytes]:
    """Return the type under which ``value`` is stored, and its bytes; the inverse of :func:`_decode`."""
    if isinstance(value, (list, tuple)):
        encoded = [_encode(v, kind) for v in value]
        kinds = {k for k, _ in encoded} or {kind}
        if len(kinds) > 1:
            raise struct.error("lists and single values in one array")
        (element,) = kinds
        return GGUFValueType.ARRAY, ARRAY_HEAD.pack(element, len(value)) + b"".join(d for _, d in encoded)
    if kind == GGUFValueType.STRING:
        return kind, encode_string(value)
    return kind, SCALARS[kind].pack(value)
