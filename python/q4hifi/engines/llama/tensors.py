"""Reading ggml's tensors while llama.cpp computes: names, shapes, sources, values."""

from __future__ import annotations

import ctypes
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import UnavailableError, UnsupportedModelError
from .abi import NAME_BYTES, StructOffsets


@dataclass(frozen=True, slots=True)
class Tensor:
    """The fields of the ggml tensor at an address.

    ``ne`` and ``nb`` are its shape and its strides in bytes, row length first. ``src`` are the addresses of
    its first three sources, 0 where there is none.
    """

    address: int
    type: int
    op: int
    buffer: int
    view_src: int
    data: int
    ne: tuple[int, int, int, int]
    nb: tuple[int, int, int, int]
    src: tuple[int, int, int]


class TensorReader:
    """Reads tensors of one library."""

    def __init__(self, lib: ctypes.CDLL, offsets: StructOffsets) -> None:
        """Read tensors that are laid out so."""
        self._lib, self._offsets = lib, offsets
        self._op_names: dict[int, str] = {}

    def op(self, address: int) -> int:
        """Return the number of a tensor's operation."""
        return ctypes.c_uint32.from_address(address + self._offsets.op).value

    def op_name(self, address: int) -> str:
        """Return ggml's name of a tensor's operation."""
        op = self.op(address)
        if op not in self._op_names:
            self._op_names[op] = self._lib.ggml_op_name(op).decode()
        return self._op_names[op]

    def tensor(self, address: int) -> Tensor:
        """Return the fields of the tensor at an address."""
        at = self._offsets
        raw = ctypes.string_at(address, at.name)

        def number(offset: int, size: int = 8) -> int:
            return int.from_bytes(raw[offset : offset + size], "little")

        def numbers(offset: int, n: int) -> Any:
            return tuple(number(offset + 8 * i) for i in range(n))

        return Tensor(
            address,
            number(at.type, 4),
            number(at.op, 4),
            number(at.buffer),
            number(at.view_src),
            number(at.data),
            numbers(at.ne, 4),
            numbers(at.nb, 4),
            numbers(at.src, 3),
        )

    def name(self, address: int) -> str:
        """Return a tensor's name: ``blk.0.attn_k.weight`` also for ``CUDA0#blk.0.attn_k.weight#0``."""
        raw = ctypes.string_at(address + self._offsets.name, NAME_BYTES)
        name = raw.split(b"\0", 1)[0].decode(errors="replace")
        return name.split("#")[1] if name.count("#") >= 2 else name

    def find(self, address: int, names: Container[str]) -> tuple[str, int] | None:
        """Return name and address of the tensor at an address if ``names`` has it, or else of the one that it
        is a view of."""
        while address:
            if (name := self.name(address)) in names:
                return name, address
            address = self.tensor(address).view_src
        return None

    @contextmanager
    def data_replaced(self, address: int, data: npt.NDArray[np.uint8]) -> Iterator[None]:
        """Give a tensor other bytes, as many as it has, within the context.

        A tensor in this memory may be mapped from a file and is not written: its address is changed. Raises
        :class:`UnsupportedModelError` if it has another number of bytes.
        """
        lib, tensor = self._lib, self.tensor(address)
        if lib.ggml_nbytes(address) != data.nbytes:
            raise UnsupportedModelError(
                f"{self.name(address)}: llama.cpp keeps {lib.ggml_nbytes(address)} bytes of it, the file has"
                f" {data.nbytes}"
            )
        if lib.ggml_backend_buffer_is_host(tensor.buffer):
            pointer = ctypes.c_void_p.from_address(address + self._offsets.data)
            try:
                pointer.value = data.ctypes.data
                yield
            finally:
                pointer.value = tensor.data
            return
        before = np.empty(data.nbytes, np.uint8)
        lib.ggml_backend_tensor_get(address, before.ctypes.data, 0, before.nbytes)
        try:
            lib.ggml_backend_tensor_set(address, data.ctypes.data, 0, data.nbytes)
            yield
        finally:
            lib.ggml_backend_tensor_set(address, before.ctypes.data, 0, before.nbytes)

    def values(self, tensor: Tensor, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return a tensor's values, [ne3, ne2, ne1, ne0], without a copy if they are in this memory.

        Raises :class:`UnavailableError` if the values of a row do not follow each other.
        """
        size = np.dtype(dtype).itemsize
        if tensor.nb[0] != size:
            raise UnavailableError(
                f"{self.name(tensor.address)}: llama.cpp keeps values of {size} bytes {tensor.nb[0]} bytes"
                " apart, which q4hifi cannot read; use another version"
            )
        if tensor.buffer and not self._lib.ggml_backend_buffer_is_host(tensor.buffer):
            base = np.empty(self._lib.ggml_nbytes(tensor.address), np.uint8)
            self._lib.ggml_backend_tensor_get(tensor.address, base.ctypes.data, 0, base.nbytes)
        else:
            n_bytes = size + sum((n - 1) * stride for n, stride in zip(tensor.ne, tensor.nb, strict=True))
            base = np.ctypeslib.as_array((ctypes.c_ubyte * n_bytes).from_address(tensor.data))
        values: npt.NDArray[Any] = np.ndarray(
            tensor.ne[::-1], dtype, buffer=base.data, strides=tensor.nb[::-1]
        )
        return values
