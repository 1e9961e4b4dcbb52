"""Importance matrix files ("imatrix"): reading and checking them.

An importance matrix says how much each input column of a weight matrix matters. For each tensor it holds the
sum of the squared activations of every input column, and the number of tokens that were summed. The encoder
weighs errors by the means, sum / tokens. A file has one of two forms. Its first bytes decide which; its name
does not matter.

GGUF (llama.cpp's form today)
    For each tensor ``NAME``: ``NAME.in_sum2``, F32 [n_in, n_mat], and ``NAME.counts``, F32 [1, n_mat], with
    one count for each matrix (expert). The keys ``imatrix.*`` describe the text. An expert that received no
    token has the count 0, and all its weights are 1.

    q4hifi adds tensors that llama.cpp ignores:

    - ``NAME.fisher``, F32 [n_in], and ``NAME.fisher_counts``, F32 [1]: the Fisher information of the matrix,
      one value for each column (:meth:`q4hifi.Model.fisher`), summed over that number of tokens.
    - ``NAME.in_corr``, I8 [pairs, n]: the correlations between pairs of its input columns
      (:mod:`q4hifi.codec.input_correlations`). n is 1, for the inputs of all its matrices together, or the
      number of its matrices. Tensors with the same inputs have one entry: the key
      ``q4hifi.imatrix.same_inputs`` lists them as ``NAME=NAME_OF_THE_ENTRY``.
    - ``NAME.refine_sum2`` and ``NAME.refine_counts``: as in_sum2 and counts, for the matrix that makes the
      logits. llama-imatrix leaves that matrix out. Only refined encodings use these values. A recipe of
      llama-quantize without refinement therefore still gives llama-quantize's bytes.
binary (llama.cpp's older form, .dat)
    Little-endian: i32 number of entries; for each entry: i32 length, name, i32 calls, i32 number of values,
    f32 values. Two optional parts follow: i32 number of chunks; then i32 length and the name of the data set.
    An entry has one count for all experts of a tensor. If it is 0, the values are already the weights.

Means are computed in float32 as llama-quantize computes them, so that quantized bytes are the same. Only the
table of entries is kept in memory. The values of a tensor are read when they are needed.
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

from ..codec.input_correlations import Correlations, TensorInputs, pair_count
from ..errors import BadFileError, BadOptionError, NotFiniteError, Q4HifiError
from ..files.file_kinds import HEAD_BYTES, IMATRIX_NAME, Purpose, mistaken
from ..files.positioned_file import os_errors
from ..files.regular_file import check_regular_file
from ..formats.gguf_constants import GGUFValueType
from ..formats.tensor_names import first_with_same_input
from ..gguf_io.contents import contents_of
from ..gguf_io.metadata import decode_text
from ..gguf_io.reader import GgufFile
from ..wording import counted

Floats = npt.NDArray[np.float32]

SUMS_SUFFIX, COUNTS_SUFFIX = ".in_sum2", ".counts"
FISHER_SUFFIX, FISHER_COUNTS_SUFFIX = ".fisher", ".fisher_counts"
REFINING_SUFFIX, REFINING_COUNTS_SUFFIX = ".refine_sum2", ".refine_counts"
CORRELATIONS_SUFFIX = ".in_corr"
KEY_RUN = "q4hifi.imatrix.run"
KEY_SAME_INPUTS = "q4hifi.imatrix.same_inputs"

IMATRIX = Purpose(
    IMATRIX_NAME, "name a file that 'q4hifi imatrix' or llama-imatrix made", "make or download it again"
)

SMALLEST_ENTRY = 16
"""Size in bytes of the smallest entry of the binary form: an empty name and one value."""

MAX_ENTRIES = 2**18
"""Limit on the entries of a file: no model has more tensors."""

MAX_I32 = 2**31 - 1
MAX_COUNT = 2**53
"""Limit on a token count. Real counts are far smaller."""

PRIOR_TOKENS = 128.0
"""Tokens that the mean of all experts counts as, beside an expert's own, in refined encodings."""

RECORDED_BYTES = 127
"""llama-quantize cuts the strings that it records to this length, in bytes."""

