"""Decoding bytes that may not be valid UTF-8, with the code points that llama.cpp reads from them."""

from __future__ import annotations

import re

SURROGATE = re.compile("[\ud800-\udfff]")
"""Matches one surrogate. Valid UTF-8 contains none, but the result of :func:`decode` may."""

# surrogateescape decodes an invalid byte b to the code point U+DC00 + b.
_INVALID_BYTE = re.compile("[\udc80-\udcff]")
_CONTINUATION = "[\udc80-\udcbf]"
_READABLE = re.compile(  # invalid sequences that llama.cpp decodes: overlong ones, and surrogates
    f"([\udcc0\udcc1]{_CONTINUATION}|\udce0[\udc80-\udc9f]{_CONTINUATION}"
    f"|\udced[\udca0-\udcbf]{_CONTINUATION}|\udcf0[\udc80-\udc8f]{_CONTINUATION}{_CONTINUATION})"
)
_LEAD_BITS = {2: 0x1F, 3: 0x0F, 4: 0x07}
"""Length of a sequence in bytes -> mask of the first byte's bits that belong to the code point."""


def decode(data: bytes) -> str:
    """Return ``data`` as a str.

    Invalid sequences of two sorts become the code point that their bits spell: overlong ones, such as C0 80,
    and encoded surrogates, such as ED A0 80. Every other invalid byte becomes U+FFFD. So does each byte of a
    sequence beyond U+10FFFF, where llama.cpp aborts.
    """
    text = data.decode("utf-8", "surrogateescape")
    if not _INVALID_BYTE.search(text):
        return text
    parts = _READABLE.split(text)  # every second part is a readable sequence
    parts[::2] = [_INVALID_BYTE.sub("\ufffd", part) for part in parts[::2]]
    parts[1::2] = [_code_point(sequence) for sequence in parts[1::2]]
    return "".join(parts)


def _code_point(sequence: str) -> str:
    first, *rest = sequence.encode("utf-8", "surrogateescape")
    code = first & _LEAD_BITS[len(sequence)]
    for byte in rest:
        code = code << 6 | byte & 0x3F
    return chr(code)
