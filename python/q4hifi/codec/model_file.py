"""A GGUF model with its Q4_HIFI tensors whole, whichever layout they are stored in."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import BadFileError, Q4HifiError, UnsupportedModelError
from ..formats.layout import (
    BASE,
    FORK,
    FORK_COUNT_OFFSET,
    INDEX_SUFFIX,
    KEY_VERSION,
    RESIDUAL_SUFFIX,
    SPLIT,
    VERSION,
    Format,
)
from ..formats.types import MAX_OUTLIERS, Q4_HIFI, TensorType
from ..gguf_io.reader import GgufFile, TensorInfo
from .quantized_tensor import QuantizedTensor
from .rows import Parts, decode

CHUNK_WEIGHTS = 4 << 20
"""Weights that are read, computed and written at a time: what bounds the memory."""


@dataclass(frozen=True, slots=True)
class ModelTensor:
    """A tensor as a model means it; ``parts`` are the tensors that store it.

    ``shape`` has the row length first.
    """

    name: str
    shape: tuple[int, ...]
    format: Format
    parts: tuple[TensorInfo, ...]

    @property
    def type(self) -> TensorType:
        """Its type; Q4_HIFI for one with companions."""
        return self.format.type

    @property
    def outliers(self) -> int:
        """Outliers a block; 0 except for Q4_HIFI."""
        return self.format.outliers

    @property
    def row_length(self) -> int:
        """Weights in a row; 1 for a single number, whose shape is ()."""
        return self.shape[0] if self.shape else 1

    @property
    def n_rows(self) -> int:
        """Number of rows, over all further dimensions."""
        return prod(self.shape[1:])

    @property
    def rows_per_matrix(self) -> int:
        """Number of rows of each matrix (expert) of a stack: the second dimension."""
        return self.shape[1] if len(self.shape) > 1 else 1

    @property
    def n_elements(self) -> int:
        """Number of weights."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of data in the file, companions included."""
        return sum(part.nbytes for part in self.parts)


@dataclass(frozen=True, slots=True)
class RowRange:
    """Rows ``first`` to ``first + count`` of a tensor, counted over all of its matrices (experts).

    ``matrix`` is the number of the matrix in which the first row lies.
    """

    tensor: ModelTensor
    matrix: int
    first: int
    count: int


