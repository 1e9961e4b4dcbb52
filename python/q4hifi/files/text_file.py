"""Text files that the user names: UTF-8, and what else they may be by mistake."""

from __future__ import annotations

import codecs
import os
import shlex
import sys
from pathlib import Path

from ..errors import BadOptionError

SAMPLE = 1 << 16
"""Bytes at the start of a text from which its encoding is recognised."""

_MARKS: tuple[tuple[bytes, str], ...] = (
    (codecs.BOM_UTF32_LE, "UTF-32"),  # begins with the mark of UTF-16, so it comes first
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
"""How a file begins -> what it is."""


def read_text_bytes(path: str | os.PathLike[str]) -> bytes:
    """Read a text file, or standard input where ``path`` is "-".

    Raises :class:`BadOptionError` where it cannot be read, and as :func:`check_text`.
    """
    file = os.fspath(path)
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as cause:
        raise BadOptionError(f"{file}: cannot be read: {cause.strerror or cause}") from cause
    check_text(data, file)
    return data


def check_text(data: bytes, source: str) -> None:
    """Check that the bytes of ``source`` may be a text, in UTF-8 with errors or not.

    Raises :class:`BadOptionError` for UTF-16, UTF-32, and the binary formats of :data:`_BINARY`.
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
    """UTF-16 or UTF-32 in its variants, None for anything else."""
    marked = next((encoding for mark, encoding in _MARKS if data.startswith(mark)), None)
    if marked is not None or b"\0" not in data:  # a space or a line end is enough for a zero byte
        return marked
    if _legible(data.decode("utf-8", "replace")) > 0.9:
        return None
    found: dict[str, float] = {}
    for encoding in _WIDE:
        try:
            text = codecs.getincrementaldecoder(encoding)().decode(data, final=len(data) < SAMPLE)
        except UnicodeDecodeError:
            continue
        if _legible(text) > 0.95:
            found[encoding] = sum(map(str.isascii, text)) / len(text)
    return max(found, key=found.__getitem__, default=None)  # of the two orders, that of the spaces


def _legible(text: str) -> float:
    """The share of characters that are printed or are white space."""
    return sum(c.isprintable() or c.isspace() for c in text) / max(1, len(text))
