"""Reads the text files that users name, and recognises files that are not UTF-8 text."""

from __future__ import annotations

import codecs
import os
import shlex
import stat
import sys
from collections import Counter
from contextlib import nullcontext
from typing import IO

from ..errors import BadFileError, BadOptionError
from .file_kinds import HEAD_BYTES, Pipes, Purpose, kind_of, mistaken
from .regular_file import check_regular_file, read_up_to

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

MOST_STREAMED = 1 << 28
"""Bytes that are read from a pipe, which may never end. No measurement needs so long a text."""

TEXT = Purpose("a text", "name a UTF-8 text file", "write it again", Pipes.ALL)


def read_text_bytes(path: str | os.PathLike[str], purpose: Purpose = TEXT) -> bytes:
    """Return the bytes of a text file, or of standard input where ``path`` is "-".

    ``purpose`` is what the text is read as. Other bytes than UTF-8 are accepted, as llama.cpp accepts them.
    Raises :class:`BadOptionError` where the file cannot be read, is a device or too large, is UTF-16 or
    UTF-32, or has a format of :data:`~q4hifi.files.file_kinds.KINDS` that is not a text.
    """
    file = os.fspath(path)
    try:
        if file != "-":
            check_regular_file(file, purpose, action="be read")
        with nullcontext(sys.stdin.buffer) if file == "-" else open(file, "rb") as stream:
            most = purpose.most_bytes or (sys.maxsize if _is_regular(stream) else MOST_STREAMED)
            data = read_up_to(stream, HEAD_BYTES)
            _check_format(data, file, purpose)  # before a model of many gigabytes is read
            data += read_up_to(stream, most + 1 - len(data))
    except BadFileError as error:
        raise BadOptionError(str(error)) from error
    except OSError as cause:
        raise BadOptionError(f"{file}: cannot be read: {cause.strerror or cause}") from cause
    if len(data) > most:
        raise BadOptionError(f"{file}: is longer than {most >> 20} MiB, and cannot be {purpose.name}")
    if encoding := _wide_encoding(data[:SAMPLE]):
        raise BadOptionError(
            f"{file}: the text is {encoding}, not UTF-8; convert it:"
            f" iconv -f {encoding} -t UTF-8 {shlex.quote(file)} > NEW.txt"
        )
    return data


def _is_regular(stream: IO[bytes]) -> bool:
    """Return whether a stream reads a regular file, which has an end."""
    try:
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except OSError:  # such as a stream in memory
        return False


def _check_format(head: bytes, file: str, purpose: Purpose) -> None:
    kind = kind_of(head)
    if kind is not None and not kind.is_text:
        raise BadOptionError(f"{file}: {mistaken(head, purpose)}")


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