class ModelFile(Mapping[str, QuantizedTensor]):
    """An open GGUF model, by tensor name; a context manager.

    Attributes: ``metadata`` (key -> value), ``tensors`` (name -> :class:`ModelTensor`, no data read),
    ``layout`` ("split", "fork" or None without Q4_HIFI tensors), ``paths``, ``n_bytes`` of all files.
    Indexing reads a whole tensor; :meth:`read_rows` reads a piece.
    """

    def __init__(self, gguf: GgufFile) -> None:
        """Use :func:`q4hifi.open`."""
        self.gguf = gguf
        self.metadata: Mapping[str, Any] = gguf.metadata
        self.paths: tuple[Path, ...] = gguf.paths
        _check_version(self)
        self.n_bytes: int = gguf.n_bytes
        self.tensors: Mapping[str, ModelTensor] = {t.name: t for t in _model_tensors(self)}
        hifi = [t.format.layout for t in self.tensors.values() if t.type == Q4_HIFI]
        self.layout: str | None = hifi[0] if hifi else None

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> ModelFile:
        """Open a model by its file or by any of its shards.

        Raises :class:`BadFileError` for a file that is not a sound GGUF, and
        :class:`UnsupportedModelError` for types and versions that are not known.
        """
        gguf = GgufFile.open(path)
        try:
            return cls(gguf)
        except BaseException:
            gguf.close()
            raise

    def __getitem__(self, name: str) -> QuantizedTensor:
        """Read a whole tensor. Raises KeyError for an unknown name."""
        tensor = self.tensors[name]
        parts = self.read_rows(RowRange(tensor, 0, 0, tensor.n_rows))
        return QuantizedTensor.from_parts(parts, tensor.format, tensor.shape[::-1])

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def read_rows(self, rows: RowRange) -> Parts:
        """Read rows as bytes, one uint8 array for each part of the tensor's format."""
        tensor = rows.tensor
        parts = []
        sizes = tensor.format.part_row_bytes(tensor.row_length)
        for part, size in zip(tensor.parts, sizes, strict=True):
            data = np.empty(rows.count * size, np.uint8)
            if data.size:
                self.gguf.read_into(part, rows.first * size, data)
            parts.append(data)
        return tuple(parts)

    def dequantize_rows(self, rows: RowRange, *, threads: int = 0) -> npt.NDArray[np.float32]:
        """Read and decode rows to float32 [rows, row_length]."""
        tensor, parts = rows.tensor, self.read_rows(rows)
        with self.errors_at(tensor.name):
            return decode(parts, tensor.format, tensor.row_length, threads=threads, first_row=rows.first)

    def errors(self) -> ErrorsAt:
        """Context in which q4hifi's errors get the file in front."""
        return ErrorsAt(f"{self.paths[0]}: ")

    def errors_at(self, name: str) -> ErrorsAt:
        """Context in which q4hifi's errors get the file and the tensor's name in front."""
        return ErrorsAt(f"{self.paths[0]}: tensor {name}: ")

    def close(self) -> None:
        """Close the files."""
        self.gguf.close()

    def __enter__(self) -> ModelFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def row_ranges(
    tensor: ModelTensor, weights: int = CHUNK_WEIGHTS, *, by_matrix: bool = False
) -> Iterator[RowRange]:
    """Cut a tensor into pieces of about ``weights`` weights; one without elements has none.

    With ``by_matrix`` no piece lies in two matrices (experts).
    """
    if not tensor.n_elements:
        return
    per_matrix = tensor.rows_per_matrix
    stretch = per_matrix if by_matrix else tensor.n_rows
    step = max(1, weights // tensor.row_length)
    for start in range(0, tensor.n_rows, stretch):
        for row in range(start, start + stretch, step):
            yield RowRange(tensor, row // per_matrix, row, min(step, start + stretch - row))


@dataclass(frozen=True, slots=True)
class ErrorsAt:
    """Context in which q4hifi's errors get ``prefix`` in front."""

    prefix: str

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Q4HifiError) and not str(error).startswith(self.prefix):
            file, colon, _ = self.prefix.partition(": ")  # which the error may name already
            raise type(error)(self.prefix + str(error).removeprefix(file + colon)) from error


def _check_version(model: ModelFile) -> None:
    version = model.metadata.get(KEY_VERSION, VERSION)
    if version != VERSION:
        raise UnsupportedModelError(
            f"{model.paths[0]}: {KEY_VERSION} is {version!r:.80}, and this q4hifi knows {VERSION}; update it"
        )


def _model_tensors(model: ModelFile) -> Iterator[ModelTensor]:
    stored = model.gguf.tensors
    for info in stored.values():
        owner, suffix = _owner(info.name)
        if suffix and owner in stored:
            continue  # comes with its base
        with model.errors_at(info.name):
            yield _model_tensor(model, info)


def _owner(name: str) -> tuple[str, str]:
    for suffix in (INDEX_SUFFIX, RESIDUAL_SUFFIX):
        if name.endswith(suffix):
            return name.removesuffix(suffix), suffix
    return name, ""


def _model_tensor(model: ModelFile, info: TensorInfo) -> ModelTensor:
    stored = model.gguf.tensors
    if info.type == Q4_HIFI:
        form = Format(Q4_HIFI, _fork_outliers(model, info), FORK)
        return ModelTensor(info.name, info.shape, form, (info,))
    companions = [stored.get(info.name + suffix) for suffix in (INDEX_SUFFIX, RESIDUAL_SUFFIX)]
    if companions == [None, None]:
        return ModelTensor(info.name, info.shape, Format(info.type), (info,))
    index, residual = companions
    if index is None or residual is None:
        missing = RESIDUAL_SUFFIX if residual is None else INDEX_SUFFIX
        raise BadFileError(f"it has outliers, but there is no tensor {info.name}{missing}")
    outliers = index.row_length
    if info.type != BASE or not 1 <= outliers <= MAX_OUTLIERS:
        raise BadFileError(f"it has outliers, but is {info.type} with {outliers} of them a block")
    form = Format(Q4_HIFI, outliers, SPLIT)
    expected = form.stored(info.name, info.shape)
    for got, want in zip((info, index, residual), expected, strict=True):
        if got.type != want.type or _full(got.shape) != _full(want.shape):
            raise BadFileError(
                f"its companion {got.name} is {got.type} of shape {list(got.shape)},"
                f" not {want.type} of shape {list(want.shape)}"
            )
    return ModelTensor(info.name, info.shape, form, (info, index, residual))


def _fork_outliers(model: ModelFile, info: TensorInfo) -> int:
    """What the first block holds; every block of a tensor holds as many."""
    if not info.n_elements:
        return 0
    count = np.empty(1, np.uint8)
    model.gguf.read_into(info, FORK_COUNT_OFFSET, count)
    if count[0] > MAX_OUTLIERS:
        raise BadFileError(f"block 0: {count[0]} outliers, more than the {MAX_OUTLIERS} that fit")
    return int(count[0])


def _full(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape with all four dimensions, as ggml sees it."""
    return shape + (1,) * (4 - len(shape))
