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
    inputs are correlated (:mod:`q4hifi.codec.input_correlations`); and for the matrix that makes the logits,
    which llama-imatrix leaves out, ``NAME.refine_sum2`` and ``NAME.refine_counts``, as in_sum2 and counts:
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ..codec.input_correlations import Correlations, Inputs, known_inputs, pair_count
from ..errors import BadFileError, BadOptionError, NotFiniteError, Q4HifiError
from ..files.positioned_file import os_errors
from ..formats.gguf_constants import GGUFValueType
from ..formats.tensor_names import first_with_same_input
from ..gguf_io.metadata import decode_text
from ..gguf_io.reader import GgufFile

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


@dataclass(frozen=True, slots=True)
class WeightsFilter:
    """Which tensors use an importance matrix: those whose names contain one of ``include``, or all but
    those whose names contain one of ``exclude``.

    As ``--include-weights`` and ``--exclude-weights`` of llama-quantize: plain substrings, and only one
    of the two may be given (:class:`BadOptionError`).
    """

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Check that not both are given."""
        if self.include and self.exclude:
            raise BadOptionError(
                "`include_weights` and `exclude_weights` cannot be used together; choose one"
            )

    def __contains__(self, name: str) -> bool:
        """Return whether the tensor uses the importance matrix."""
        if self.include:
            return any(part in name for part in self.include)
        return not any(part in name for part in self.exclude)


@dataclass(frozen=True, eq=False)
class Importance:
    """An importance matrix file; all that is used of it was checked to its last value.

    ``file`` is the path as the caller wrote it, because a quantized file records it so.
    ``chunk_count`` is the number of text chunks measured, ``chunk_size`` their tokens; None where
    the file does not say. ``names_in_file`` are all tensors that the file has entries of, in use or not.
    ``run`` is the fingerprint of what :func:`q4hifi.collect_importance` measured it with, by which an
    interrupted run is resumed; None in files of other programs and of sums.
    """

    file: str
    datasets: tuple[str, ...]
    chunk_count: int | None
    chunk_size: int | None
    names_in_file: tuple[str, ...]
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
        """The tensors whose entries are used, in the file's order."""
        return tuple(self._entries)

    def __len__(self) -> int:
        """Return how many tensors have entries that are used."""
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        """Return whether the tensor has an entry that is used."""
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
        if not self.has_weights(name, row_length, n_matrices):
            return None
        return self._means(name).reshape(n_matrices, row_length)

    def has_weights(self, name: str, row_length: int, n_matrices: int) -> bool:
        """Return whether :meth:`weights` gives weights, without reading them; raises what it raises."""
        entry = self._entries.get(name)
        if entry is None:
            return False
        if entry.n_values != row_length * n_matrices:
            if name in TOLERATED:
                return False
            raise self._of_another_model(name, entry, row_length, n_matrices)
        return True

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
        return next(
            (known for known in (name, first_with_same_input(name)) if known in self._correlations), None
        )

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
        entry = self._correlations[known]
        if entry.n_values != pair_count(row_length):
            raise BadFileError(
                f"{self.file}: {known} has {entry.n_values} correlations, and {row_length} columns have"
                f" {pair_count(row_length)}; use an imatrix made from this model"
            )
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
        _check_values(sums, f"{self.file}: {name}", name)
        return sums.reshape(entry.counts.size, -1), entry.counts

    def _means(self, name: str) -> Floats:
        sums, counts = self.sums(name)
        counts = counts[:, np.newaxis]
        means: Floats = np.divide(sums, counts, out=np.ones_like(sums, np.float32), where=counts > 0)
        return means

    def filtered(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Importance:
        """Keep the tensors whose names contain one of ``include``, or drop those of ``exclude``.

        As :func:`load_importance` does, of a file that is checked already.
        """
        chosen = WeightsFilter(include, exclude)
        kept = {name: entry for name, entry in self._entries.items() if name in chosen}
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


def _again(name: str) -> str:
    """What to do about a bad entry."""
    return f"make the imatrix again, or leave it out with `exclude_weights={name}`"


def _check_values(values: npt.NDArray[np.floating[Any]], where: str, name: str) -> None:
    """Raise, with the place of the first bad one, if a value of the tensor ``name`` is no sum of squares."""
    for bad, error, what in (
        (~np.isfinite(values), NotFiniteError, "not finite"),
        (values < 0, BadFileError, "negative"),
    ):
        if bad.any():
            i = int(bad.argmax())
            raise error(f"{where}: value {i} is {what} ({values[i]}); {_again(name)}")


def load_importance(
    path: str | os.PathLike[str], include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> Importance:
    """Open an importance matrix file of either form and check all that is used of it.

    ``include`` and ``exclude`` are those of :class:`WeightsFilter`. A bad entry of a tensor that does not
    use the matrix is no error. What the file says besides of such a tensor's errors and inputs (Fisher
    information, correlations) is kept, as others depend on it, unless it is bad.

    Raises :class:`BadFileError` where the file is damaged or is something else, and
    :class:`NotFiniteError` where it holds NaN or infinity.
    """
    file = os.fspath(path)
    chosen = WeightsFilter(include, exclude)
    if not os.path.isfile(file):  # opening a pipe would wait for its writer
        raise BadFileError(f"{file}: there is no such file")
    with os_errors(Path(file), "read the importance matrix", BadFileError), open(file, "rb") as stream:
        is_gguf = stream.read(4) == b"GGUF"
        stream.seek(0)
        importance = _read_gguf(file, chosen) if is_gguf else _read_binary(file, stream, chosen)
    for name in importance.names:  # now, rather than in the middle of hours of work
        importance._means(name)
    for name in importance.refining_names:
        importance.refining_sums(name)
    return replace(
        importance,
        _fisher=_sound(importance._fisher, importance.fisher_sums, chosen),
        _correlations=_sound(importance._correlations, importance.correlations, chosen),
    )


def _sound(
    entries: Mapping[str, _Entry], read: Callable[[str], object], chosen: WeightsFilter
) -> dict[str, _Entry]:
    """The entries that ``read`` accepts; it must accept all of chosen tensors."""
    found = {}
    for name, entry in entries.items():
        try:
            read(name)
        except Q4HifiError:
            if name in chosen:
                raise
        else:
            found[name] = entry
    return found


def _read_gguf(file: str, chosen: WeightsFilter) -> Importance:
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
        names = _gguf_names(gguf, SUMS_SUFFIX, COUNTS_SUFFIX)
        entries = _gguf_entries(file, gguf, SUMS_SUFFIX, COUNTS_SUFFIX, chosen)
        refining = _gguf_entries(file, gguf, REFINING_SUFFIX, REFINING_COUNTS_SUFFIX, chosen)
        fisher = _gguf_entries(file, gguf, FISHER_SUFFIX, FISHER_COUNTS_SUFFIX, chosen)
        correlated = dict(_gguf_correlations(file, gguf, {**refining, **entries}, chosen))
        run = gguf.metadata.get(KEY_RUN)
    if not names:
        raise BadFileError(f"{file}: no tensor has an entry; make the imatrix again")
    names_in_file = tuple(dict.fromkeys((*names, *_gguf_names(gguf, REFINING_SUFFIX))))
    used, refining = (
        {name: entry for name, entry in known.items() if name in chosen} for known in (entries, refining)
    )
    run = run if isinstance(run, str) else None
    known = (used, refining, fisher, correlated)
    return Importance(file, tuple(datasets), chunk_count, chunk_size, names_in_file, *known, run)


def _gguf_names(gguf: GgufFile, *suffixes: str) -> tuple[str, ...]:
    """The tensors of the model that have a stored tensor with one of the suffixes, in the file's order."""
    found = {t.removesuffix(suffix): None for t in gguf.tensors for suffix in suffixes if t.endswith(suffix)}
    return tuple(found)


def _gguf_entries(
    file: str, gguf: GgufFile, sums_suffix: str, counts_suffix: str, chosen: WeightsFilter
) -> dict[str, _Entry]:
    """The entries by name, but for bad ones of tensors that are not ``chosen``."""
    found = {}
    for name in _gguf_names(gguf, sums_suffix, counts_suffix):
        try:
            found[name] = _gguf_entry(file, gguf, name, sums_suffix, counts_suffix)
        except Q4HifiError:
            if name in chosen:
                raise
    return found


def _gguf_entry(file: str, gguf: GgufFile, name: str, sums_suffix: str, counts_suffix: str) -> _Entry:
    sums, counts = gguf.tensors.get(name + sums_suffix), gguf.tensors.get(name + counts_suffix)
    if sums is None or counts is None:
        missing = sums_suffix if sums is None else counts_suffix
        raise BadFileError(f"{file}: tensor {name}{missing} is missing; {_again(name)}")
    for tensor in (sums, counts):
        if tensor.type.name != "F32":
            raise BadFileError(
                f"{file}: tensor {tensor.name} is {tensor.type.name}, which must be F32; {_again(name)}"
            )
    n_values, n_counts = prod(sums.shape), prod(counts.shape)
    if n_values == 0 or n_counts == 0 or n_values % n_counts:
        raise BadFileError(
            f"{file}: {name} has {n_values} sums for {n_counts} counts, which must divide them;"
            f" {_again(name)}"
        )
    measured = gguf.read(counts).reshape(-1).view("<f4").astype(np.float64)
    _check_values(measured, f"{file}: tensor {counts.name}", name)
    if measured.max() > MAX_COUNT:
        raise BadFileError(
            f"{file}: tensor {counts.name} counts {measured.max():g} tokens; it is damaged; {_again(name)}"
        )
    rounded = np.floor(measured + 0.5).astype(np.float32)  # halves up, as llama-quantize rounds
    return _Entry(gguf.paths[sums.shard], sums.offset, n_values, rounded)


def _gguf_correlations(
    file: str, gguf: GgufFile, entries: Mapping[str, _Entry], chosen: WeightsFilter
) -> Iterator[tuple[str, _Entry]]:
    for name in _gguf_names(gguf, CORRELATIONS_SUFFIX):
        tensor = gguf.tensors[name + CORRELATIONS_SUFFIX]
        entry, n_values = entries.get(name), prod(tensor.shape)
        if tensor.type.name != "I8":
            problem = f"is {tensor.type.name}, which must be I8"
        elif entry is None or entry.counts.size > 1 or n_values != pair_count(entry.n_values):
            problem = f"has {n_values} correlations, which are not those of as many columns as its sums"
        else:
            yield name, _Entry(gguf.paths[tensor.shard], tensor.offset, n_values, entry.counts)
            continue
        if name in chosen:
            raise BadFileError(f"{file}: tensor {tensor.name} {problem}; {_again(name)}")


def _read_binary(file: str, stream: BinaryIO, chosen: WeightsFilter) -> Importance:
    read = _Reader(file, stream)
    n_entries = read.i32("the number of entries")
    if not 1 <= n_entries <= min(MAX_ENTRIES, read.left // SMALLEST_ENTRY):
        raise BadFileError(
            f"{file}: claims {n_entries} entries in {read.left} bytes; "
            "the file is not an importance matrix of llama.cpp, or it is damaged"
        )
    names: dict[str, None] = {}
    entries: dict[str, _Entry] = {}
    for i in range(n_entries):
        name = read.text(f"the name of entry {i}")
        if name in names:
            raise BadFileError(f"{file}: entry {i} is a second one of {name}; make the imatrix again")
        names[name] = None
        calls, n_values = read.i32(f"the calls of {name}"), read.i32(f"the length of {name}")
        offset = read.skip(4 * n_values, f"the values of {name}")
        if name not in chosen:
            continue
        if calls < 0:
            raise BadFileError(f"{file}: calls of {name} is {calls}, below zero; {_again(name)}")
        if n_values < 1:
            raise BadFileError(f"{file}: {name} has {n_values} values; {_again(name)}")
        entries[name] = _Entry(Path(file), offset, n_values, np.full(1, calls or 1, np.float32))
    chunk_count, datasets = None, tuple[str, ...]()
    if read.left:
        chunk_count = _checked_count(read.i32("the chunk count"), f"{file}: chunk count")
    if read.left and (dataset := read.text("the data set's name")):
        datasets = (dataset,)
    if read.left:
        raise BadFileError(f"{file}: {read.left} bytes follow the end; the file is damaged")
    return Importance(file, datasets, chunk_count, None, tuple(names), entries)


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
