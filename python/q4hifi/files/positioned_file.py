"""Files read and written at given offsets, from any thread, with errors that name the file."""

from __future__ import annotations

import errno
import io
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ..errors import Q4HifiError

# What posix_fallocate reports when the file will really not fit. Anything else only says that this
# file system cannot reserve space.
_NO_ROOM = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}

PIECE = 1 << 20
"""Bytes that :func:`read_up_to` reads at a time."""

Buffer = bytes | bytearray | memoryview | npt.NDArray[Any]


def byte_view(buffer: Buffer) -> memoryview:
    """Return the bytes of a contiguous buffer, without a copy."""
    return (buffer.data if isinstance(buffer, np.ndarray) else memoryview(buffer)).cast("B")


@contextmanager
def os_errors(path: Path, action: str, error: type[Q4HifiError] = Q4HifiError) -> Iterator[None]:
    """Turn an OSError inside the block into ``error``, saying what could not be done to which file."""
    try:
        yield
    except OSError as cause:
        raise error(f"{path}: cannot {action}: {cause.strerror or cause}") from cause


def read_up_to(file: BinaryIO, size: int) -> bytes:
    """Return the next ``size`` bytes of a file, or as many as there are. Raises plain OSError.

    Unlike ``file.read(size)``, which allocates ``size`` bytes before it reads the first.
    """
    pieces = []
    while size > 0 and (piece := file.read(min(size, PIECE))):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


class PositionedFile:
    """An unbuffered binary file whose reads and writes state their offset; thread safe.

    ``mode`` is "rb" or "r+b" for an existing file, "xb" or "x+b" for one that must not exist yet. A context
    manager, which closes it. All methods raise plain OSError.
    """

    def __init__(self, path: Path, mode: str, opener: Callable[[str, int], int] | None = None) -> None:
        """Open ``path``; ``opener`` as of :func:`open`."""
        self.path = path
        self._file = io.FileIO(path, mode, opener=opener)
        self._lock = threading.Lock()  # for systems without pread and pwrite

    @property
    def raw(self) -> io.FileIO:
        """The file itself, with a position of its own."""
        return self._file

    def fileno(self) -> int:
        """Return the file descriptor."""
        return self._file.fileno()

    def size(self) -> int:
        """Size of the file in bytes."""
        return os.fstat(self._file.fileno()).st_size

    def state(self) -> tuple[int, int]:
        """Return what changes when the file is written to: its size in bytes and its time, in nanoseconds."""
        found = os.fstat(self._file.fileno())
        return found.st_size, found.st_mtime_ns

    def read_into(self, offset: int, out: memoryview) -> int:
        """Fill ``out`` (bytes) from ``offset``; return how many there were, fewer at the file's end."""
        done = 0
        while done < len(out):
            got = self._read_some(offset + done, out[done:])
            if got == 0:
                break
            done += got
        return done

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of ``data`` (bytes) at ``offset``."""
        done = 0
        while done < len(data):
            done += self._write_some(offset + done, data[done:])

    def reserve(self, size: int) -> None:
        """Make the file ``size`` bytes long, all zero, and take the disk space now where possible."""
        self._file.truncate(size)
        if not hasattr(os, "posix_fallocate"):
            return
        try:
            os.posix_fallocate(self._file.fileno(), 0, size)
        except OSError as cause:
            if cause.errno in _NO_ROOM:
                raise

    def truncate(self, size: int) -> None:
        """Cut the file to ``size`` bytes."""
        self._file.truncate(size)

    def sync(self) -> None:
        """Return when all that was written is on the disk."""
        os.fsync(self._file.fileno())

    def map(self) -> FileMapping | None:
        """Map the whole file into memory, read-only; None if it is empty. It outlives :meth:`close`."""
        try:
            return FileMapping(self.path, mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ))
        except ValueError:
            return None

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> PositionedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_some(self, offset: int, out: memoryview) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), [out], offset)
        with self._lock:
            self._file.seek(offset)
            return self._file.readinto(out)

    def _write_some(self, offset: int, data: memoryview) -> int:
        if hasattr(os, "pwrite"):
            return os.pwrite(self._file.fileno(), data, offset)
        with self._lock:
            self._file.seek(offset)
            return self._file.write(data)


class FileMapping:
    """A file's bytes as memory, for as long as it or an array of :meth:`view` lives.

    If the file becomes shorter meanwhile, reading what is gone raises the signal SIGBUS, which ends the
    process unless the mapping is watched (``_core.Watch``).
    """

    def __init__(self, path: Path, mapping: mmap.mmap) -> None:
        """Use :meth:`PositionedFile.map`."""
        self.path = path
        self._mapping = mapping

    def all(self) -> npt.NDArray[np.uint8]:
        """Return the whole file's bytes, uint8, not to be written to."""
        return self.view(0, len(self._mapping))

    def has_shrunk(self) -> bool:
        """Return whether the file is shorter now than it was when it was mapped."""
        return self._mapping.size() < len(self._mapping)

    def view(self, offset: int, size: int) -> npt.NDArray[np.uint8]:
        """Return ``size`` bytes from ``offset`` on, uint8 [size], not to be written to."""
        return np.frombuffer(self._mapping, np.uint8, size, offset)

    def forget(self, offset: int, size: int) -> None:
        """Give the memory of these bytes back; they are read from the file again when next looked at."""
        if hasattr(mmap, "MADV_DONTNEED"):
            start = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
            length = (offset + size) // mmap.PAGESIZE * mmap.PAGESIZE - start
            if length > 0:
                self._mapping.madvise(mmap.MADV_DONTNEED, start, length)
