"""Quantizing numpy arrays: :func:`quantize`, :func:`dequantize`, :class:`QuantizedTensor`.

Shapes are numpy's, the row length last.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from ..errors import BadOptionError
from ..formats.layout import FORK, SPLIT, Format
from ..formats.types import BF16, F16, F32, MAX_OUTLIERS, Q4_HIFI, TensorType, tensor_type
from ..threads import thread_count
from .rows import Bytes, Parts, check_block_fit, decode, encode, multiply


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedTensor:
    """Weights as blocks.

    ``shape`` is that of the weights, row length last, () for a single number; ``data`` is uint8
    [..., bytes of a row]. For Q4_HIFI in the split layout, ``data`` holds the Q4_K base, and with
    n = row length / 256 blocks a row and N outliers a block, ``outlier_index`` is uint8 [..., n, N],
    strictly increasing, and ``outlier_residual`` float16 [..., n, N], to be added to the base at these
    places. Both are None for every other type, and for ``layout`` "fork", whose blocks hold everything.
    """

    data: Bytes
    type: TensorType
    shape: tuple[int, ...]
    outlier_index: npt.NDArray[np.uint8] | None = None
    outlier_residual: npt.NDArray[np.float16] | None = None
    layout: str = SPLIT

    @classmethod
    def from_parts(cls, parts: Parts, form: Format, shape: tuple[int, ...]) -> QuantizedTensor:
        """Make one of rows as they lie in a file, one flat uint8 array a part."""
        rows, row_length = shape[:-1], _row_length(shape)
        data = parts[0].reshape(*rows, form.part_row_bytes(row_length)[0])
        if not form.is_split:
            return cls(data, form.type, shape, layout=form.layout)
        blocks = (*rows, row_length // Q4_HIFI.block_size, form.outliers)
        index, residual = parts[1].reshape(blocks), parts[2].view(np.float16).reshape(blocks)
        return cls(data, form.type, shape, index, residual)

    @property
    def outliers(self) -> int:
        """Outliers a block; 0 where there are no companions."""
        return 0 if self.outlier_index is None else self.outlier_index.shape[-1]

    @property
    def format(self) -> Format:
        """How the rows are stored."""
        return Format(self.type, self.outliers, self.layout)

    @property
    def parts(self) -> Parts:
        """The rows as they lie in a file, one flat uint8 array a part."""
        arrays = (self.data, self.outlier_index, self.outlier_residual)
        return tuple(np.ascontiguousarray(a).reshape(-1).view(np.uint8) for a in arrays if a is not None)

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks and their companions."""
        return sum(part.nbytes for part in self.parts)

    @property
    def bits_per_weight(self) -> float:
        """Bits of storage a weight."""
        return 8 * self.nbytes / max(1, prod(self.shape))

    def dequantize(self, *, threads: int | None = None) -> npt.NDArray[np.float32]:
        """Decode to float32 of :attr:`shape`; ``threads`` None or 0 is one per core."""
        weights = decode(self.parts, self.format, _row_length(self.shape), threads=thread_count(threads))
        return weights.reshape(self.shape)

    def matmul(self, x: npt.NDArray[np.floating], *, threads: int | None = None) -> npt.NDArray[np.float32]:
        """Multiply activations by the matrix: ``x @ dequantize().T`` without decoding it.

        The tensor is a matrix [n_out, n_in]; ``x`` is a float array [..., n_in], and the result
        float32 [..., n_out]. Activations are quantized to eight bits on the way, as in ggml, unless the
        weights are floats. The last digits of the result depend on whether there are few columns or many,
        never on the instruction set or on ``threads`` (None or 0 is one per core).

        Raises :class:`BadOptionError` for shapes and dtypes that do not fit, and
        :class:`UnsupportedModelError` for a type without codec.
        """
        if len(self.shape) != 2:
            raise BadOptionError(
                f"a tensor of shape {self.shape} is no matrix; multiply its matrices one by one"
            )
        if x.dtype.kind != "f":
            raise BadOptionError(f"activations of {x.dtype} cannot be multiplied; make them float32")
        n_out, n_in = self.shape
        if x.ndim == 0 or x.shape[-1] != n_in:
            raise BadOptionError(f"activations of shape {x.shape} do not fit rows of {n_in} weights")
        columns = x.astype(np.float32, copy=False).reshape(-1, n_in)
        if not columns.size or not n_out:
            return np.zeros((*x.shape[:-1], n_out), np.float32)
        out = multiply(self.parts, self.format, n_in, columns, threads=thread_count(threads))
        return out.reshape(*x.shape[:-1], n_out)


def _row_length(shape: tuple[int, ...]) -> int:
    """Weights in a row of that shape, row length last."""
    return shape[-1] if shape else 1


