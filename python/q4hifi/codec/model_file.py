"""A GGUF model in which a Q4_HIFI tensor is one tensor, whatever the layout in which it is stored."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import BadFileError, Q4HifiError, UnsupportedModelError
from ..files.closing import Closing
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
    ShapedTensor,
)
from ..formats.types import MAX_OUTLIERS, Q4_HIFI, TensorType
from ..gguf_io.contents import check_has_weights
from ..gguf_io.reader import GgufFile, TensorInfo
from .quantized_tensor import QuantizedTensor
from .rows import Parts, decode

CHUNK_WEIGHTS = 4 << 20
"""Weights that are read, computed and written at a time. This limits the memory that work needs."""


@dataclass(frozen=True, slots=True)
class ModelTensor(ShapedTensor):
    """A tensor of a model; ``shape`` has the row length first.

    ``parts`` are the tensors of the file that store it: a Q4_HIFI tensor of the split layout has three.
    """

    format: Format
    parts: tuple[TensorInfo, ...]

    @property
    def type(self) -> TensorType:
        """Its type; Q4_HIFI for a tensor with companions."""
        return self.format.type

    @property
    def outliers(self) -> int:
        """Outliers per block; 0 for all types but Q4_HIFI."""
        return self.format.outliers

    @property
    def rows_per_matrix(self) -> int:
        """Number of rows of each matrix in a stack of matrices (experts): the second dimension."""
        return self.shape[1] if len(self.shape) > 1 else 1

    @property
    def nbytes(self) -> int:
        """Bytes of data in the file, companions included."""
        return sum(part.nbytes for part in self.parts)


@dataclass(frozen=True, slots=True)
class RowRange:
    """``count`` rows of a tensor from row ``first`` on, counted over all its matrices (experts).

    ``matrix`` is the index of the matrix that contains the first row.
    """

    tensor: ModelTensor
    matrix: int
    first: int
    count: int


class ModelFile(Closing, Mapping[str, QuantizedTensor]):
    """An open GGUF model: a mapping from tensor names to tensors, and a context manager.

    Attributes: ``metadata`` (key -> value); ``tensors`` (name -> :class:`ModelTensor`, without data);
    ``layout`` of the Q4_HIFI tensors ("split" or "fork", None without such tensors); ``paths`` and
    ``n_bytes`` of all files. Indexing reads a whole tensor; :meth:`read_rows` reads some of its rows.
    """

    def __init__(self, gguf: GgufFile) -> None:
        """Private: use :func:`q4hifi.open`."""
        self.gguf = gguf
        self.metadata: Mapping[str, Any] = gguf.metadata
        self.paths: tuple[Path, ...] = gguf.paths
        _check_version(self)
        self.n_bytes: int = gguf.n_bytes
        self.tensors: Mapping[str, ModelTensor] = {}
        self.tensors = {t.name: t for t in _model_tensors(self)}
        hifi = [t.format.layout for t in self.tensors.values() if t.type == Q4_HIFI]
        self.layout: str | None = hifi[0] if hifi else None

    def renamed(self, new_name: Callable[[str], str | None]) -> ModelFile:
        """Return the same open files as a model whose tensors have other names.

        ``new_name`` returns a tensor's name in it, or None to leave it out.
        """
        found = copy(self)
        names = {name: new_name(name) for name in self.tensors}
        found.tensors = {
            new: replace(self.tensors[old], name=new) for old, new in names.items() if new is not None
        }
        return found

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> ModelFile:
        """Open a model by the path of its file, or of any of its shards.

        Raises :class:`BadFileError` for a file that cannot be read or is not well-formed GGUF, and
        :class:`UnsupportedModelError` for unknown tensor types and versions.
        """
        gguf = GgufFile.open(path)
        try:
            return cls(gguf)
        except BaseException:
            gguf.close()
            raise

    def __getitem__(self, name: str) -> QuantizedTensor:
        """Read a whole tensor.

        Raises KeyError for an unknown name, and :class:`BadFileError` where the file cannot be read.
        """
        tensor = self.tensors[name]
        parts = self.read_rows(RowRange(tensor, 0, 0, tensor.n_rows))
        return QuantizedTensor.from_parts(parts, tensor.format, tensor.shape[::-1])

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def read_rows(self, rows: RowRange) -> Parts:
        """Read rows as bytes: for each part of the tensor, a flat uint8 array of its rows.

        Raises :class:`BadFileError` where the file cannot be read or has become shorter.
        """
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
        """Read and decode rows to float32 [rows, row_length]; ``threads`` = 0 uses one thread per core.

        Raises :class:`BadFileError` where the file cannot be read or a block is invalid, and
        :class:`UnsupportedModelError` for a type that cannot be decoded.
        """
        tensor, parts = rows.tensor, self.read_rows(rows)
        with self.errors_at(tensor.name):
            return decode(parts, tensor.format, tensor.row_length, threads=threads, first_row=rows.first)

    def check_has_weights(self) -> None:
        """Raise :class:`BadFileError` if the file is not a model, but an importance matrix or comparison."""
        check_has_weights(self.metadata, self.paths[0])

    def errors(self) -> ErrorsAt:
        """Return a context manager that puts the file's path before the messages of q4hifi's errors."""
        return ErrorsAt(f"{self.paths[0]}: ")

    def errors_at(self, name: str) -> ErrorsAt:
        """Return a context manager that puts path and tensor name before the messages of q4hifi's errors.

        The name is that in the file.
        """
        return ErrorsAt(f"{self.paths[0]}: tensor {self.stored_name(name)}: ")

    def stored_name(self, name: str) -> str:
        """Return the name in the file of a tensor, which :meth:`renamed` may have changed."""
        tensor = self.tensors.get(name)
        return name if tensor is None else tensor.parts[0].name

    def close(self) -> None:
        """Close the files."""
        self.gguf.close()


def row_ranges(
    tensor: ModelTensor, weights: int = CHUNK_WEIGHTS, *, by_matrix: bool = False
) -> Iterator[RowRange]:
    """Divide the rows of a tensor into ranges of about ``weights`` weights; an empty tensor has none.

    With ``by_matrix``, every range is inside one matrix (expert).
    """
    if not tensor.n_elements:
        return
    per_matrix = tensor.rows_per_matrix
    undivided = per_matrix if by_matrix else tensor.n_rows
    step = max(1, weights // tensor.row_length)
    for start in range(0, tensor.n_rows, undivided):
        for row in range(start, start + undivided, step):
            yield RowRange(tensor, row // per_matrix, row, min(step, start + undivided - row))


@dataclass(frozen=True, slots=True)
class ErrorsAt:
    """A context manager that puts ``prefix`` before the messages of q4hifi's errors."""

    prefix: str

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Q4HifiError) and not str(error).startswith(self.prefix):
            file, colon, _ = self.prefix.partition(": ")  # removed from the message if it is there already
            raise type(error)(self.prefix + str(error).removeprefix(file + colon)) from error


