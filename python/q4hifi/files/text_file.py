"""Reads the text files that users name, and recognises files that are not UTF-8 text."""

from __future__ import annotations

import codecs
import os
import shlex
import sys
from collections import Counter
from pathlib import Path

from ..errors import BadOptionError

SAMPLE = 1 << 16
"""Bytes at the start of a text that decide about its encoding."""

LONG = 256
"""Bytes. A shorter UTF-16 text without a byte order mark is recognised only by its zero bytes."""

_MARKS: tuple[tuple[bytes, str], ...] = (
    (codecs.BOM_UTF32_LE, "UTF-32"),  # first, because it begins with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_WIDE = ("UTF-32LE", "UTF-32BE", "UTF-16LE", "UTF-16BE")
_BINARY: tuple[tuple[bytes, str], ...] = (
    (b"GGUF", "GGUF"),
    (b"\x1f\x8b", "gzip"),
    (b"PK\x03\x04", "zip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"PAR1", "Parquet"),
    (b"%PDF-", "PDF"),
)
"""(first bytes of a file, name of the format)."""


def read_text_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a text file, or of standard input where ``path`` is "-".

    Raises :class:`BadOptionError` where the file cannot be read or is not a text (:func:`check_text`).
    """
    file = os.fspath(path)
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as cause:
        raise BadOptionError(f"{file}: cannot be read: {cause.strerror or cause}") from cause
    check_text(data, file)
    return data


def check_text(data: bytes, source: str) -> None:
    """Check that ``data`` is plausibly a UTF-8 text; other bytes are accepted, as llama.cpp accepts them.

    ``source`` names the file in messages. Raises :class:`BadOptionError` for UTF-16, UTF-32, and the binary
    formats of :data:`_BINARY`.
    """
    for start, kind in _BINARY:
        if data.startswith(start):
            raise BadOptionError(f"{source}: this is a {kind} file, not a text; name a UTF-8 text file")
    if encoding := _wide_encoding(data[:SAMPLE]):
        raise BadOptionError(
            f"{source}: the text is {encoding}, not UTF-8; convert it:"
            f" iconv -f {encoding} -t UTF-8 {shlex.quote(source)} > NEW.txt"
        )


def _wide_encoding(data: bytes) -> str | None:
    """Return which variant of UTF-16 or UTF-32 the data is in, or None for anything else."""
    marked = next((encoding for mark, encoding in _MARKS if data.startswith(mark)), None)
    if marked is not None:
        return marked
    text = data.decode("utf-8", "replace")
    # Most UTF-16 and UTF-32 texts have zero bytes. A Chinese UTF-16 text may have none, but the first and the
    # second bytes of its characters have different values.
    is_split = len(data) >= LONG and text.count("\ufffd") > 0.1 * len(text) and _parity(data) > 0.5
    if not is_split and (b"\0" not in data or _legible(text) > 0.9):
        return None
    ascii_shares: dict[str, float] = {}
    for encoding in _WIDE:
        try:
            text = codecs.getincrementaldecoder(encoding)().decode(data, final=len(data) < SAMPLE)
        except UnicodeDecodeError:
            continue
        if _legible(text) > 0.95:
            ascii_shares[encoding] = sum(map(str.isascii, text)) / len(text)
    # text in the wrong byte order can be legible, but then its ASCII characters are rare
    return max(ascii_shares, key=ascii_shares.__getitem__, default=None)


def _parity(data: bytes) -> float:
    """Return how much byte values at even and odd positions differ: 0 (not at all) to 1 (disjoint)."""
    even, odd = Counter(data[::2]), Counter(data[1::2])
    return (even - odd).total() / max(1, even.total())


def _legible(text: str) -> float:
    """Return the share of characters that are printable or white space."""
    return sum(c.isprintable() or c.isspace() for c in text) / max(1, len(text))
