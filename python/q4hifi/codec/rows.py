"""Encodes, decodes, compares and multiplies rows of weights that are stored as bytes.

A :class:`~q4hifi.formats.layout.Format` says how rows are stored. Rows of Q4_HIFI in the split layout have
three parts (base, outlier indices, outlier residuals); all other rows have one. A part is a flat uint8 array
of whole rows. The Rust core does the work; types that it does not decode are decoded by the ``gguf`` package.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .. import _core
from ..errors import BadFileError, BadOptionError, NotFiniteError, UnsupportedModelError
from ..formats.gguf_constants import GGMLQuantizationType
from ..formats.layout import BASE, FORK, FORK_COUNT_OFFSET, SPLIT, Format
from ..formats.types import F32, MAX_OUTLIERS, Q4_HIFI, TensorType
from ..wording import counted
from .core_errors import core_errors
from .input_correlations import Hessian

LONG_ROW = 256
"""Weights. Shorter rows of unquantized types are joined before they are encoded: the core spends a fixed time
on each row."""

Bytes = npt.NDArray[np.uint8]
Parts = tuple[Bytes, ...]


@dataclass(frozen=True, slots=True)
class ErrorSums:
    """Sums over encoded weights: ``error`` is Σ c (w' - w)², ``reference`` is Σ c w².

    w is a weight before and w' after encoding. c is the importance of its column, or 1 without an importance.
    """

    error: float = 0.0
    reference: float = 0.0

    def __add__(self, other: ErrorSums) -> ErrorSums:
        return ErrorSums(self.error + other.error, self.reference + other.reference)

    def __mul__(self, factor: float) -> ErrorSums:
        return ErrorSums(self.error * factor, self.reference * factor)

    @property
    def relative(self) -> float:
        """The ratio error / reference; 0 where all weights (or their importances) are 0."""
        return self.error / self.reference if self.reference else 0.0


def decode(
    parts: Parts, form: Format, row_length: int, *, threads: int = 0, first_row: int = 0
) -> npt.NDArray[np.float32]:
    """Decode rows to float32 [rows, row_length].

    ``first_row`` is the number of the first row in its tensor, for error messages. ``threads`` = 0 uses one
    thread per core, here and in all functions of this module. Raises :class:`BadFileError` where the indices
    of Q4_HIFI outliers are not increasing, and :class:`UnsupportedModelError` for a type that cannot be
    decoded.
    """
    if not parts[0].size:
        return np.empty((0, row_length), np.float32)
    if not form.type.codec:
        return _decode_by_gguf(parts[0], form.type, row_length)
    with core_errors(BadFileError, row_length=row_length, first_row=first_row):
        if form.is_fork:
            flat = _core.dequantize_hifi_fork(parts[0], row_length, threads)
        elif form.is_split:
            base, index, residual = parts
            flat = _core.dequantize_hifi(base, index, residual, row_length, form.outliers, threads)
        else:
            flat = _core.dequantize(parts[0], _codec_type(form).id, row_length, threads)
    return flat.reshape(-1, row_length)


def encode(
    parts: Parts,
    source: Format,
    target: Format,
    row_length: int,
    importance: npt.NDArray[np.float32] | None = None,
    *,
    refine: bool = False,
    inputs: Hessian | None = None,
    threads: int = 0,
    first_row: int = 0,
) -> tuple[Parts, ErrorSums]:
    """Encode rows from the format ``source`` to the format ``target``; return the parts and the error.

    ``importance``, float32 [row_length], weights the squared error of each column. The bytes of ggml's types
    equal those that ggml writes. With ``refine``, blocks of a :attr:`~TensorType.refinable` type are searched
    further for a smaller error. With ``refine`` and ``inputs``, rows of a format that
    :attr:`~Format.takes_feedback` are encoded with error feedback: each weight also compensates the errors of
    the weights that were encoded before it (GPTQ, QuIP's LDLQ; ``src/feedback``). Other formats ignore
    ``inputs``. ``first_row`` is the number of the first row in its tensor, for error messages.

    Raises :class:`NotFiniteError` for NaN and infinity, with the position, and for weights that are too large
    for the target; :class:`BadOptionError` for lengths that do not fit; and the errors of :func:`decode`.
    """
    parts, source = _flat(parts, source, row_length, threads, first_row)
    data, kind = parts[0], _codec_type(source).id

    def encoded(rows: Bytes, length: int, first: int) -> tuple[Parts, ErrorSums]:
        with core_errors(BadOptionError, row_length=row_length, first_row=first):
            if target.is_fork:
                *out, sums = _core.quantize_hifi_fork(
                    rows, kind, length, target.outliers, importance, threads, refine
                )
            elif target.is_split:
                *out, sums = _core.quantize_hifi(
                    rows, kind, length, target.outliers, importance, threads, refine, inputs
                )
            else:
                *out, sums = _core.quantize(
                    rows, kind, length, _codec_type(target).id, importance, threads, refine, inputs
                )
        if not np.isfinite(sums[0]):
            what = "weights" if importance is None else "weights or importances"
            raise NotFiniteError(f"its {what} are too large for {target.type}; keep it in a wider type")
        return tuple(out), ErrorSums(*sums)

    joined = 1  # rows that are encoded as one
    if importance is None and not (source.type.quantized or target.type.quantized):
        joined = max(1, LONG_ROW // row_length)
    row_bytes = source.type.row_bytes(row_length)
    split = data.size // row_bytes // joined * joined * row_bytes
    if split == 0 or split == data.size:
        return encoded(data, row_length * (joined if split else 1), first_row)
    head, head_sums = encoded(data[:split], row_length * joined, first_row)
    tail, tail_sums = encoded(data[split:], row_length, first_row + split // row_bytes)
    return tuple(map(np.concatenate, zip(head, tail, strict=True))), head_sums + tail_sums


def errors(
    parts: Parts,
    source: Format,
    decoded: npt.NDArray[np.float32],
    weights: npt.NDArray[np.float32] | None,
    *,
    threads: int = 0,
) -> ErrorSums:
    """Return the error of ``decoded``, float32 [rows, row_length], compared with rows of format ``source``.

    ``weights``, float32 [row_length], weights the squared error of each column. It may differ from the
    importance with which the rows were encoded. Raises as :func:`decode` does.
    """
    row_length = decoded.shape[-1]
    parts, source = _flat(parts, source, row_length, threads, 0)
    flat = np.ascontiguousarray(decoded, np.float32).reshape(-1)
    with core_errors(BadFileError, row_length=row_length):
        sums = _core.errors(parts[0], _codec_type(source).id, row_length, flat, weights, threads)
    return ErrorSums(*sums)


def multiply(
    parts: Parts,
    form: Format,
    row_length: int,
    activations: npt.NDArray[np.float32],
    *,
    threads: int = 0,
) -> npt.NDArray[np.float32]:
    """Return ``activations @ W.T``, float32 [columns, rows], where W are the decoded rows.

    ``activations`` is float32 [columns, row_length]. They are quantized to eight bits, unless the rows are
    floats. Raises :class:`UnsupportedModelError` for a type that the Rust core does not decode, and
    :class:`BadFileError` for invalid blocks of the fork layout.
    """
    if not form.type.codec:
        raise UnsupportedModelError(f"q4hifi cannot multiply by {form.type}; dequantize it first")
    flat = np.ascontiguousarray(activations, np.float32).reshape(-1)
    if form.is_fork:
        counts = parts[0].reshape(-1, Q4_HIFI.block_bytes)[:, FORK_COUNT_OFFSET]
        form = Format(form.type, min(int(counts.max()), MAX_OUTLIERS))
        parts = relayout(parts, Format(form.type, form.outliers, FORK), SPLIT, row_length)
    with core_errors(BadFileError, row_length=row_length):
        if form.is_split:
            base, index, residual = parts
            out = _core.matmul_hifi(base, index, residual, row_length, form.outliers, flat, threads)
        else:
            out = _core.matmul(parts[0], _codec_type(form).id, row_length, flat, threads)
    return out.reshape(len(activations), -1)


def check_finite(
    parts: Parts, form: Format, row_length: int, *, threads: int = 0, first_row: int = 0
) -> None:
    """Raise :class:`NotFiniteError` where a weight is NaN or infinite.

    Rows that cannot be decoded are not checked. Raises :class:`BadFileError` where the indices of Q4_HIFI
    outliers are not increasing.
    """
    if not form.type.decodable:
        return
    parts, form = _flat(parts, form, row_length, threads, first_row)
    with core_errors(BadFileError, row_length=row_length, first_row=first_row):
        _core.check_finite(parts[0], _codec_type(form).id, row_length, threads)


def base_of(parts: Parts, form: Format, row_length: int, *, first_row: int = 0) -> Bytes:
    """Return the Q4_K part of Q4_HIFI rows, without the outliers."""
    if not form.is_fork:
        return parts[0]
    return relayout(parts, form, SPLIT, row_length, first_row=first_row)[0]


def relayout(parts: Parts, source: Format, layout: str, row_length: int, *, first_row: int = 0) -> Parts:
    """Convert Q4_HIFI rows of the format ``source`` to another layout, "split" or "fork".

    In the split layout all blocks have the same number of outliers, so blocks with fewer get outliers with a
    residual of 0. Raises :class:`BadFileError` for invalid blocks.
    """
    if source.layout == layout:
        return parts
    with core_errors(BadFileError, row_length=row_length, first_row=first_row):
        if source.is_fork:
            split = _core.fork_to_split(parts[0], row_length, source.outliers)
            return split if source.outliers else split[:1]
        base, index, residual = parts if source.is_split else (parts[0], _NONE, _NONE)
        return (_core.split_to_fork(base, index, residual, row_length, source.outliers),)


_NONE = np.empty(0, np.uint8)


def _flat(parts: Parts, form: Format, row_length: int, threads: int, first_row: int) -> tuple[Parts, Format]:
    """Return rows in a format that the core reads as a source: Q4_HIFI and its unknown types become F32."""
    if form.type.codec and not (form.is_split or form.is_fork):
        return parts, form
    weights = decode(parts, form, row_length, threads=threads, first_row=first_row)
    return (weights.reshape(-1).view(np.uint8),), Format(F32)


@dataclass(frozen=True, slots=True)
class CpuFeatures:
    """The instruction sets that the Rust core can use on this CPU (``available``, slowest first).

    ``active`` is the one in use: the last, or the one that the environment variable ``Q4HIFI_ISA`` names. The
    bytes of quantized weights do not depend on it.
    """

    active: str
    available: tuple[str, ...]


def cpu_features() -> CpuFeatures:
    """Return the instruction sets that the Rust core can use on this CPU, and the one in use.

    Raises :class:`BadOptionError` where ``Q4HIFI_ISA`` names one that is not available.
    """
    with core_errors(BadFileError):
        active, available = _core.cpu_features()
    return CpuFeatures(active, tuple(available))


def check_block_fit(kind: TensorType, row_length: int) -> None:
    """Raise :class:`BadOptionError` where rows of this length do not consist of whole blocks of ``kind``."""
    if not kind.divides(row_length):
        raise BadOptionError(
            f"rows of {counted(row_length, 'weight')} cannot be stored as {kind}, whose blocks hold"
            f" {kind.block_size}"
        )


def _codec_type(form: Format) -> TensorType:
    """Return the type of the rows' first part: Q4_K for Q4_HIFI."""
    return BASE if form.type == Q4_HIFI else form.type


def _decode_by_gguf(data: Bytes, kind: TensorType, row_length: int) -> npt.NDArray[np.float32]:
    """Decode rows of a type that the core does not decode."""
    if not kind.decodable:
        raise UnsupportedModelError(f"{kind} is a type that q4hifi cannot decode")
    from gguf.quants import dequantize  # imported here because it is slow to load and rarely needed

    rows = data.reshape(-1, kind.row_bytes(row_length))
    with np.errstate(all="ignore"):  # check_finite reports weights from scales that are NaN or infinite
        return dequantize(rows, GGMLQuantizationType(kind.id)).astype(np.float32, copy=False)