TOLERATED = ("token_embd.weight", "per_layer_token_embd.weight")
"""Tensors whose entry is ignored if its length does not fit; llama-quantize does the same."""


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    """Where the sums of one tensor are in the file, and the token count of each of its matrices (experts)."""

    path: Path
    offset: int
    n_values: int
    counts: Floats


@dataclass(frozen=True, slots=True)
class WeightsFilter:
    """Which tensors use an importance matrix.

    With ``include``, only tensors whose names contain one of these strings. With ``exclude``, all tensors but
    those. With neither, all. The strings are plain substrings, as for ``--include-weights`` and
    ``--exclude-weights`` of llama-quantize. Raises :class:`BadOptionError` if both are given.
    """

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Check that at most one of the two is given."""
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
    """An opened importance matrix file. Every value of the entries in use has been checked.

    ``file`` is the path as the caller wrote it, because the quantized file records it in that form.
    ``datasets`` are the names of the texts. ``chunk_count`` is the number of text chunks that were measured,
    ``chunk_size`` the tokens per chunk; None if the file does not have them. ``names_in_file`` are all
    tensors with an entry in the file, in use or not. ``run`` has the settings that
    :func:`q4hifi.collect_importance` ran with; an interrupted run is resumed only if they are the same.
    It is None in files of other programs and in files that were added up from several.
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
    _same_inputs: Mapping[str, str] | None = field(repr=False, default=None)
    _prior: float = field(repr=False, default=0.0)

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.file)

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors whose entries are used, in the file's order."""
        return tuple(self._entries)

    def __len__(self) -> int:
        """Return the number of tensors whose entries are used."""
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        """Return whether the tensor has an entry that is used."""
        return name in self._entries

    @property
    def inactive(self) -> Mapping[str, tuple[int, ...]]:
        """The experts that received no token: tensor name -> their indices. All their weights are 1.

        Empty for the older form, which has no counts of single experts.
        """
        unused = {name: np.flatnonzero(entry.counts == 0) for name, entry in self._entries.items()}
        return {name: tuple(map(int, experts)) for name, experts in unused.items() if experts.size}

    def weights(self, name: str, row_length: int, n_matrices: int) -> Floats | None:
        """Return the importance weights of tensor ``name``: float32 [n_matrices, row_length], none negative.

        Returns None if no entry of that name is used. Raises :class:`BadFileError` if the entry has a
        different number of values; for token embeddings such an entry is ignored instead.
        """
        if not self.has_weights(name, row_length, n_matrices):
            return None
        return self._means(name).reshape(n_matrices, row_length)

    def has_weights(self, name: str, row_length: int, n_matrices: int) -> bool:
        """Return whether :meth:`weights` would return weights, without reading them.

        Raises the same errors.
        """
        entry = self._entries.get(name)
        if entry is None:
            return False
        if entry.n_values != row_length * n_matrices:
            if name in TOLERATED:
                return False
            raise self._of_another_model(name, entry, row_length, n_matrices)
        return True

    def refining(self) -> Importance:
        """Return a copy with the weights for refined encodings.

        It also has those of the output matrix. An expert that received few tokens gets a prior, the mean of
        all experts of its tensor, which counts as :data:`PRIOR_TOKENS` tokens.
        """
        entries = {**self._refining, **self._entries}
        return replace(self, _entries=entries, _refining={}, _prior=PRIOR_TOKENS)

    @property
    def refining_names(self) -> tuple[str, ...]:
        """Tensors whose weights only refined encodings use. :meth:`filtered` keeps all of them."""
        return tuple(self._refining)

    @property
    def fisher_names(self) -> tuple[str, ...]:
        """Tensors whose Fisher information is in the file. :meth:`filtered` keeps all of them."""
        return tuple(self._fisher)

    @property
    def fisher_tokens(self) -> int:
        """Number of tokens that the Fisher information was measured on; 0 if the file does not have it."""
        return int(max((entry.counts.max() for entry in self._fisher.values()), default=0))

    def fisher(self, name: str, row_length: int) -> Floats | None:
        """Return the mean Fisher information of a matrix for one token, by column: float32 [row_length].

        Returns None if the file does not have it. Raises :class:`BadFileError` if the number of columns
        differs.
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
        """Tensors whose input correlations are in the file. :meth:`filtered` keeps all of them."""
        return tuple(self._correlations)

    def correlations(self, name: str) -> Correlations:
        """Read the input correlations of a tensor: int8 [n, pairs]. Raises KeyError if there are none.

        n is 1, for the inputs of all its matrices together, or the number of its matrices.
        """
        entry = self._correlations[name]
        with os_errors(entry.path, f"read the correlations of {name}", BadFileError):
            values = np.fromfile(entry.path, np.int8, entry.n_values, offset=entry.offset)
        if values.size != entry.n_values:
            raise BadFileError(f"{self.file}: {name} ends early; the file was changed while in use")
        return values.reshape(entry.counts.size, -1)

    def correlated_name(self, name: str) -> str | None:
        """Return the tensor name under which the input correlations of matrix ``name`` are stored.

        Matrices with the same inputs, such as attn_q, attn_k and attn_v, share one entry. Files that do not
        list these were made by our own runtime, whose architectures all have the same ones. Returns None if
        there is none.
        """
        if name in self._correlations:
            return name
        others = self._same_inputs
        other = first_with_same_input(name) if others is None else others.get(name, "")
        return other if other in self._correlations else None

    def is_correlated(self, name: str) -> bool:
        """Return whether the file has the input correlations of matrix ``name``."""
        return self.correlated_name(name) is not None

    def inputs(
        self, name: str, row_length: int, n_matrices: int = 1, *, threads: int = 0
    ) -> TensorInputs | None:
        """Return the importance and correlations of a tensor's inputs, in the form that the encoder takes.

        ``name`` is a tensor with ``n_matrices`` matrices, whose rows have ``row_length`` columns. Returns
        None if the file has no correlations at all. If it has none for this tensor, the result holds the
        importance alone, or an importance of 1 for every column. Raises :class:`BadFileError` if the number
        of columns differs.
        """
        if not self._correlations:
            return None
        weights = self.weights(name, row_length, n_matrices)
        if weights is None:
            return TensorInputs(np.ones((n_matrices, row_length), np.float32), threads=threads)
        stored = self.correlated_name(name)
        if stored is None:
            return TensorInputs(weights, threads=threads)
        entry = self._correlations[stored]
        n_sums = entry.counts.size
        if entry.n_values != pair_count(row_length) * n_sums or n_sums not in (1, n_matrices):
            raise BadFileError(
                f"{self.file}: {stored} has {counted(entry.n_values, 'correlation')}, but"
                f" {counted(row_length, 'column has', 'columns have')}"
                f" {pair_count(row_length)}; use an imatrix made from this model"
            )
        return TensorInputs(weights, self.correlations(stored), entry.counts, threads=threads)

    def _of_another_model(self, name: str, entry: _Entry, row_length: int, n_matrices: int) -> BadFileError:
        return BadFileError(
            f"{self.file}: {name} has {counted(entry.n_values, 'value')}, but the model's tensor has "
            f"{counted(row_length, 'column')} x {counted(n_matrices, 'matrix')}; use an imatrix made"
            " from this model"
        )

    @property
    def has_token_counts(self) -> bool:
        """Whether counts are numbers of tokens, as in the GGUF form. In the older form they count chunks."""
        return self.chunk_size is not None

    def sums(self, name: str) -> tuple[Floats, Floats]:
        """Read and check the sums and counts of one tensor.

        Returns the sums of squares, float32 [n_counts, n_values / n_counts], and the counts, float32
        [n_counts]. Raises KeyError if the file has no entry of that name.
        """
        return self._read(name, self._entries[name])

    def refining_sums(self, name: str) -> tuple[Floats, Floats]:
        """As :meth:`sums`, for a tensor of :attr:`refining_names`."""
        return self._read(name, self._refining[name])

    def fisher_sums(self, name: str) -> tuple[Floats, Floats]:
        """As :meth:`sums`, for Fisher information: its sum, float32 [1, row_length], and token count, [1]."""
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
        if self._prior and counts.size > 1 and counts.any():
            pooled = sums.sum(axis=0, dtype=np.float64) / counts.sum(dtype=np.float64)
            sums = sums + (self._prior * pooled).astype(np.float32)
            counts = counts + np.float32(self._prior)
        counts = counts[:, np.newaxis]
        means: Floats = np.divide(sums, counts, out=np.ones_like(sums, np.float32), where=counts > 0)
        return means

    def filtered(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Importance:
        """Return a copy that uses only the tensors that ``include`` or ``exclude`` selects.

        The arguments are those of :class:`WeightsFilter`. The file is not checked again.
        """
        chosen = WeightsFilter(include, exclude)
        kept = {name: entry for name, entry in self._entries.items() if name in chosen}
        return replace(self, _entries=kept)

    def metadata(self) -> list[tuple[str, str | int, GGUFValueType]]:
        """Return the metadata that a file quantized with this matrix records: keys, values and types.

        Order and types are llama-quantize's. The list is empty if no tensor uses the matrix.
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
    """Return the end of a message about a bad entry: what the user can do."""
    return f"make the imatrix again, or leave it out with `exclude_weights={name}`"


