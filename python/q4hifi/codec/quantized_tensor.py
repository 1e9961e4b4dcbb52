"""Quantizes numpy arrays: :func:`quantize`, :func:`dequantize`, :class:`QuantizedTensor`.

Shapes are in numpy's order here: the row length is the last dimension.
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
from ..wording import counted
from .rows import Bytes, Parts, check_block_fit, decode, encode, multiply


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedTensor:
    """Quantized weights, as the bytes of blocks.

    ``shape`` is the shape of the weights, row length last, or () for a single value. ``data`` is uint8
    [..., bytes per row].

    For Q4_HIFI in the split layout, ``data`` holds Q4_K blocks. With n = row length / 256 blocks per row and
    N outliers per block, ``outlier_index`` is uint8 [..., n, N], the indices of the outliers in their block,
    strictly increasing. ``outlier_residual`` is float16 [..., n, N], added to the decoded weights at these
    indices. Both are None for all other types, and for ``layout`` "fork", whose blocks contain the outliers.
    """

    data: Bytes
    type: TensorType
    shape: tuple[int, ...]
    outlier_index: npt.NDArray[np.uint8] | None = None
    outlier_residual: npt.NDArray[np.float16] | None = None
    layout: str = SPLIT

    @classmethod
    def from_parts(cls, parts: Parts, form: Format, shape: tuple[int, ...]) -> QuantizedTensor:
        """Make a tensor of the bytes of a file: a flat uint8 array for each part of ``form``.

        ``shape`` is the shape of the weights, row length last.
        """
        rows, row_length = shape[:-1], _row_length(shape)
        data = parts[0].reshape(*rows, form.part_row_bytes(row_length)[0])
        if not form.is_split:
            return cls(data, form.type, shape, layout=form.layout)
        blocks = (*rows, row_length // Q4_HIFI.block_size, form.outliers)
        index, residual = parts[1].reshape(blocks), parts[2].view(np.float16).reshape(blocks)
        return cls(data, form.type, shape, index, residual)

    @property
    def outliers(self) -> int:
        """Outliers per block; 0 if the outliers are not in arrays of their own."""
        return 0 if self.outlier_index is None else self.outlier_index.shape[-1]

    @property
    def format(self) -> Format:
        """How the rows are stored."""
        return Format(self.type, self.outliers, self.layout)

    @property
    def parts(self) -> Parts:
        """The rows as a file stores them: a flat uint8 array for each part of the format."""
        arrays = (self.data, self.outlier_index, self.outlier_residual)
        return tuple(np.ascontiguousarray(a).reshape(-1).view(np.uint8) for a in arrays if a is not None)

    @property
    def nbytes(self) -> int:
        """Bytes of blocks and outliers together."""
        return sum(part.nbytes for part in self.parts)

    @property
    def bits_per_weight(self) -> float:
        """Bits of storage per weight, outliers included."""
        return 8 * self.nbytes / max(1, prod(self.shape))

    def dequantize(self, *, threads: int | None = None) -> npt.NDArray[np.float32]:
        """Decode the weights to float32 of :attr:`shape`; ``threads`` None or 0 uses one thread per core.

        Raises :class:`BadFileError` where outlier indices are not increasing, and
        :class:`UnsupportedModelError` for a type that cannot be decoded.
        """
        weights = decode(self.parts, self.format, _row_length(self.shape), threads=thread_count(threads))
        return weights.reshape(self.shape)

    def matmul(self, x: npt.NDArray[np.floating], *, threads: int | None = None) -> npt.NDArray[np.float32]:
        """Multiply activations by the matrix: ``x @ dequantize().T``, but without decoding the matrix.

        The tensor is a matrix [n_out, n_in], ``x`` a float array [..., n_in]; the result is float32 [...,
        n_out]. Activations are quantized to eight bits, as in ggml, unless the weights are floats. The last
        digits of the result differ between few and many rows of ``x``, but never between instruction sets or
        values of ``threads`` (None or 0 uses one thread per core).

        Raises :class:`BadOptionError` for shapes and dtypes that do not fit, and
        :class:`UnsupportedModelError` for a type that the Rust core does not decode.
        """
        if len(self.shape) != 2:
            raise BadOptionError(
                f"a tensor of shape {self.shape} is no matrix; multiply its matrices one by one"
            )
        if x.dtype.kind != "f":
            raise BadOptionError(f"activations of {x.dtype} cannot be multiplied; make them float32")
        n_out, n_in = self.shape
        if x.ndim == 0 or x.shape[-1] != n_in:
            raise BadOptionError(
                f"activations of shape {x.shape} do not fit rows of {counted(n_in, 'weight')}"
            )
        columns = x.astype(np.float32, copy=False).reshape(-1, n_in)
        if not columns.size or not n_out:
            return np.zeros((*x.shape[:-1], n_out), np.float32)
        out = multiply(self.parts, self.format, n_in, columns, threads=thread_count(threads))
        return out.reshape(*x.shape[:-1], n_out)


def _row_length(shape: tuple[int, ...]) -> int:
    """Return the weights per row of a tensor of this shape, row length last."""
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
    """Quantize an array along its last axis.

    ``array`` is float32, float16, bfloat16 (of ``ml_dtypes``) or float64 [..., row_length]. ``importance``
    holds the weight of each column's squared error, not negative: [row_length], or for a stack of matrices a
    row per matrix, [..., row_length] with the leading dimensions array.shape[:-2]. ``outliers`` (0 to 32,
    Q4_HIFI only) is the number of weights of each 256 that are kept in float16. ``threads`` None or 0 uses
    one thread per core.

    The bytes of every type but Q4_HIFI equal those of ggml. With ``refine``, blocks of a
    :attr:`~q4hifi.TensorType.refinable` type are searched further and have a smaller error
    (:func:`q4hifi.quantize_file`).

    Raises :class:`BadOptionError` for shapes, dtypes and types that do not fit, and :class:`NotFiniteError`
    for NaN, infinity and weights that are too large for the type.

    Examples
    --------
    >>> import numpy as np, q4hifi
    >>> weights = np.random.default_rng(0).standard_normal((2, 512), np.float32)
    >>> q = q4hifi.quantize(weights, "Q4_K")
    >>> q.data.shape, q.bits_per_weight  # bytes of each row: two blocks of 144
    ((2, 288), 4.5)
    >>> bool(np.abs(q.dequantize() - weights).max() < 0.25)
    True
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
    """Decode the bytes of whole rows to float32 of ``shape``, whose last dimension is the row length.

    The result equals that of ``gguf.quants.dequantize``. Q4_HIFI bytes must have the fork layout (blocks of
    244 bytes); decode the split layout with :meth:`QuantizedTensor.dequantize`. ``threads`` None or 0 uses
    one thread per core.

    Raises :class:`BadOptionError` where the number of bytes does not fit type and shape,
    :class:`BadFileError` for invalid Q4_HIFI blocks, and :class:`UnsupportedModelError` for a type that
    cannot be decoded.

    Examples
    --------
    >>> import numpy as np, q4hifi
    >>> block = np.float16(0.5).tobytes() + bytes(range(32))  # Q8_0: a scale and 32 quants of 8 bits
    >>> q4hifi.dequantize(block, "Q8_0", (1, 32))[0, :4]
    array([0. , 0.5, 1. , 1.5], dtype=float32)
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
        raise BadOptionError(
            f"`data` has {counted(flat.size, 'byte')}, but {kind} of shape {shape} takes {expected}"
        )
    return decode((flat,), form, shape[-1], threads=thread_count(threads)).reshape(shape)


_SOURCES = {"float32": F32, "float16": F16, "bfloat16": BF16}


def _source_of(array: npt.NDArray[np.floating]) -> tuple[Format, Bytes]:
    """Return the array's format and bytes, without a copy where it is contiguous."""
    if array.ndim == 0 or array.shape[-1] == 0:
        raise BadOptionError(f"an array of shape {array.shape} has no rows to quantize")
    if array.dtype.kind == "f" and array.dtype.itemsize == 8:
        with np.errstate(over="ignore"):  # the encoder raises an error for weights that become infinite
            array = array.astype(np.float32)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    kind = _SOURCES.get(array.dtype.name)
    if kind is None:
        raise BadOptionError(f"an array of {array.dtype} cannot be quantized; make it float32 or float16")
    return Format(kind), np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _importance_rows(
    importance: npt.NDArray[np.floating] | None, shape: tuple[int, ...]
) -> list[npt.NDArray[np.float32] | None]:
    """Return the importance of each matrix of a stack, or a list of one that is for all matrices."""
    if importance is None:
        return [None]
    rows = np.ascontiguousarray(importance, np.float32)
    if rows.shape not in {shape[-1:], (*shape[:-2], shape[-1])}:
        raise BadOptionError(f"importance has shape {rows.shape}, but the array has {shape}")
    return list(rows.reshape(-1, shape[-1])) or [None]
