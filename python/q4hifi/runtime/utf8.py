"""Bytes to characters as llama.cpp reads them, where they are not UTF-8."""

from __future__ import annotations

import re

SURROGATE = re.compile("[\ud800-\udfff]")
"""A code point that no UTF-8 text has, and that :func:`decode` can give all the same."""

_BYTE = re.compile("[\udc80-\udcff]")  # a byte that is not UTF-8, as surrogateescape gives it
_NEXT = "[\udc80-\udcbf]"
_FORMS = re.compile(  # longer forms than needed, and surrogates
    f"([\udcc0\udcc1]{_NEXT}|\udce0[\udc80-\udc9f]{_NEXT}|\udced[\udca0-\udcbf]{_NEXT}"
    f"|\udcf0[\udc80-\udc8f]{_NEXT}{_NEXT})"
)
_LEAD_BITS = {2: 0x1F, 3: 0x0F, 4: 0x07}  # of the first byte, by the length of the form


def decode(data: bytes) -> str:
    """Return the characters of ``data``.

    A form that is longer than needed (C0 80) and the form of a surrogate (ED A0 80) give the code point
    that their bits spell. Every other byte that is not UTF-8 gives U+FFFD, also in forms beyond U+10FFFF,
    at which llama.cpp ends.
    """
    text = data.decode("utf-8", "surrogateescape")
    if not _BYTE.search(text):
        return text
    parts = _FORMS.split(text)  # what lies between the forms, and the forms, in turn
    parts[::2] = [_BYTE.sub("\ufffd", part) for part in parts[::2]]
    parts[1::2] = [_code_point(form) for form in parts[1::2]]
    return "".join(parts)


def _code_point(form: str) -> str:
    first, *rest = form.encode("utf-8", "surrogateescape")
    code = first & _LEAD_BITS[len(form)]
    for byte in rest:
        code = code << 6 | byte & 0x3F
    return chr(code)