def quantize(
    array: npt.NDArray[np.floating],
    type: str | TensorType,
    *,
    importance: npt.NDArray[np.floating] | None = None,
    outliers: int = 0,
    refine: bool = False,
    threads: int | None = None,
) -> QuantizedTensor:
    """Quantize an array, row by row along its last axis.

    ``array`` is float32, float16, bfloat16 (of ``ml_dtypes``) or float64 [..., row length];
    ``importance`` is [row length], or [..., row length] with one row for each matrix of a stack
    (array.shape[:-2]): non-negative weights of the squared error of each column. ``outliers``, 0 to
    32, is for Q4_HIFI: how many weights of each 256 are kept in float16. ``threads`` None or 0 is one per
    core. The bytes of every type but Q4_HIFI equal ggml's, unless ``refine`` asks for blocks of Q4_K, Q5_K,
    Q6_K and Q4_HIFI with less error (:func:`q4hifi.quantize_file`).

    Raises :class:`BadOptionError` for shapes, dtypes and types that do not fit and
    :class:`NotFiniteError` for NaN, infinity and weights too large for the type.
    """
    kind = tensor_type(type)
    source, flat = _source_of(array)
    row_length = array.shape[-1]
    if not 0 <= outliers <= MAX_OUTLIERS or (outliers and kind != Q4_HIFI):
        raise BadOptionError(f"outliers is {outliers} for {kind}: 0 to {MAX_OUTLIERS}, and only with Q4_HIFI")
    check_block_fit(kind, row_length)
    target = Format(kind, outliers)
    matrices = _importance_rows(importance, array.shape)
    per_matrix = flat.size // max(1, len(matrices))
    encoded = [
        encode(
            (flat[i * per_matrix : (i + 1) * per_matrix],),
            source,
            target,
            row_length,
            w,
            refine=refine,
            threads=thread_count(threads),
        )[0]
        for i, w in enumerate(matrices)
    ]
    parts = encoded[0] if len(encoded) == 1 else tuple(map(np.concatenate, zip(*encoded, strict=True)))
    return QuantizedTensor.from_parts(parts, target, array.shape)


def dequantize(
    data: bytes | bytearray | memoryview | npt.NDArray[np.uint8],
    type: str | TensorType,
    shape: tuple[int, ...],
    *,
    threads: int | None = None,
) -> npt.NDArray[np.float32]:
    """Decode the bytes of whole rows to float32 of ``shape``, the row length last.

    Q4_HIFI is read as 244-byte blocks (the fork layout); a tensor of the split layout is a
    :class:`QuantizedTensor`, which has a method for it. Equal to ``gguf.quants.dequantize``.
    Raises :class:`BadOptionError` where the bytes are not as many as type and shape ask for, and
    :class:`UnsupportedModelError` for a type that cannot be decoded.
    """
    kind = tensor_type(type, codec=False)
    flat = np.frombuffer(data, np.uint8) if not isinstance(data, np.ndarray) else data
    flat = np.ascontiguousarray(flat).reshape(-1).view(np.uint8)
    if not shape or min(shape) < 0 or not shape[-1]:
        raise BadOptionError(f"shape is {shape}; it needs a row length above zero, and nothing negative")
    check_block_fit(kind, shape[-1])
    form = Format(kind, MAX_OUTLIERS, FORK)
    expected = form.part_row_bytes(shape[-1])[0] * prod(shape[:-1])
    if flat.size != expected:
        raise BadOptionError(f"{flat.size} bytes, but {kind} of shape {shape} takes {expected}")
    return decode((flat,), form, shape[-1], threads=thread_count(threads)).reshape(shape)


_SOURCES = {"float32": F32, "float16": F16, "bfloat16": BF16}


def _source_of(array: npt.NDArray[np.floating]) -> tuple[Format, Bytes]:
    """The array's format and its bytes, without a copy where it is contiguous."""
    if array.ndim == 0 or array.shape[-1] == 0:
        raise BadOptionError(f"an array of shape {array.shape} has no rows to quantize")
    if array.dtype.kind == "f" and array.dtype.itemsize == 8:
        with np.errstate(over="ignore"):  # what becomes infinite is refused, with its place
            array = array.astype(np.float32)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    kind = _SOURCES.get(array.dtype.name)
    if kind is None:
        raise BadOptionError(f"an array of {array.dtype} cannot be quantized; make it float32 or float16")
    return Format(kind), np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _importance_rows(
    importance: npt.NDArray[np.floating] | None, shape: tuple[int, ...]
) -> list[npt.NDArray[np.float32] | None]:
    """One row for each matrix of a stack, or a single one for all."""
    if importance is None:
        return [None]
    rows = np.ascontiguousarray(importance, np.float32)
    if rows.shape not in {shape[-1:], (*shape[:-2], shape[-1])}:
        raise BadOptionError(f"importance has shape {rows.shape}, but the array has {shape}")
    return list(rows.reshape(-1, shape[-1])) or [None]
