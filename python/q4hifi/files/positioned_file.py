"""Files that are read and written at given offsets, from any thread."""

from __future__ import annotations

import errno
import io
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import Q4HifiError
from .closing import Closing
from .mapped_memory import MappedBytes, forget, map_file

# The errors of posix_fallocate that mean that the file does not fit on the disk. Its other errors only mean
# that this file system cannot reserve space in advance.
_NO_ROOM = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}

_TOO_MANY_OPEN = "; allow more open files, as with 'ulimit -n 4096', or use fewer shards"

Buffer = bytes | bytearray | memoryview | npt.NDArray[Any]
"""Contiguous data of any element type."""


def byte_view(buffer: Buffer) -> memoryview:
    """Return a view of a contiguous buffer's bytes, without a copy."""
    return (buffer.data if isinstance(buffer, np.ndarray) else memoryview(buffer)).cast("B")


@contextmanager
def os_errors(path: Path, action: str, error: type[Q4HifiError] = Q4HifiError) -> Iterator[None]:
    """Turn an OSError inside the block into ``error``, with the message "{path}: cannot {action}: cause"."""
    try:
        yield
    except OSError as cause:
        remedy = _TOO_MANY_OPEN if cause.errno in (errno.EMFILE, errno.ENFILE) else ""
        raise error(f"{path}: cannot {action}: {cause.strerror or cause}{remedy}") from cause


class FileState(NamedTuple):
    """Which file it is (device and number), its size in bytes, the time of its last write in nanoseconds."""

    device: int
    inode: int
    size: int
    written: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileState:
        """Return the state in a result of :func:`os.stat`."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class PositionedFile(Closing):
    """An unbuffered binary file whose reads and writes state their offset.

    A context manager that closes the file. All methods are thread safe and raise plain OSError.
    """

    def __init__(self, path: Path, mode: str, opener: Callable[[str, int], int] | None = None) -> None:
        """Open the file.

        ``mode`` is "rb" or "r+b" for an existing file, "xb" or "x+b" for one that must not exist yet.
        ``opener`` replaces :func:`os.open`, as the argument ``opener`` of :func:`open` does.
        """
        self.path = path
        self._file = io.FileIO(path, mode, opener=opener)
        self._lock = threading.Lock()  # for systems without pread and pwrite

    @property
    def raw(self) -> io.FileIO:
        """The underlying file, for sequential reads and writes at its own position."""
        return self._file

    def fileno(self) -> int:
        """Return the file descriptor."""
        return self._file.fileno()

    def size(self) -> int:
        """Size of the file in bytes."""
        return os.fstat(self._file.fileno()).st_size

    def state(self) -> FileState:
        """Return which file this is, and what changes with its contents."""
        return FileState.of(os.fstat(self._file.fileno()))

    def read_into(self, offset: int, out: memoryview) -> int:
        """Read the bytes from ``offset`` into ``out`` (a view of bytes).

        Returns the number of bytes read, which is less than ``len(out)`` only at the end of the file.
        """
        done = 0
        while done < len(out):
            got = self._read_some(offset + done, out[done:])
            if got == 0:
                break
            done += got
        return done

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of ``data`` (a view of bytes) at ``offset``."""
        done = 0
        while done < len(data):
            done += self._write_some(offset + done, data[done:])

    def reserve(self, size: int) -> None:
        """Extend the file to ``size`` bytes with zeros, and allocate the disk space where possible."""
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
        """Wait until everything that was written is on the disk."""
        os.fsync(self._file.fileno())

    def map(self) -> FileMapping | None:
        """Map the whole file into memory, read-only. Returns None if it is empty.

        The mapping stays valid after :meth:`close`.
        """
        state = self.state()
        return FileMapping(self.path, state, map_file(self.fileno(), state.size)) if state.size else None

    def close(self) -> None:
        """Close the file."""
        self._file.close()

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
    """A file mapped into memory, read-only.

    The mapping exists as long as this object or an array of :meth:`view` exists. If the file becomes shorter
    meanwhile, reading the lost part raises the signal SIGBUS. That kills the process, unless ``_core.Watch``
    watches the mapping.
    """

    def __init__(self, path: Path, state: FileState, memory: MappedBytes) -> None:
        """Private: use :meth:`PositionedFile.map`."""
        self.path = path
        self._state = state
        self._memory = memory

    def all(self) -> MappedBytes:
        """Return the whole file as a read-only array, uint8 [size]."""
        return self._memory

    def has_shrunk(self) -> bool:
        """Return whether the file is shorter now than it was when it was mapped.

        False if another file has its name now: the mapped one cannot be found any more.
        """
        try:
            now = FileState.of(os.stat(self.path))
        except OSError:
            return False
        return now[:2] == self._state[:2] and now.size < self._state.size

    def view(self, offset: int, size: int) -> MappedBytes:
        """Return ``size`` bytes from ``offset`` on as a read-only array, uint8 [size]."""
        return self._memory[offset : offset + size]

    def forget(self, offset: int, size: int) -> None:
        """Free the memory of ``size`` bytes from ``offset`` on. The next access reads the file again."""
        forget(self._memory, offset, size)
