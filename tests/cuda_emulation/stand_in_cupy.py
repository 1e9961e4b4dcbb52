"""As much of CuPy as q4hifi.cuda uses, on the host: kernels are those of host.py.

Every array ends where a page begins that may not be touched, so a kernel that reads or writes past an
array's end ends the process; and it begins as garbage, so that what a kernel leaves out shows.
"""

from __future__ import annotations

import ctypes
import mmap
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from cuda_emulation import host
from q4hifi.cuda.kernels import Launch

GARBAGE = 0xA5
ALIGNMENT = 16
"""CuPy's is 512; the kernels ask for no more than this."""

_libc = ctypes.CDLL(None, use_errno=True)


class ndarray(np.ndarray):
    """A numpy array that says it lies on GPU 0."""

    @property
    def device(self) -> Any:
        return SimpleNamespace(id=0)

    @property
    def data(self) -> Any:
        return SimpleNamespace(ptr=self.ctypes.data)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)


def empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> ndarray:
    dtype = np.dtype(dtype)
    nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    pages = -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, pages + mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    if _libc.mprotect(ctypes.c_void_p(address + pages), mmap.PAGESIZE, 0):
        raise OSError(ctypes.get_errno(), "mprotect")
    start = (pages - nbytes) // ALIGNMENT * ALIGNMENT
    flat = np.frombuffer(memory, np.uint8, nbytes, start)
    flat[:] = GARBAGE
    return flat.view(dtype).reshape(shape).view(ndarray)


def asarray(x: Any) -> ndarray:
    """A copy of a numpy array on the GPU, or a view of an array that has the array interface."""
    if not isinstance(x, np.ndarray):
        return np.asarray(SimpleNamespace(__array_interface__=x.__cuda_array_interface__)).view(ndarray)
    out = empty(x.shape, x.dtype)
    out[...] = x
    return out


def from_dlpack(x: Any) -> ndarray:
    return x.__dlpack__().view(ndarray)


class RawModule:
    def __init__(self, *, code: str, options: tuple[str, ...], name_expressions: tuple[str, ...]) -> None:
        self.names = name_expressions

    def get_function(self, name: str) -> Any:
        assert name in self.names

        def function(grid: tuple[int], block: tuple[int, int, int], arguments: tuple[Any, ...]) -> None:
            host.launch(Launch(name, *grid, block), [_argument(a) for a in arguments])

        return function


def _argument(value: Any) -> Any:
    if isinstance(value, ndarray):
        return ctypes.c_void_p(value.ctypes.data)
    return np.ctypeslib.as_ctypes_type(value.dtype)(value.item())


class _CUDARuntimeError(RuntimeError):
    pass


class _Device:
    compute_capability = "90"

    def __init__(self, number: int = 0) -> None:
        self.id = number

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exception: object) -> None:
        pass


cuda = SimpleNamespace(
    Device=_Device,
    runtime=SimpleNamespace(getDeviceCount=lambda: 1, CUDARuntimeError=_CUDARuntimeError),
)
