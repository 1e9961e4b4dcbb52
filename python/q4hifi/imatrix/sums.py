"""Importance matrices as they are made: sums that can be added up, and written as llama.cpp does.

:mod:`q4hifi.imatrix.file` reads such files for quantization and describes both forms.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

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
from .file import (
    CORRELATIONS_SUFFIX,
    COUNTS_SUFFIX,
    FISHER_COUNTS_SUFFIX,
    FISHER_SUFFIX,
    KEY_RUN,
    REFINING_COUNTS_SUFFIX,
    REFINING_SUFFIX,
    SUMS_SUFFIX,
    Importance,
)
from .forms import DAT, FORMS, GGUF

Floats = npt.NDArray[np.float32]

I8 = TYPES["I8"]
I32 = struct.Struct("<i")


def form_of(path: str | os.PathLike[str], form: str | None = None) -> str:
    """Return the form to write ``path`` in: ``form``, or the one that the name ends in, or GGUF.

    Raises :class:`BadOptionError` where ``form`` is unknown, and where the name says another.
    """
    if form not in (None, *FORMS):
        raise BadOptionError(f"unknown form {form!r}; choose one of {', '.join(FORMS)}")
    named = Path(path).suffix.lower().removeprefix(".")
    if named not in FORMS:
        return form or GGUF
    if form not in (None, named):
        raise BadOptionError(
            f"{os.fspath(path)}: the name says {named}, and `form` is {form};"
            f" name it {Path(path).with_suffix('.' + form)}, or leave `form` out"
        )
    return named


class ColumnSums(NamedTuple):
    """Of one tensor: sums of the squares of each input column, and of how many rows.

    ``squares`` is float32 [n_counts, n_values / n_counts]; ``counts`` is float32 [n_counts], one for
    each matrix (expert), or one for all.
    """

    squares: Floats
    counts: Floats

    def __add__(self, other: object) -> ColumnSums:
        """Add what another text gave, of as many values; one count for all is one for each."""
        if not isinstance(other, ColumnSums):
            return NotImplemented
        counts: Floats = self.counts + other.counts
        squares = (sums.squares.reshape(counts.size, -1) for sums in (self, other))
        return ColumnSums(sum(squares, np.float32(0)), counts)

    @property
    def means(self) -> Floats:
        """Sums over counts, in the shape of ``squares``; 0 where nothing was counted."""
        counts = self.counts[:, np.newaxis]
        means: Floats = np.divide(self.squares, counts, out=np.zeros_like(self.squares), where=counts > 0)
        return means


@dataclass(frozen=True, slots=True, eq=False)
class ImportanceSums:
    """The inputs of a model's matrices over a text, as sums: tensor name -> :class:`ColumnSums`.

    ``datasets`` are the names of the texts, ``chunk_size`` the tokens of their chunks. ``fisher`` has the
    matrices' Fisher information (:meth:`q4hifi.Model.fisher`), summed over so many tokens, in the place of
    squares, or nothing. ``products`` has the sums of products of pairs of columns, float32 [pairs]
    (:mod:`q4hifi.codec.input_correlations`); matrices of the same inputs have them once. ``refining`` has
    matrices that only refined encodings go by: that which makes the logits, where it is not among
    ``tensors``. ``run`` is the fingerprint of what they were measured with (:attr:`q4hifi.Importance.run`).
    """

    tensors: Mapping[str, ColumnSums]
    datasets: tuple[str, ...]
    chunk_size: int
    fisher: Mapping[str, ColumnSums] = field(default_factory=dict)
    products: Mapping[str, Floats] = field(default_factory=dict)
    refining: Mapping[str, ColumnSums] = field(default_factory=dict)
    run: str | None = None

    @property
    def chunk_count(self) -> int:
        """Chunks that the matrices saw."""
        most = max((float(sums.counts.max()) for sums in self.tensors.values()), default=0.0)
        return int(most) // self.chunk_size

    @classmethod
    def of(cls, importance: Importance, chunk_size: int = 512) -> ImportanceSums:
        """Take an importance matrix file as sums; ``chunk_size`` is for files that do not say theirs.

        The older form keeps means, times chunks: its counts are taken as whole chunks.
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
        known = {**refining, **tensors}
        products = {
            name: products_of(importance.correlations(name), known[name].squares[0])
            for name in importance.correlated_names
            if name in known
        }
        return cls(tensors, importance.datasets, size, fisher, products, refining, importance.run)

    def __add__(self, other: object) -> ImportanceSums:
        """Add the sums of another text. Raises :class:`BadOptionError` where they are of another model."""
        if not isinstance(other, ImportanceSums):
            return NotImplemented
        return ImportanceSums(
            _added(self.tensors, other.tensors),
            self.datasets + other.datasets,
            self.chunk_size,
            _added(self.fisher, other.fisher),
            {
                name: products + other.products[name]
                for name, products in self.products.items()
                if name in other.products and (name in self.refining) == (name in other.refining)
            },
            _added(self.refining, other.refining),
        )

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        form: str | None = None,
        overwrite: bool = False,
        sources: Sequence[Path] = (),
    ) -> None:
        """Write the file, in the form "gguf" or "dat" (the older one), as llama-imatrix writes it.

        None takes the form that the name of ``path`` ends in (:func:`form_of`). What llama.cpp ignores,
        Fisher information and so on, is in the GGUF form only. ``sources`` are files that ``path`` must
        not be. Raises :class:`BadOptionError` for a form that the name contradicts.
        """
        form = form_of(path, form)
        if not self.tensors:
            raise BadOptionError(f"{path}: there is nothing to write; no matrix saw an input")
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
        """Bytes of the file in the first form."""
        stored = [_stored(name, values) for name, values in self._gguf_tensors()]
        return sum(file_sizes(self._metadata(), stored))

    def _metadata(self) -> Metadata:
        pairs = Metadata().with_value("general.type", "imatrix", GGUFValueType.STRING)
        pairs = pairs.with_value("imatrix.datasets", list(self.datasets), GGUFValueType.STRING)
        pairs = pairs.with_value("imatrix.chunk_count", self.chunk_count, GGUFValueType.UINT32)
        pairs = pairs.with_value("imatrix.chunk_size", self.chunk_size, GGUFValueType.UINT32)
        return pairs if self.run is None else pairs.with_value(KEY_RUN, self.run, GGUFValueType.STRING)

    def _gguf_tensors(self) -> Iterator[tuple[str, Floats | Correlations]]:
        for of_tensors, suffix, counts_suffix in (
            (self.tensors, SUMS_SUFFIX, COUNTS_SUFFIX),
            (self.refining, REFINING_SUFFIX, REFINING_COUNTS_SUFFIX),
            (self.fisher, FISHER_SUFFIX, FISHER_COUNTS_SUFFIX),
        ):
            for name, sums in sorted(of_tensors.items()):
                yield name + suffix, sums.squares
                yield name + counts_suffix, sums.counts.reshape(-1, 1)
        known = {**self.refining, **self.tensors}
        for name in sorted(self.products.keys() & known.keys()):
            found = correlations_of(self.products[name], known[name].squares[0])
            yield name + CORRELATIONS_SUFFIX, found.reshape(1, -1)

    def _dat(self) -> Iterator[bytes]:
        """The older form: means times chunks; a matrix without counts gets 1."""
        known = {name: sums for name, sums in sorted(self.tensors.items()) if sums.counts.any()}
        yield I32.pack(len(known))
        for name, sums in known.items():
            chunks = -(-int(sums.counts.max()) // self.chunk_size)
            counts = sums.counts[:, np.newaxis]
            means = np.where(counts > 0, sums.means, np.float32(1))
            raw = name.encode("utf-8", "surrogateescape")
            yield I32.pack(len(raw)) + raw + I32.pack(chunks) + I32.pack(means.size)
            yield (means * np.float32(chunks)).astype("<f4").tobytes()
        dataset = (self.datasets[-1] if self.datasets else "").encode("utf-8", "surrogateescape")
        yield I32.pack(self.chunk_count) + I32.pack(len(dataset)) + dataset


def _added(mine: Mapping[str, ColumnSums], other: Mapping[str, ColumnSums]) -> dict[str, ColumnSums]:
    """Both, added up where they are of the same matrix."""
    found = dict(mine)
    for name, sums in other.items():
        known = found.get(name)
        if known is not None and known.squares.size != sums.squares.size:
            raise BadOptionError(
                f"{name} has {known.squares.size} values in one importance matrix and"
                f" {sums.squares.size} in another; add up those of one model only"
            )
        with np.errstate(over="ignore"):
            found[name] = sums if known is None else _finite(name, known + sums)
    return found


def _finite(where: str, sums: ColumnSums) -> ColumnSums:
    if not np.isfinite(sums.squares).all():
        raise NotFiniteError(f"{where}: its sums are too large for 32-bit floats; make the imatrix again")
    return sums


def _stored(name: str, values: Floats | Correlations) -> StoredTensor:
    return StoredTensor(name, _ggml_shape(values), I8 if values.dtype == np.int8 else F32)


def _ggml_shape(values: Floats | Correlations) -> tuple[int, ...]:
    """The shape as ggml writes it: the row length first, trailing ones dropped."""
    rows, columns = values.shape
    return (columns, rows) if rows > 1 else (columns,)
