"""Importance matrices as sums, which can be added up and written as llama.cpp writes them.

:mod:`q4hifi.imatrix.file` reads the files for quantization, and describes their two forms.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from ..codec.input_correlations import Correlations, correlations_of, products_of
from ..errors import BadOptionError, NotFiniteError
from ..files.output_file import new_file
from ..formats.gguf_constants import GGUFValueType
from ..formats.layout import StoredTensor
from ..formats.types import F32, TYPES
from ..gguf_io.metadata import Metadata
from ..gguf_io.writer import GgufWriter, file_sizes
from ..wording import counted
from .entries import Floats
from .forms import DAT, FORMS, GGUF
from .gguf_form import (
    CORRELATIONS_SUFFIX,
    COUNTS_SUFFIX,
    FISHER_COUNTS_SUFFIX,
    FISHER_SUFFIX,
    KEY_RUN,
    KEY_SAME_INPUTS,
    REFINING_COUNTS_SUFFIX,
    REFINING_SUFFIX,
    SUMS_SUFFIX,
)
from .importance import Importance

Number = TypeVar("Number", np.float32, np.int8)

I8 = TYPES["I8"]
I32 = struct.Struct("<i")


def form_of(path: str | os.PathLike[str], form: str | None = None) -> str:
    """Return the form in which ``path`` is written, "gguf" or "dat".

    ``form`` None takes the form that the name ends in, or "gguf". Raises :class:`BadOptionError` if ``form``
    is unknown or the name ends in the other form.
    """
    if form not in (None, *FORMS):
        raise BadOptionError(f"unknown form {form!r}; choose one of {', '.join(FORMS)}")
    named = Path(path).suffix.lower().removeprefix(".")
    if named not in FORMS:
        return form or GGUF
    if form not in (None, named):
        raise BadOptionError(
            f"{os.fspath(path)}: the name ends in .{named}, but `form` is {form};"
            f" name it {Path(path).with_suffix('.' + form)}, or leave `form` out"
        )
    return named


class ColumnSums(NamedTuple):
    """Sums of squares of the input columns of one tensor, and the number of tokens that were summed.

    ``squares`` is float32 [n_counts, n_values / n_counts]. ``counts`` is float32 [n_counts]: one count for
    each matrix (expert), or one for all of them.
    """

    squares: Floats
    counts: Floats

    def __add__(self, other: object) -> ColumnSums:
        """Add the sums of another text. A single count for all experts is added to the count of each."""
        if not isinstance(other, ColumnSums):
            return NotImplemented
        counts: Floats = self.counts + other.counts
        squares = (sums.squares.reshape(counts.size, -1) for sums in (self, other))
        return ColumnSums(sum(squares, np.float32(0)), counts)

    @property
    def means(self) -> Floats:
        """Mean squares: sums divided by counts, in the shape of ``squares``; 0 where the count is 0."""
        counts = self.counts[:, np.newaxis]
        means: Floats = np.divide(self.squares, counts, out=np.zeros_like(self.squares), where=counts > 0)
        return means


@dataclass(frozen=True, slots=True, eq=False)
class ImportanceSums:
    """An importance matrix as sums over the inputs of a model's matrices. Two of them can be added.

    All mappings have tensor names as keys.

    ``tensors``
        Sums of squares of the input columns.
    ``datasets``
        Names of the texts.
    ``chunk_size``
        Tokens per chunk.
    ``fisher``
        Fisher information of the matrices (:meth:`q4hifi.Model.fisher`): its sums are in ``squares``, its
        token counts in ``counts``. Empty if it was not measured.
    ``products``
        Sums of the products of pairs of input columns, float32 [n, pairs]
        (:mod:`q4hifi.codec.input_correlations`). n is 1, with the inputs of all matrices of the tensor, or
        the number of its matrices. Tensors with the same inputs have one entry together.
    ``refining``
        Sums of squares that only refined encodings use: those of the matrix that makes the logits, unless it
        is in ``tensors``.
    ``run``
        Fingerprint of the model, text and options (:class:`q4hifi.Importance`), or None.
    ``same_inputs``
        The name under which ``products`` has the entry of a tensor, where that is another tensor's.
    ``n_chunks``
        Number of chunks of text that were measured, or None if only the token counts tell it.
    """

    tensors: Mapping[str, ColumnSums]
    datasets: tuple[str, ...]
    chunk_size: int
    fisher: Mapping[str, ColumnSums] = field(default_factory=dict)
    products: Mapping[str, Floats] = field(default_factory=dict)
    refining: Mapping[str, ColumnSums] = field(default_factory=dict)
    run: str | None = None
    same_inputs: Mapping[str, str] = field(default_factory=dict)
    n_chunks: int | None = None

    @property
    def chunk_count(self) -> int:
        """Number of chunks of text that were measured: ``n_chunks``, or what the largest token count says."""
        if self.n_chunks is not None:
            return self.n_chunks
        most = max((float(sums.counts.max()) for sums in self.tensors.values()), default=0.0)
        return int(most) // self.chunk_size

    @classmethod
    def of(cls, importance: Importance, chunk_size: int = 512) -> ImportanceSums:
        """Read the sums of an importance matrix file.

        ``chunk_size`` is used if the file does not record its tokens per chunk. The older form stores means
        multiplied by a number of chunks. Each of these chunks counts as ``chunk_size`` tokens.

        Raises :class:`NotFiniteError` if a sum is too large for float32.
        """
        size = importance.chunk_size or chunk_size
        scale = np.float32(1 if importance.has_token_counts else size)
        with np.errstate(over="ignore"):
            scaled = {
                name: ColumnSums(squares * scale, counts * scale)
                for name in importance.names
                for squares, counts in [importance.sums(name)]
            }
        tensors = {name: _finite(f"{importance.file}: {name}", sums) for name, sums in scaled.items()}
        fisher = {name: ColumnSums(*importance.fisher_sums(name)) for name in importance.fisher_names}
        refining = {name: ColumnSums(*importance.refining_sums(name)) for name in importance.refining_names}
        every = {**refining, **tensors}
        products = {
            name: np.stack(
                [
                    products_of(correlations, squares)
                    for correlations, squares in _with_squares(importance.correlations(name), every[name])
                ]
            )
            for name in importance.correlated_names
            if name in every
        }
        same_inputs = {
            name: first
            for name in every
            if (first := importance.correlated_name(name)) is not None and first != name
        }
        run = importance.run
        n_chunks = None if run is None else importance.chunk_count
        return cls(tensors, importance.datasets, size, fisher, products, refining, run, same_inputs, n_chunks)

    def __add__(self, other: object) -> ImportanceSums:
        """Add the sums of another text.

        Raises :class:`BadOptionError` if they belong to another model, :class:`NotFiniteError` if a sum is
        too large for float32.
        """
        if not isinstance(other, ImportanceSums):
            return NotImplemented
        n_chunks = None
        if self.n_chunks is not None and other.n_chunks is not None:
            n_chunks = self.n_chunks + other.n_chunks
        return ImportanceSums(
            _added(self.tensors, other.tensors),
            self.datasets + other.datasets,
            self.chunk_size,
            _added(self.fisher, other.fisher),
            {
                name: products + other.products[name]
                for name, products in self.products.items()
                if name in other.products
                and products.shape == other.products[name].shape
                and (name in self.refining) == (name in other.refining)
            },
            _added(self.refining, other.refining),
            same_inputs={**other.same_inputs, **self.same_inputs},
            n_chunks=n_chunks,
        )

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        form: str | None = None,
        overwrite: bool = False,
        sources: Sequence[Path] = (),
    ) -> None:
        """Write the importance matrix to a file, as llama-imatrix writes it.

        ``form`` is "gguf" or "dat" (llama.cpp's older form). None takes the form that the name of ``path``
        ends in, or "gguf". Fisher information, correlations and the sums for refinement are in the form
        "gguf" only. ``path`` must not be one of ``sources``. ``overwrite`` allows an existing file to be
        replaced.

        Raises :class:`BadOptionError` if there is nothing to write, if the name ends in the other form, or if
        the file must not be written.
        """
        form = form_of(path, form)
        if not self.tensors:
            raise BadOptionError(f"{path}: there is nothing to write: no matrix received an input")
        if form == DAT:
            with new_file(path, overwrite=overwrite, sources=sources) as file:
                file.writelines(self._dat())
            return
        tensors = dict(self._gguf_tensors())
        stored = [_stored(name, values) for name, values in tensors.items()]
        with GgufWriter(path, self._metadata(), stored, overwrite=overwrite, sources=sources) as writer:
            for name, values in tensors.items():
                writer.write_at(name, 0, np.ascontiguousarray(values, values.dtype.newbyteorder("<")))
            writer.commit()

    @property
    def file_bytes(self) -> int:
        """Size in bytes of the file in the form "gguf"."""
        stored = [_stored(name, values) for name, values in self._gguf_tensors()]
        return sum(file_sizes(self._metadata(), stored))

    def _metadata(self) -> Metadata:
        pairs = Metadata().with_value("general.type", "imatrix", GGUFValueType.STRING)
        pairs = pairs.with_value("imatrix.datasets", list(self.datasets), GGUFValueType.STRING)
        pairs = pairs.with_value("imatrix.chunk_count", self.chunk_count, GGUFValueType.UINT32)
        pairs = pairs.with_value("imatrix.chunk_size", self.chunk_size, GGUFValueType.UINT32)
        if self.same_inputs:
            shared = [f"{name}={first}" for name, first in sorted(self.same_inputs.items())]
            pairs = pairs.with_value(KEY_SAME_INPUTS, shared, GGUFValueType.STRING)
        return pairs if self.run is None else pairs.with_value(KEY_RUN, self.run, GGUFValueType.STRING)

    def _gguf_tensors(self) -> Iterator[tuple[str, Floats | Correlations]]:
        for sums_by_name, suffix, counts_suffix in (
            (self.tensors, SUMS_SUFFIX, COUNTS_SUFFIX),
            (self.refining, REFINING_SUFFIX, REFINING_COUNTS_SUFFIX),
            (self.fisher, FISHER_SUFFIX, FISHER_COUNTS_SUFFIX),
        ):
            for name, sums in sorted(sums_by_name.items()):
                yield name + suffix, sums.squares
                yield name + counts_suffix, sums.counts.reshape(-1, 1)
        every = {**self.refining, **self.tensors}
        for name in sorted(self.products.keys() & every.keys()):
            parts = _with_squares(self.products[name], every[name])
            correlations = np.stack([correlations_of(products, squares) for products, squares in parts])
            yield name + CORRELATIONS_SUFFIX, correlations

    def _dat(self) -> Iterator[bytes]:
        """Yield the parts of the older form: means multiplied by chunks; an expert without tokens gets 1."""
        counted = {name: sums for name, sums in sorted(self.tensors.items()) if sums.counts.any()}
        yield I32.pack(len(counted))
        for name, sums in counted.items():
            chunks = -(-int(sums.counts.max()) // self.chunk_size)
            counts = sums.counts[:, np.newaxis]
            means = np.where(counts > 0, sums.means, np.float32(1))
            raw = name.encode("utf-8", "surrogateescape")
            yield I32.pack(len(raw)) + raw + I32.pack(chunks) + I32.pack(means.size)
            yield (means * np.float32(chunks)).astype("<f4").tobytes()
        dataset = (self.datasets[-1] if self.datasets else "").encode("utf-8", "surrogateescape")
        yield I32.pack(self.chunk_count) + I32.pack(len(dataset)) + dataset


def _with_squares(
    sums: npt.NDArray[Number], columns: ColumnSums
) -> Iterator[tuple[npt.NDArray[Number], Floats]]:
    """Yield each row of ``sums``, [n, pairs], with the sums of squares of its inputs, float32 [n_in].

    A single row belongs to the inputs of all matrices together.
    """
    if len(sums) == 1:
        yield sums[0], columns.squares.sum(axis=0, dtype=np.float64).astype(np.float32)
    else:
        yield from zip(sums, columns.squares, strict=True)


def _added(mine: Mapping[str, ColumnSums], other: Mapping[str, ColumnSums]) -> dict[str, ColumnSums]:
    """Return the entries of both, added up where both have the same tensor."""
    total = dict(mine)
    for name, sums in other.items():
        before = total.get(name)
        if before is not None and before.squares.size != sums.squares.size:
            raise BadOptionError(
                f"{name} has {counted(before.squares.size, 'value')} in one importance matrix and"
                f" {sums.squares.size} in another; add up importance matrices of one model only"
            )
        with np.errstate(over="ignore"):
            total[name] = sums if before is None else _finite(name, before + sums)
    return total


def _finite(where: str, sums: ColumnSums) -> ColumnSums:
    if not np.isfinite(sums.squares).all():
        raise NotFiniteError(f"{where}: its sums are too large for 32-bit floats; make the imatrix again")
    return sums


def _stored(name: str, values: Floats | Correlations) -> StoredTensor:
    return StoredTensor(name, _ggml_shape(values), I8 if values.dtype == np.int8 else F32)


def _ggml_shape(values: Floats | Correlations) -> tuple[int, ...]:
    """Return the shape in ggml's order: row length first, trailing dimensions of 1 dropped."""
    rows, columns = values.shape
    return (columns, rows) if rows > 1 else (columns,)
