"""Quantized weights in a GPU's memory: :func:`upload`, :class:`CudaTensor`."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ..codec.quantized_tensor import QuantizedTensor
from ..errors import BadOptionError
from ..formats.layout import Format
from ..wording import counted
from . import kernels
from .device import Array, borrow, check_capability, cupy, hand_back, launch

NO_POINTER = np.uint64(0)

Q6_K_PARTS = (0, 128, 192, 208, 210)
"""Byte offsets of the parts of a Q6_K block. On the GPU each part is stored separately, and so aligned."""


@dataclass(frozen=True, slots=True, eq=False)
class CudaTensor:
    """Quantized weights in the memory of GPU ``device``. :func:`upload` makes them.

    ``shape`` is the shape of the weights, row length last. ``data`` has the bytes of the blocks, a CuPy
    array. Q4_HIFI in the split layout also has ``outlier_index`` and ``outlier_residual``.

    The methods start work on CuPy's current stream and do not wait for it. Activations are C-contiguous
    float32 or float16 arrays on the same GPU, of any library with DLPack or ``__cuda_array_interface__``.
    Products are float32 arrays of the same library, whose current stream waits for them. If the library has
    no DLPack, they are CuPy arrays.
    """

    shape: tuple[int, ...]
    format: Format
    device: int
    data: Array
    outlier_index: Array | None = None
    outlier_residual: Array | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks and outliers in the GPU's memory."""
        parts = (self.data, self.outlier_index, self.outlier_residual)
        return sum(int(part.nbytes) for part in parts if part is not None)

    def dequantize(self, dtype: npt.DTypeLike = np.float16) -> Array:
        """Return the weights as a CuPy array, float16 (rounded to nearest) or float32 (exact).

        Raises :class:`BadOptionError` for another ``dtype``.
        """
        dtype = np.dtype(dtype)
        if dtype.name not in kernels.FLOATS:
            raise BadOptionError(f"weights cannot be decoded to {dtype}; choose float16 or float32")
        xp = cupy()
        with xp.cuda.Device(self.device):
            out = xp.empty(self.shape, dtype)
            launch(kernels.dequantize(self.format, prod(self.shape), dtype.name), *self._arguments, out)
        return out

    def matvec(self, x: Any) -> Any:
        """Multiply activations [n_in] or [columns, n_in], with 1 to 8 columns, by the matrix [n_out, n_in].

        Returns float32 [n_out] or [columns, n_out]. The weights are read once for all columns. The
        activations are quantized to eight bits in blocks of 32. Raises :class:`BadOptionError` if types,
        shapes or devices do not fit.
        """
        if self.format.type.name not in kernels.DOT:
            raise BadOptionError(f"{self.format.type} does not support matvec; use matmul")
        columns = self._columns(x)
        if columns.ndim > 2 or columns.size > kernels.COLUMNS[-1] * self.shape[1]:
            raise BadOptionError(f"activations of shape {columns.shape}; matvec takes 1 to 8 columns")
        return hand_back(self._matvec(columns), x)

    def matmul(self, x: Any) -> Any:
        """Multiply activations [..., n_in] by the matrix [n_out, n_in]: float32 [..., n_out].

        Up to eight columns are multiplied as by :meth:`matvec`. More columns are multiplied with tensor
        cores: weights and activations are rounded to float16, values above 65504 become infinite, and sums
        are float32. Raises :class:`BadOptionError` if types, shapes or devices do not fit.
        """
        columns = self._columns(x)
        few = columns.size <= kernels.COLUMNS[-1] * self.shape[1] and self.format.type.name in kernels.DOT
        return hand_back(self._matvec(columns) if few else self._matmul(columns), x)

    @property
    def _arguments(self) -> tuple[object, ...]:
        """The arguments of a kernel that make up its ``Tensor`` (``blocks.cuh``)."""
        blocks = prod(self.shape) // self.format.type.block_size
        index = NO_POINTER if self.outlier_index is None else self.outlier_index
        residual = NO_POINTER if self.outlier_residual is None else self.outlier_residual
        return self.data, np.uint64(blocks), index, residual, np.int32(self.format.outliers)

    def _columns(self, x: Any) -> Array:
        """Check the activations, and return them as a CuPy array [..., n_in]."""
        if len(self.shape) != 2:
            raise BadOptionError(
                f"a tensor of shape {self.shape} is not a matrix; multiply its matrices one by one"
            )
        with cupy().cuda.Device(self.device):
            view = borrow(x, self.device)
        if view.dtype.name not in kernels.FLOATS:
            raise BadOptionError(
                f"activations of {view.dtype} cannot be multiplied; make them float16 or float32"
            )
        if view.ndim == 0 or view.shape[-1] != self.shape[1]:
            raise BadOptionError(
                f"activations of shape {view.shape} do not fit rows of {counted(self.shape[1], 'weight')}"
            )
        if not view.flags.c_contiguous:
            raise BadOptionError("activations are not contiguous; copy them: cupy.ascontiguousarray(x)")
        return view

    def _matvec(self, x: Array) -> Array:
        n_out, n_in = self.shape
        xp = cupy()
        with xp.cuda.Device(self.device):
            out = xp.empty((*x.shape[:-1], n_out), np.float32)
            if out.size:
                quants = xp.empty(x.shape, np.int8)
                scales = xp.empty((*x.shape[:-1], n_in // kernels.Q8, 2), np.float32)
                activations = kernels.quantize_q8_1(x.size, x.dtype.name)
                launch(activations, x, np.uint64(x.size // kernels.Q8), quants, scales)
                sizes = np.int32(n_out), np.int32(n_in // kernels.BLOCK)
                product = kernels.matvec(self.format, n_out, n_in, x.size // n_in)
                launch(product, *self._arguments, *sizes, quants, scales, out)
        return out

    def _matmul(self, x: Array) -> Array:
        n_out, n_in = self.shape
        xp = cupy()
        with xp.cuda.Device(self.device):
            out = xp.empty((*x.shape[:-1], n_out), np.float32)
            if out.size:
                halves = x.astype(np.float16, copy=x.data.ptr % 16 != 0)
                columns = x.size // n_in
                product = kernels.matmul(self.format, n_out, columns)
                sizes = np.int32(n_out), np.int32(n_in)
                launch(product, *self._arguments, *sizes, halves, np.int32(columns), out)
        return out


def upload(tensor: QuantizedTensor) -> CudaTensor:
    """Copy a quantized tensor to CuPy's current GPU. Its type is Q4_K, Q5_K, Q6_K, Q8_0 or Q4_HIFI.

    Raises :class:`BadOptionError` for other types, and :class:`UnavailableError` if there is no CuPy or no
    GPU of compute capability 7.5 or later.
    """
    if tensor.type.name not in kernels.TYPES:
        raise BadOptionError(
            f"{tensor.type} is not supported on CUDA; supported types are {', '.join(kernels.TYPES)}"
        )
    xp = cupy()
    check_capability()
    parts = [xp.asarray(part) for part in device_parts(tensor)]
    device = int(parts[0].device.id)
    return CudaTensor(tensor.shape, tensor.format, device, *parts)


def device_parts(tensor: QuantizedTensor) -> tuple[npt.NDArray[np.uint8], ...]:
    """Return the tensor's parts in the GPU's layout: that of the file, except for Q6_K (``blocks.cuh``)."""
    if tensor.type.name != "Q6_K":
        return tensor.parts
    blocks = tensor.parts[0].reshape(-1, tensor.type.block_bytes)
    spans = pairwise(Q6_K_PARTS)
    return (np.concatenate([blocks[:, start:end].reshape(-1) for start, end in spans]),)