def _check_values(values: npt.NDArray[np.floating[Any]], where: str, name: str) -> None:
    """Raise an error that names the first value that is negative, infinite or NaN, if there is one."""
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
    """Open an importance matrix file of either form and check every value of the entries in use.

    ``include`` and ``exclude`` are those of :class:`WeightsFilter`. A bad entry of a tensor that is not
    selected is no error. Fisher information and correlations are kept for all tensors, because other tensors
    may depend on them; those of a tensor that is not selected are dropped if they are bad.

    Raises :class:`BadFileError` if the file is damaged or is no importance matrix, and
    :class:`NotFiniteError` if it contains NaN or infinity.
    """
    return read_importance(path, WeightsFilter(include, exclude), IMATRIX)


def read_importance(path: str | os.PathLike[str], chosen: WeightsFilter, purpose: Purpose) -> Importance:
    """Do the work of :func:`load_importance`. ``purpose`` has the remedies in messages about a bad file."""
    file = os.fspath(path)
    check_regular_file(file, purpose)
    with os_errors(Path(file), "read the importance matrix", BadFileError), open(file, "rb") as stream:
        head = stream.read(HEAD_BYTES)
        stream.seek(0)
        if head.startswith(b"GGUF"):
            importance = _read_gguf(file, chosen, purpose)
        else:
            try:
                importance = _read_binary(file, stream, chosen, purpose)
            except BadFileError as error:  # a file of this form has no magic number
                if other := mistaken(head, purpose):
                    raise BadFileError(f"{file}: {other}") from error
                raise
    for name in importance.names:  # an error now is better than one after hours of work
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
    """Return the entries that ``read`` accepts. An error is raised only for a tensor in ``chosen``."""
    sound = {}
    for name, entry in entries.items():
        try:
            read(name)
        except Q4HifiError:
            if name in chosen:
                raise
        else:
            sound[name] = entry
    return sound