def _check_version(model: ModelFile) -> None:
    version = model.metadata.get(KEY_VERSION, VERSION)
    if version != VERSION:
        raise UnsupportedModelError(
            f"{model.paths[0]}: {KEY_VERSION} is {version!r:.80}, but this version of q4hifi reads only"
            f" {VERSION}; update q4hifi"
        )


def _model_tensors(model: ModelFile) -> Iterator[ModelTensor]:
    stored = model.gguf.tensors
    for info in stored.values():
        owner, suffix = _owner(info.name)
        if suffix and owner in stored:
            continue  # is a part of its owner's tensor
        with model.errors_at(info.name):
            yield _model_tensor(model, info)


def _owner(name: str) -> tuple[str, str]:
    """Split the name of a companion into its base's name and the suffix; the suffix is "" for other names."""
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
        raise BadFileError(
            f"it has outliers, so it must be {BASE} with 1 to {MAX_OUTLIERS} outliers per block, but it is"
            f" {info.type} with {outliers}"
        )
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
    """Return the number of outliers in the first block; all blocks of a tensor have the same number."""
    if not info.n_elements:
        return 0
    count = np.empty(1, np.uint8)
    model.gguf.read_into(info, FORK_COUNT_OFFSET, count)
    if count[0] > MAX_OUTLIERS:
        raise BadFileError(f"block 0: it has {count[0]} outliers, but at most {MAX_OUTLIERS} are possible")
    return int(count[0])


def _full(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape with ggml's four dimensions, the missing ones 1."""
    return shape + (1,) * (4 - len(shape))
