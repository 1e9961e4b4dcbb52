"""Files in memory, without an open descriptor for each.

Before Python 3.13, :mod:`mmap` keeps a descriptor open for every mapping, so that a model of a thousand
shards exceeds the usual limit of open files. Therefore, on POSIX, the system's ``mmap`` is called directly.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

MappedBytes = npt.NDArray[np.uint8]


class _Pages:
    """Mapped pages, which numpy arrays keep alive."""

    def __init__(self, address: int, size: int) -> None:
        self._address, self._size, self._unmap = address, size, _libc().munmap
        self.__array_interface__ = {"version": 3, "shape": (size,), "typestr": "|u1", "data": (address, True)}

    def __del__(self) -> None:
        self._unmap(self._address, self._size)


def map_file(descriptor: int, size: int) -> MappedBytes:
    """Map the first ``size`` bytes (above 0) of an open file: uint8 [size], read-only.

    The array is valid after the file was closed. Raises OSError if the system cannot map the file.
    """
    if sys.platform == "win32":
        return np.frombuffer(mmap.mmap(descriptor, size, access=mmap.ACCESS_READ), np.uint8)
    address = _libc().mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    if address == ctypes.c_void_p(-1).value:  # MAP_FAILED
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return np.asarray(_Pages(address, size))


def forget(memory: MappedBytes, offset: int, size: int) -> None:
    """Free the memory of ``size`` bytes of a mapped file. The next access reads the file again."""
    if sys.platform == "win32" or not hasattr(mmap, "MADV_DONTNEED"):
        return
    start = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (offset + size) // mmap.PAGESIZE * mmap.PAGESIZE - start
    if length > 0:
        _libc().madvise(memory.ctypes.data + start, length, mmap.MADV_DONTNEED)


@cache
def _libc() -> Any:
    """Return the system's C library, with the types of the functions that are called."""
    libc = ctypes.CDLL(None, use_errno=True)
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    libc.mmap.restype = pointer
    libc.mmap.argtypes = (pointer, size, number, number, number, ctypes.c_int64)
    libc.munmap.argtypes = (pointer, size)
    libc.madvise.argtypes = (pointer, size, number)
    return libc
