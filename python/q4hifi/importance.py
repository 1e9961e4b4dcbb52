"""Importance matrices: how much each input column of a tensor matters, as llama.cpp measures it.

Such a file ("imatrix") holds, for each tensor, the sum of the squared activations of every input
column, and over how many tokens it was taken. The weights used in quantization are the means. Two
forms exist, told apart by the file's first bytes, whatever its name:

GGUF
    For each tensor ``NAME``: ``NAME.in_sum2``, F32 [n_in, n_mat], and ``NAME.counts``, F32 [1,
    n_mat], one count a matrix (expert); and the keys ``imatrix.*``. An expert that no token
    reached has count 0; its weights are 1.

    q4hifi's own have besides, which llama.cpp passes over: ``NAME.fisher``, F32 [n_in], and
    ``NAME.fisher_counts``, F32 [1]: the matrix' Fisher information by columns
    (:meth:`q4hifi.Model.fisher`), summed over so many tokens; ``NAME.in_corr``, I8 [pairs], how its
    inputs are correlated (:mod:`q4hifi.correlations`); and for the matrix that makes the logits, which
    llama-imatrix leaves out, ``NAME.refine_sum2`` and ``NAME.refine_counts``, as in_sum2 and counts:
    only refined encodings go by them, so that recipes keep their bytes.
binary (older)
    Little-endian: i32 entries; for each: i32 length, name, i32 calls, i32 values, f32 sums. Then,
    or not: i32 chunks; then, or not: i32 length, name of the data set. There is one count for all
    experts of a tensor; 0 means that the sums are the weights.

The f32 arithmetic is that of llama-quantize, so that quantized bytes agree with its. Only the
table is kept in memory: one tensor's values are read when they are asked for.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from .correlations import Correlations, Inputs, known_inputs, pair_count
from .errors import BadFileError, BadOptionError, NotFiniteError
from .gguf_constants import GGUFValueType
from .gguf_file import GgufFile
from .gguf_io import os_errors
from .gguf_metadata import decode_text
from .names import mate_of

Floats = npt.NDArray[np.float32]

SUMS_SUFFIX, COUNTS_SUFFIX = ".in_sum2", ".counts"
FISHER_SUFFIX, FISHER_COUNTS_SUFFIX = ".fisher", ".fisher_counts"
REFINING_SUFFIX, REFINING_COUNTS_SUFFIX = ".refine_sum2", ".refine_counts"
CORRELATIONS_SUFFIX = ".in_corr"
KEY_RUN = "q4hifi.imatrix.run"

SMALLEST_ENTRY = 16
"""Bytes of an entry of the binary form with an empty name and one value."""

MAX_ENTRIES = 2**18
"""More than any model has tensors."""

MAX_I32 = 2**31 - 1
MAX_COUNT = 2**53
"""The most tokens that a matrix may have seen; any real count is far below."""

RECORDED_BYTES = 127
"""Of a string that llama-quantize records, only so many bytes are kept."""

TOLERATED = ("token_embd.weight", "per_layer_token_embd.weight")
"""Tensors whose entry may have a wrong length: it is then as if they had none, as in llama-quantize."""


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    """Where the sums of one tensor lie, and the token count of each of its matrices."""

    path: Path
    offset: int
    n_values: int
    counts: Floats


@dataclass(frozen=True, eq=False)
class Importance:
    """An importance matrix file that was checked to its last value.

    ``file`` is the path as the caller wrote it, because a quantized file records it so.
    ``chunk_count`` is the number of text chunks measured, ``chunk_size`` their tokens; None where
    the file does not say. ``run`` is the fingerprint of what :func:`q4hifi.collect_importance` measured it
    with, by which an interrupted run is resumed; None in files of other programs and of sums.
    """

    file: str
    datasets: tuple[str, ...]
    chunk_count: int | None
    chunk_size: int | None
    _entries: Mapping[str, _Entry] = field(repr=False)
    _refining: Mapping[str, _Entry] = field(repr=False, default_factory=dict)
    _fisher: Mapping[str, _Entry] = field(repr=False, default_factory=dict)
    _correlations: Mapping[str, _Entry] = field(repr=False, default_factory=dict)
    run: str | None = None

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.file)

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors that the file knows, in its order."""
        return tuple(self._entries)

    def __len__(self) -> int:
        """Return how many tensors the file knows."""
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        """Return whether the file knows the tensor."""
        return name in self._entries

    @property
    def inactive(self) -> Mapping[str, tuple[int, ...]]:
        """Tensor name -> numbers of its experts that were never activated, where there are any.

        Their weights are 1. The older form does not tell them, so there it is empty.
        """
        found = {name: np.flatnonzero(entry.counts == 0) for name, entry in self._entries.items()}
        return {name: tuple(map(int, experts)) for name, experts in found.items() if experts.size}

    def weights(self, name: str, row_length: int, n_matrices: int) -> Floats | None:
        """Return the weights of tensor ``name``: float32 [n_matrices, row_length], none negative.

        None where the file has no entry of that name. Raises :class:`BadFileError` where it has
        another number of values than the tensor has columns, except for token embeddings, which
        then go without.
        """
        entry = self._entries.get(name)
        if entry is None:
            return None
        if entry.n_values != row_length * n_matrices:
            if name in TOLERATED:
                return None
            raise self._of_another_model(name, entry, row_length, n_matrices)
        return self._means(name).reshape(n_matrices, row_length)

    def refining(self) -> Importance:
        """Return it with the matrices, too, that only refined encodings go by."""
        return replace(self, _entries={**self._refining, **self._entries}, _refining={})

    @property
    def refining_names(self) -> tuple[str, ...]:
        """The tensors that only refined encodings go by; :meth:`filtered` leaves them all."""
        return tuple(self._refining)

    @property
    def fisher_names(self) -> tuple[str, ...]:
        """The tensors whose Fisher information the file has; :meth:`filtered` leaves them all."""
        return tuple(self._fisher)

    def fisher(self, name: str, row_length: int) -> Floats | None:
        """Return the Fisher information of a matrix, of one token and by columns: float32 [row_length].

        None where the file does not have it. Raises :class:`BadFileError` for another number of columns.
        """
        entry = self._fisher.get(name)
        if entry is None:
            return None
        if entry.n_values != row_length:
            raise self._of_another_model(name, entry, row_length, 1)
        sums, counts = self.fisher_sums(name)
        mean: Floats = sums[0] / max(np.float32(1), counts[0])
        return mean

    @property
    def correlated_names(self) -> tuple[str, ...]:
        """The tensors of whose inputs the file has correlations; :meth:`filtered` leaves them all."""
        return tuple(self._correlations)

    def correlations(self, name: str) -> Correlations:
        """Read the correlations of a matrix' inputs, int8 [pairs]. KeyError where there are none."""
        entry = self._correlations[name]
        with os_errors(entry.path, f"read the correlations of {name}", BadFileError):
            found = np.fromfile(entry.path, np.int8, entry.n_values, offset=entry.offset)
        if found.size != entry.n_values:
            raise BadFileError(f"{self.file}: {name} ends early; the file was changed while in use")
        return found

    def correlated_name(self, name: str) -> str | None:
        """Return the name that a matrix' correlations are under: its own or a mate's; None without any."""
        return next((known for known in (name, mate_of(name)) if known in self._correlations), None)

    def is_correlated(self, name: str) -> bool:
        """Return whether the file has correlations of the matrix' inputs."""
        return self.correlated_name(name) is not None

    def inputs(self, name: str, row_length: int, *, threads: int = 0) -> Inputs | None:
        """Return what is known of the inputs of a matrix, the only one of its tensor.

        None where the file knows no correlations at all; nothing but the length where it does not know this
        matrix. Raises :class:`BadFileError` for another number of columns.
        """
        if not self._correlations:
            return None
        weights = self.weights(name, row_length, 1)
        columns = np.ones(row_length, np.float32) if weights is None else weights[0]
        known = None if weights is None else self.correlated_name(name)
        if known is None:
            return known_inputs(columns, threads=threads)
        entry = self._entries[known]
        if entry.n_values != row_length:
            raise self._of_another_model(known, entry, row_length, 1)
        tokens = float(entry.counts[0])
        return known_inputs(columns, self.correlations(known), tokens, threads=threads)

    def _of_another_model(self, name: str, entry: _Entry, row_length: int, n_matrices: int) -> BadFileError:
        return BadFileError(
            f"{self.file}: {name} has {entry.n_values} values, but the model's tensor has "
            f"{row_length} columns x {n_matrices} matrices; use an imatrix made from this model"
        )

    @property
    def has_token_counts(self) -> bool:
        """Whether counts are of tokens, as in the GGUF form; in the older one they are of chunks."""
        return self.chunk_size is not None

    def sums(self, name: str) -> tuple[Floats, Floats]:
        """Read and check one tensor's sums, float32 [n_counts, n_values / n_counts], and its counts.

        KeyError where the file has no entry of that name.
        """
        return self._read(name, self._entries[name])

    def refining_sums(self, name: str) -> tuple[Floats, Floats]:
        """As :meth:`sums`, of a tensor that only refined encodings go by."""
        return self._read(name, self._refining[name])

    def fisher_sums(self, name: str) -> tuple[Floats, Floats]:
        """As :meth:`sums`, of the Fisher information: float32 [1, row_length], and the tokens, [1]."""
        return self._read(name, self._fisher[name])

    def _read(self, name: str, entry: _Entry) -> tuple[Floats, Floats]:
        with os_errors(entry.path, f"read the values of {name}", BadFileError):
            sums = np.fromfile(entry.path, "<f4", entry.n_values, offset=entry.offset)
        if sums.size != entry.n_values:
            raise BadFileError(f"{self.file}: {name} ends early; the file was changed while in use")
        _check_values(sums, f"{self.file}: {name}")
        return sums.reshape(entry.counts.size, -1), entry.counts

    def _means(self, name: str) -> Floats:
        sums, counts = self.sums(name)
        counts = counts[:, np.newaxis]
        means: Floats = np.divide(sums, counts, out=np.ones_like(sums, np.float32), where=counts > 0)
        return means

    def filtered(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Importance:
        """Keep the tensors whose names contain one of ``include``, or drop those of ``exclude``.

        As ``--include-weights`` and ``--exclude-weights`` of llama-quantize: plain substrings, and
        only one of the two may be given (:class:`BadOptionError`).
        """
        if include and exclude:
            raise BadOptionError(
                "`include_weights` and `exclude_weights` cannot be used together; choose one"
            )
        kept = {
            name: entry
            for name, entry in self._entries.items()
            if (not include or any(part in name for part in include))
            and not any(part in name for part in exclude)
        }
        return replace(self, _entries=kept)

    def metadata(self) -> list[tuple[str, str | int, GGUFValueType]]:
        """What a file quantized with this matrix records, in llama-quantize's order and types.

        Nothing where no tensor is left.
        """
        if not self._entries:
            return []
        rows: list[tuple[str, str | int, GGUFValueType]] = [
            ("quantize.imatrix.file", _recorded(self.file), GGUFValueType.STRING)
        ]
        if self.datasets:
            rows.append(("quantize.imatrix.dataset", _recorded(self.datasets[0]), GGUFValueType.STRING))
        rows.append(("quantize.imatrix.entries_count", len(self), GGUFValueType.UINT32))
        if self.chunk_count:
            rows.append(("quantize.imatrix.chunks_count", self.chunk_count, GGUFValueType.UINT32))
        return rows


def _recorded(text: str) -> str:
    return decode_text(text.encode("utf-8", "surrogateescape")[:RECORDED_BYTES])


def _check_values(values: npt.NDArray[np.floating[Any]], where: str) -> None:
    """Raise, with the place of the first bad one, if a value is not finite or is negative."""
    for bad, error, what in (
        (~np.isfinite(values), NotFiniteError, "not finite"),
        (values < 0, BadFileError, "negative"),
    ):
        if bad.any():
            i = int(bad.argmax())
            raise error(f"{where}: value {i} is {what} ({values[i]}); make the imatrix again")


def load_importance(path: str | os.PathLike[str]) -> Importance:
    """Open an importance matrix file of either form and check all of it.

    Raises :class:`BadFileError` where the file is damaged or is something else, and
    :class:`NotFiniteError` where it holds NaN or infinity.
    """
    file = os.fspath(path)
    if not os.path.isfile(file):  # opening a pipe would wait for its writer
        raise BadFileError(f"{file}: there is no such file")
    with os_errors(Path(file), "read the importance matrix", BadFileError), open(file, "rb") as stream:
        is_gguf = stream.read(4) == b"GGUF"
        stream.seek(0)
        importance = _read_gguf(file) if is_gguf else _read_binary(file, stream)
    for name in importance.names:  # now, rather than in the middle of hours of work
        importance._means(name)
    for name in importance.refining_names:
        importance.refining_sums(name)
    for name in importance.fisher_names:
        importance.fisher_sums(name)
    for name in importance.correlated_names:
        importance.correlations(name)
    return importance


def _read_gguf(file: str) -> Importance:
    with GgufFile.open(file) as gguf:
        datasets = gguf.metadata.get("imatrix.datasets")
        if not isinstance(datasets, list) or not all(isinstance(name, str) for name in datasets):
            raise BadFileError(
                f"{file}: the key imatrix.datasets is missing or is no list of strings; "
                "the file is not an importance matrix of llama.cpp"
            )
        chunk_count, chunk_size = (
            _checked_count(gguf.metadata.get(key), f"{file}: key {key}")
            for key in ("imatrix.chunk_count", "imatrix.chunk_size")
        )
        entries = dict(_gguf_entries(file, gguf, SUMS_SUFFIX, COUNTS_SUFFIX))
        refining = dict(_gguf_entries(file, gguf, REFINING_SUFFIX, REFINING_COUNTS_SUFFIX))
        fisher = dict(_gguf_entries(file, gguf, FISHER_SUFFIX, FISHER_COUNTS_SUFFIX))
        correlated = dict(_gguf_correlations(file, gguf, {**refining, **entries}))
        run = gguf.metadata.get(KEY_RUN)
    if not entries:
        raise BadFileError(f"{file}: no tensor has an entry; make the imatrix again")
    known = (entries, refining, fisher, correlated)
    run = run if isinstance(run, str) else None
    return Importance(file, tuple(datasets), chunk_count, chunk_size, *known, run)


def _gguf_entries(
    file: str, gguf: GgufFile, sums_suffix: str, counts_suffix: str
) -> Iterator[tuple[str, _Entry]]:
    tensors = gguf.tensors
    names = {
        tensor.removesuffix(suffix): None
        for tensor in tensors
        for suffix in (sums_suffix, counts_suffix)
        if tensor.endswith(suffix)
    }
    for name in names:
        sums, counts = tensors.get(name + sums_suffix), tensors.get(name + counts_suffix)
        if sums is None or counts is None:
            missing = sums_suffix if sums is None else counts_suffix
            raise BadFileError(f"{file}: tensor {name}{missing} is missing; make the imatrix again")
        for tensor in (sums, counts):
            if tensor.type.name != "F32":
                raise BadFileError(f"{file}: tensor {tensor.name} is {tensor.type.name}, which must be F32")
        n_values, n_counts = prod(sums.shape), prod(counts.shape)
        if n_values == 0 or n_counts == 0 or n_values % n_counts:
            raise BadFileError(
                f"{file}: {name} has {n_values} sums for {n_counts} counts, which must divide them; "
                "make the imatrix again"
            )
        measured = gguf.read(counts).reshape(-1).view("<f4").astype(np.float64)
        _check_values(measured, f"{file}: tensor {counts.name}")
        if measured.max() > MAX_COUNT:
            raise BadFileError(
                f"{file}: tensor {counts.name} counts {measured.max():g} tokens; it is damaged"
            )
        rounded = np.floor(measured + 0.5).astype(np.float32)  # halves up, as llama-quantize rounds
        yield name, _Entry(gguf.paths[sums.shard], sums.offset, n_values, rounded)


def _gguf_correlations(
    file: str, gguf: GgufFile, entries: Mapping[str, _Entry]
) -> Iterator[tuple[str, _Entry]]:
    for stored, tensor in gguf.tensors.items():
        name = stored.removesuffix(CORRELATIONS_SUFFIX)
        if name == stored:
            continue
        if tensor.type.name != "I8":
            raise BadFileError(f"{file}: tensor {stored} is {tensor.type.name}, which must be I8")
        entry, n_values = entries.get(name), prod(tensor.shape)
        if entry is None or entry.counts.size > 1 or n_values != pair_count(entry.n_values):
            raise BadFileError(
                f"{file}: {stored} has {n_values} correlations, which are not those of as many columns as"
                f" {name}{SUMS_SUFFIX} has; make the imatrix again"
            )
        yield name, _Entry(gguf.paths[tensor.shard], tensor.offset, n_values, entry.counts)


def _read_binary(file: str, stream: BinaryIO) -> Importance:
    read = _Reader(file, stream)
    n_entries = read.i32("the number of entries")
    if not 1 <= n_entries <= min(MAX_ENTRIES, read.left // SMALLEST_ENTRY):
        raise BadFileError(
            f"{file}: claims {n_entries} entries in {read.left} bytes; "
            "the file is not an importance matrix of llama.cpp, or it is damaged"
        )
    entries: dict[str, _Entry] = {}
    for i in range(n_entries):
        name = read.text(f"the name of entry {i}")
        if name in entries:
            raise BadFileError(f"{file}: entry {i} is a second one of {name}; make the imatrix again")
        calls = _checked_count(read.i32(f"the calls of {name}"), f"{file}: calls of {name}")
        n_values = read.i32(f"the length of {name}")
        if n_values < 1:
            raise BadFileError(f"{file}: {name} has {n_values} values; make the imatrix again")
        offset = read.skip(4 * n_values, f"the values of {name}")
        entries[name] = _Entry(Path(file), offset, n_values, np.full(1, calls or 1, np.float32))
    chunk_count, datasets = None, tuple[str, ...]()
    if read.left:
        chunk_count = _checked_count(read.i32("the chunk count"), f"{file}: chunk count")
    if read.left and (dataset := read.text("the data set's name")):
        datasets = (dataset,)
    if read.left:
        raise BadFileError(f"{file}: {read.left} bytes follow the end; the file is damaged")
    return Importance(file, datasets, chunk_count, None, entries)


def _checked_count(value: object, where: str) -> int:
    if not isinstance(value, int) or not 0 <= value <= MAX_I32:
        raise BadFileError(f"{where} is {value}, which must be a whole number up to {MAX_I32}")
    return int(value)


class _Reader:
    """Fields of the binary form, none of which may reach beyond the end of the file."""

    def __init__(self, file: str, stream: BinaryIO) -> None:
        self._file, self._stream = file, stream
        self._size = os.fstat(stream.fileno()).st_size

    @property
    def left(self) -> int:
        """Bytes that are not read yet."""
        return self._size - self._stream.tell()

    def _need(self, n: int, what: str) -> None:
        if not 0 <= n <= self.left:
            raise BadFileError(
                f"{self._file}: {what} takes {n} bytes at offset {self._stream.tell()}, where {self.left} "
                "are left; the file is damaged or not an importance matrix of llama.cpp"
            )

    def _take(self, n: int, what: str) -> bytes:
        self._need(n, what)
        return self._stream.read(n)

    def skip(self, n: int, what: str) -> int:
        """Step over ``n`` bytes; return the offset of the first."""
        self._need(n, what)
        return self._stream.seek(n, os.SEEK_CUR) - n

    def i32(self, what: str) -> int:
        """One number."""
        value: int = struct.unpack("<i", self._take(4, what))[0]
        return value

    def text(self, what: str) -> str:
        """A string after its length."""
        return decode_text(self._take(self.i32(f"the length of {what}"), what))
