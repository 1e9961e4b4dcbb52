"""The key-value pairs of a GGUF file, kept as the raw bytes of the file.

Most pairs are only copied from one file to another, and a vocabulary has hundreds of thousands of strings. So
a pair keeps the bytes that were read, and its value is decoded on first use.
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
"""Value type -> its encoding in a file, for the types of fixed size: all but STRING and ARRAY."""

U32, U64 = struct.Struct("<I"), struct.Struct("<Q")
ARRAY_HEAD = struct.Struct("<IQ")  # element type, count


def encode_string(text: str) -> bytes:
    """Return a string's encoding in a file: its length in bytes (u64), then its bytes.

    Text from :func:`decode_text` gives the original bytes, also where they were not UTF-8.
    """
    data = text.encode("utf-8", "surrogateescape")
    return U64.pack(len(data)) + data


def decode_text(data: bytes) -> str:
    """Decode UTF-8. Invalid bytes become lone surrogates, so this never fails."""
    return data.decode("utf-8", "surrogateescape")


class Metadata(Mapping[str, Any]):
    """The key-value pairs of a GGUF file, as an ordered and immutable mapping from key to value.

    Values are int, float, bool, str, or list for arrays, nested for arrays of arrays. Decoded values are
    cached: do not modify a list that this mapping returns.
    """

    def __init__(self, pairs: Mapping[str, bytes] | None = None) -> None:
        """Take the pairs: key -> the bytes of its whole pair (key, type, value), already checked."""
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
        """Return the type of the value of ``key``. Raises KeyError if there is no such key."""
        raw = self._pairs[key]
        return GGUFValueType(U32.unpack_from(raw, _value_start(raw) - U32.size)[0])

    def element_type(self, key: str) -> GGUFValueType | None:
        """Return the type of an array's elements, or None if the value is not an array. Decodes nothing."""
        head = self._array_head(key)
        return GGUFValueType(head[0]) if head else None

    def array_length(self, key: str) -> int | None:
        """Return the number of an array's elements, or None if the value is not an array. Decodes nothing."""
        head = self._array_head(key)
        return head[1] if head else None

    def _array_head(self, key: str) -> tuple[int, int] | None:
        if self.value_type(key) != GGUFValueType.ARRAY:
            return None
        raw = self._pairs[key]
        element, count = ARRAY_HEAD.unpack_from(raw, _value_start(raw))
        return element, count

    def with_value(self, key: str, value: Any, value_type: GGUFValueType) -> Metadata:
        """Return a copy in which ``key`` has this value and is the last pair, as in ggml.

        A list becomes an array whose elements have the type ``value_type``, and a list of lists an array of
        arrays. Raises :class:`BadOptionError` where the value does not fit the type.
        """
        try:
            kind, data = _encode(value, value_type)
        except (struct.error, AttributeError, OverflowError, KeyError) as cause:
            raise BadOptionError(f"{key}: {value!r:.80} does not fit {value_type.name}") from cause
        pair = encode_string(key) + U32.pack(kind) + data
        return Metadata({k: raw for k, raw in self._pairs.items() if k != key} | {key: pair})

    def without(self, *keys: str) -> Metadata:
        """Return a copy without ``keys``; keys that do not exist are ignored."""
        return Metadata({k: raw for k, raw in self._pairs.items() if k not in keys})

    def raw(self, key: str) -> bytes:
        """Return the bytes of a whole pair: key, type and value. Raises KeyError if there is no such key."""
        return self._pairs[key]

    def encode(self) -> bytes:
        """Return the bytes of all pairs, as a file contains them."""
        return b"".join(self._pairs.values())


def _value_start(raw: bytes) -> int:
    """Return the offset of the value in the bytes of a pair: after the key's length, the key and the type."""
    return U64.size + int(U64.unpack_from(raw)[0]) + U32.size


def _decode(raw: bytes, at: int, kind: GGUFValueType) -> tuple[Any, int]:
    """Decode the value of type ``kind`` at offset ``at`` of ``raw``; return it and the offset of its end."""
    if kind == GGUFValueType.STRING:
        start = at + U64.size
        end = start + U64.unpack_from(raw, at)[0]
        return decode_text(raw[start:end]), end
    if kind != GGUFValueType.ARRAY:
        return SCALARS[kind].unpack_from(raw, at)[0], at + SCALARS[kind].size
    element, count = ARRAY_HEAD.unpack_from(raw, at)
    at += ARRAY_HEAD.size
    if element in SCALARS:
        array = struct.Struct(f"<{count}{SCALARS[element].format[1:]}")
        return list(array.unpack_from(raw, at)), at + array.size
    values = []
    for _ in range(count):
        value, at = _decode(raw, at, element)
        values.append(value)
    return values, at


def _encode(value: Any, kind: GGUFValueType) -> tuple[GGUFValueType, bytes]:
    """Return the type (ARRAY for a list) and the bytes with which ``value`` is stored."""
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
