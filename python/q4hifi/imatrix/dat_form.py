"""Reading importance matrices in the older binary form; :mod:`q4hifi.imatrix.file` describes it."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..errors import BadFileError
from ..files.file_kinds import Purpose
from ..gguf_io.metadata import decode_text
from ..wording import counted
from .entries import Entry, WeightsFilter, checked_count, remedy
from .importance import Importance

SMALLEST_ENTRY = 16
"""Size in bytes of the smallest entry: an empty name and one value."""

MAX_ENTRIES = 2**18
"""Limit on the entries of a file: no model has more tensors."""


def read_dat(file: str, stream: BinaryIO, chosen: WeightsFilter, purpose: Purpose) -> Importance:
    """Read the entries of a file in the older form. Raises :class:`BadFileError` where it is damaged."""
    read = _Reader(file, stream, purpose)
    n_entries = read.i32("the number of entries")
    if not 1 <= n_entries <= min(MAX_ENTRIES, read.left // SMALLEST_ENTRY):
        raise BadFileError(
            f"{file}: claims {counted(n_entries, 'entry', 'entries')} in {counted(read.left, 'byte')}; "
            f"the file is not an importance matrix, or it is damaged; {purpose.again}"
        )
    names: dict[str, None] = {}
    entries: dict[str, Entry] = {}
    for i in range(n_entries):
        name = read.text(f"the name of entry {i}")
        if name in names:
            raise BadFileError(f"{file}: entry {i} is a second entry of {name}; make the imatrix again")
        names[name] = None
        calls, n_values = read.i32(f"the calls of {name}"), read.i32(f"the length of {name}")
        offset = read.skip(4 * n_values, f"the values of {name}")
        if name not in chosen:
            continue
        if calls < 0:
            raise BadFileError(f"{file}: {name} has {counted(calls, 'call')}, below zero; {remedy(name)}")
        if n_values < 1:
            raise BadFileError(f"{file}: {name} has {counted(n_values, 'value')}; {remedy(name)}")
        entries[name] = Entry(Path(file), offset, n_values, np.full(1, calls or 1, np.float32))
    chunk_count, datasets = None, tuple[str, ...]()
    if read.left:
        chunk_count = checked_count(read.i32("the chunk count"), f"{file}: chunk count")
    if read.left and (dataset := read.text("the data set's name")):
        datasets = (dataset,)
    if read.left:
        raise BadFileError(
            f"{file}: {counted(read.left, 'byte follows', 'bytes follow')} the end: it is damaged;"
            f" {purpose.again}"
        )
    return Importance(file, datasets, chunk_count, None, tuple(names), entries)


class _Reader:
    """Reads the fields of the binary form. A field that reaches beyond the end of the file is an error."""

    def __init__(self, file: str, stream: BinaryIO, purpose: Purpose) -> None:
        self._file, self._stream, self._purpose = file, stream, purpose
        self._size = os.fstat(stream.fileno()).st_size

    @property
    def left(self) -> int:
        """Bytes that have not been read yet."""
        return self._size - self._stream.tell()

    def _need(self, n: int, what: str) -> None:
        if not 0 <= n <= self.left:
            raise BadFileError(
                f"{self._file}: {what} takes {counted(n, 'byte')} at offset {self._stream.tell()}, but"
                f" only {self.left} "
                f"are left; it is damaged, or not an importance matrix; {self._purpose.again}"
            )

    def _take(self, n: int, what: str) -> bytes:
        self._need(n, what)
        return self._stream.read(n)

    def skip(self, n: int, what: str) -> int:
        """Skip ``n`` bytes and return the offset of the first."""
        self._need(n, what)
        return self._stream.seek(n, os.SEEK_CUR) - n

    def i32(self, what: str) -> int:
        """Read one 32-bit integer."""
        value: int = struct.unpack("<i", self._take(4, what))[0]
        return value

    def text(self, what: str) -> str:
        """Read a string, which follows its length."""
        return decode_text(self._take(self.i32(f"the length of {what}"), what))
