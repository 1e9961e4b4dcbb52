"""The values of an importance matrix, as quantization uses them: :class:`Importance`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..codec.input_correlations import Correlations, TensorInputs, pair_count
from ..errors import BadFileError, Q4HifiError
from ..files.positioned_file import os_errors
from ..formats.gguf_constants import GGUFValueType
from ..formats.tensor_names import first_with_same_input
from ..gguf_io.metadata import decode_text
from ..wording import counted
from .entries import Entry, Floats, WeightsFilter, check_values

PRIOR_TOKENS = 128.0
"""Tokens that the mean of all experts counts as, beside an expert's own, in refined encodings."""

RECORDED_BYTES = 127
"""llama-quantize cuts the strings that it records to this length, in bytes."""

TOLERATED = ("token_embd.weight", "per_layer_token_embd.weight")
"""Tensors whose entry is ignored if its length does not fit; llama-quantize does the same."""


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
    _entries: Mapping[str, Entry] = field(repr=False)
    _refining: Mapping[str, Entry] = field(repr=False, default_factory=dict)
    _fisher: Mapping[str, Entry] = field(repr=False, default_factory=dict)
    _correlations: Mapping[str, Entry] = field(repr=False, default_factory=dict)
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

    def routing(self, name: str, n_matrices: int) -> Floats:
        """Return how often each expert of tensor ``name`` was routed to: float32 [n_matrices], with mean 1.

        All are 1 where the file has no counts of single experts. Raises KeyError if the file has no entry of
        that name.
        """
        counts = self._entries[name].counts
        if counts.size != n_matrices or not counts.any():
            return np.ones(n_matrices, np.float32)
        shares: Floats = counts / counts.mean()
        return shares

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

    def _of_another_model(self, name: str, entry: Entry, row_length: int, n_matrices: int) -> BadFileError:
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

    def _read(self, name: str, entry: Entry) -> tuple[Floats, Floats]:
        with os_errors(entry.path, f"read the values of {name}", BadFileError):
            sums = np.fromfile(entry.path, "<f4", entry.n_values, offset=entry.offset)
        if sums.size != entry.n_values:
            raise BadFileError(f"{self.file}: {name} ends early; the file was changed while in use")
        check_values(sums, f"{self.file}: {name}", name)
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

    def renamed(self, new_name: Callable[[str], str | None]) -> Importance:
        """Return a copy for a model whose tensors have other names.

        ``new_name`` returns a tensor's name in it, or None to leave out its entry.
        """

        def moved(entries: Mapping[str, Entry]) -> dict[str, Entry]:
            names = {name: new_name(name) for name in entries}
            return {new: entries[old] for old, new in names.items() if new is not None}

        pairs = {new_name(a): new_name(b) for a, b in (self._same_inputs or {}).items()}
        return replace(
            self,
            _entries=moved(self._entries),
            _refining=moved(self._refining),
            _fisher=moved(self._fisher),
            _correlations=moved(self._correlations),
            _same_inputs=None if self._same_inputs is None else {a: b for a, b in pairs.items() if a and b},
        )

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


def checked(importance: Importance, chosen: WeightsFilter) -> Importance:
    """Return a copy whose values are sound: an error now is better than one after hours of work.

    Bad Fisher information and correlations of a tensor that is not ``chosen`` are dropped. Raises
    :class:`BadFileError` and :class:`NotFiniteError` for other bad values.
    """
    for name in importance.names:
        importance._means(name)
    for name in importance.refining_names:
        importance.refining_sums(name)
    return replace(
        importance,
        _fisher=_sound(importance._fisher, importance.fisher_sums, chosen),
        _correlations=_sound(importance._correlations, importance.correlations, chosen),
    )


def _sound(
    entries: Mapping[str, Entry], read: Callable[[str], object], chosen: WeightsFilter
) -> dict[str, Entry]:
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