def _read_gguf(file: str, chosen: WeightsFilter, purpose: Purpose) -> Importance:
    with GgufFile.open(file, purpose) as gguf:
        datasets = gguf.metadata.get("imatrix.datasets")
        if not isinstance(datasets, list) or not all(isinstance(name, str) for name in datasets):
            contents = contents_of(gguf.metadata)
            what = "" if contents == IMATRIX_NAME else f"this is {contents}, not {IMATRIX_NAME}: "
            raise BadFileError(
                f"{file}: {what}the key imatrix.datasets is missing or is not a list of strings;"
                f" {purpose.source}"
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
        same_inputs = _same_inputs(file, gguf.metadata.get(KEY_SAME_INPUTS))
    if not names:
        raise BadFileError(f"{file}: no tensor has an entry; make the imatrix again")
    names_in_file = tuple(dict.fromkeys((*names, *_gguf_names(gguf, REFINING_SUFFIX))))
    used, refining = (
        {name: entry for name, entry in group.items() if name in chosen} for group in (entries, refining)
    )
    run = run if isinstance(run, str) else None
    groups = (used, refining, fisher, correlated)
    return Importance(
        file, tuple(datasets), chunk_count, chunk_size, names_in_file, *groups, run, same_inputs
    )


def _same_inputs(file: str, value: object) -> dict[str, str] | None:
    """Return the name under which a tensor's correlations are, from the list in the file; None without
    one."""
    if value is None:
        return None
    pairs = [str(item).partition("=") for item in value] if isinstance(value, list) else []
    if not pairs or not all(name and first for name, _, first in pairs):
        raise BadFileError(
            f"{file}: the key {KEY_SAME_INPUTS} is not a list of NAME=NAME; make the imatrix again"
        )
    return {name: first for name, _, first in pairs}


def _gguf_names(gguf: GgufFile, *suffixes: str) -> tuple[str, ...]:
    """Return the model's tensors that have a stored tensor with one of the suffixes, in the file's order."""
    names = {t.removesuffix(suffix): None for t in gguf.tensors for suffix in suffixes if t.endswith(suffix)}
    return tuple(names)


def _gguf_entries(
    file: str, gguf: GgufFile, sums_suffix: str, counts_suffix: str, chosen: WeightsFilter
) -> dict[str, _Entry]:
    """Return the entries by tensor name. Bad entries of tensors that are not ``chosen`` are left out."""
    entries = {}
    for name in _gguf_names(gguf, sums_suffix, counts_suffix):
        try:
            entries[name] = _gguf_entry(file, gguf, name, sums_suffix, counts_suffix)
        except Q4HifiError:
            if name in chosen:
                raise
    return entries


def _gguf_entry(file: str, gguf: GgufFile, name: str, sums_suffix: str, counts_suffix: str) -> _Entry:
    sums, counts = gguf.tensors.get(name + sums_suffix), gguf.tensors.get(name + counts_suffix)
    if sums is None or counts is None:
        missing = sums_suffix if sums is None else counts_suffix
        raise BadFileError(f"{file}: tensor {name}{missing} is missing; {_again(name)}")
    for tensor in (sums, counts):
        if tensor.type.name != "F32":
            raise BadFileError(
                f"{file}: tensor {tensor.name} has the type {tensor.type.name}, but must be F32;"
                f" {_again(name)}"
            )
    n_values, n_counts = prod(sums.shape), prod(counts.shape)
    if n_values == 0 or n_counts == 0 or n_values % n_counts:
        raise BadFileError(
            f"{file}: {name} has {counted(n_values, 'sum')} and {counted(n_counts, 'count')}; the sums"
            " must be a multiple of the"
            f" counts; {_again(name)}"
        )
    measured = gguf.read(counts).reshape(-1).view("<f4").astype(np.float64)
    _check_values(measured, f"{file}: tensor {counts.name}", name)
    if measured.max() > MAX_COUNT:
        raise BadFileError(
            f"{file}: tensor {counts.name} has a count of {measured.max():g} tokens, which is too large;"
            f" {_again(name)}"
        )
    rounded = np.floor(measured + 0.5).astype(np.float32)  # halves up, as llama-quantize rounds
    return _Entry(gguf.paths[sums.shard], sums.offset, n_values, rounded)


def _gguf_correlations(
    file: str, gguf: GgufFile, entries: Mapping[str, _Entry], chosen: WeightsFilter
) -> Iterator[tuple[str, _Entry]]:
    for name in _gguf_names(gguf, CORRELATIONS_SUFFIX):
        tensor = gguf.tensors[name + CORRELATIONS_SUFFIX]
        entry, n_values = entries.get(name), prod(tensor.shape)
        n_matrices = 0 if entry is None else entry.counts.size
        pairs = 0 if entry is None else pair_count(entry.n_values // n_matrices)
        if tensor.type.name != "I8":
            problem = f"has the type {tensor.type.name}, but must be I8"
        elif entry is None or n_values not in (pairs, pairs * n_matrices):
            problem = (
                f"has {counted(n_values, 'correlation')}, which does not fit the number of columns of"
                " its sums"
            )
        else:
            pooled = n_values == pairs
            counts = entry.counts.sum(keepdims=True) if pooled else entry.counts
            yield name, _Entry(gguf.paths[tensor.shard], tensor.offset, n_values, counts)
            continue
        if name in chosen:
            raise BadFileError(f"{file}: tensor {tensor.name} {problem}; {_again(name)}")


def _read_binary(file: str, stream: BinaryIO, chosen: WeightsFilter, purpose: Purpose) -> Importance:
    read = _Reader(file, stream, purpose)
    n_entries = read.i32("the number of entries")
    if not 1 <= n_entries <= min(MAX_ENTRIES, read.left // SMALLEST_ENTRY):
        raise BadFileError(
            f"{file}: claims {counted(n_entries, 'entry', 'entries')} in {counted(read.left, 'byte')}; "
            f"the file is not an importance matrix, or it is damaged; {purpose.again}"
        )
    names: dict[str, None] = {}
    entries: dict[str, _Entry] = {}
    for i in range(n_entries):
        name = read.text(f"the name of entry {i}")
        if name in names:
            raise BadFileError(f"{file}: entry {i} is a second entry of {name}; make the imatrix again")
        names[name] = None
        calls, n_values = read.i32(f"the calls of {name}"), read.i32(f"the length of {name}")
        offset = read.skip(4 * n_values, f"the values of {name}")
        if name not in chosen:
            continue
        if calls < 0:
            raise BadFileError(f"{file}: {name} has {counted(calls, 'call')}, below zero; {_again(name)}")
        if n_values < 1:
            raise BadFileError(f"{file}: {name} has {counted(n_values, 'value')}; {_again(name)}")
        entries[name] = _Entry(Path(file), offset, n_values, np.full(1, calls or 1, np.float32))
    chunk_count, datasets = None, tuple[str, ...]()
    if read.left:
        chunk_count = _checked_count(read.i32("the chunk count"), f"{file}: chunk count")
    if read.left and (dataset := read.text("the data set's name")):
        datasets = (dataset,)
    if read.left:
        raise BadFileError(
            f"{file}: {counted(read.left, 'byte follows', 'bytes follow')} the end: it is damaged;"
            f" {purpose.again}"
        )
    return Importance(file, datasets, chunk_count, None, tuple(names), entries)


def _checked_count(value: object, where: str) -> int:
    if not isinstance(value, int) or not 0 <= value <= MAX_I32:
        raise BadFileError(f"{where} is {value}, but must be a whole number from 0 to {MAX_I32}")
    return int(value)


class _Reader:
    """Reads the fields of the binary form. A field that reaches beyond the end of the file is an error."""

    def __init__(self, file: str, stream: BinaryIO, purpose: Purpose) -> None:
        self._file, self._stream, self._purpose = file, stream, purpose
        self._size = os.fstat(stream.fileno()).st_size

    @property
    def left(self) -> int:
        """Bytes that have not been read yet."""
        return self._size - self._stream.tell()

    def _need(self, n: int, what: str) -> None:
        if not 0 <= n <= self.left:
            raise BadFileError(
                f"{self._file}: {what} takes {counted(n, 'byte')} at offset {self._stream.tell()}, but"
                f" only {self.left} "
                f"are left; it is damaged, or not an importance matrix; {self._purpose.again}"
            )

    def _take(self, n: int, what: str) -> bytes:
        self._need(n, what)
        return self._stream.read(n)

    def skip(self, n: int, what: str) -> int:
        """Skip ``n`` bytes and return the offset of the first."""
        self._need(n, what)
        return self._stream.seek(n, os.SEEK_CUR) - n

    def i32(self, what: str) -> int:
        """Read one 32-bit integer."""
        value: int = struct.unpack("<i", self._take(4, what))[0]
        return value

    def text(self, what: str) -> str:
        """Read a string, which follows its length."""
        return decode_text(self._take(self.i32(f"the length of {what}"), what))
