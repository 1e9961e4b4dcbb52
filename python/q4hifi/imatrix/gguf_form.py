"""Reading importance matrices in the GGUF form; :mod:`q4hifi.imatrix.file` describes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

import numpy as np

from ..codec.input_correlations import pair_count
from ..errors import BadFileError, Q4HifiError
from ..files.file_kinds import IMATRIX_NAME, Purpose
from ..gguf_io.contents import contents_of
from ..gguf_io.reader import GgufFile
from ..wording import counted
from .entries import Entry, WeightsFilter, check_values, checked_count, remedy
from .importance import Importance

SUMS_SUFFIX, COUNTS_SUFFIX = ".in_sum2", ".counts"
FISHER_SUFFIX, FISHER_COUNTS_SUFFIX = ".fisher", ".fisher_counts"
REFINING_SUFFIX, REFINING_COUNTS_SUFFIX = ".refine_sum2", ".refine_counts"
CORRELATIONS_SUFFIX = ".in_corr"
"""What is appended to a tensor's name for the tensors of its entry."""

KEY_RUN = "q4hifi.imatrix.run"
KEY_SAME_INPUTS = "q4hifi.imatrix.same_inputs"
"""Metadata keys of q4hifi: the fingerprint of the run, and the tensors with the same inputs."""

MAX_COUNT = 2**53
"""Limit on a token count. Real counts are far smaller."""


def read_gguf(file: str, chosen: WeightsFilter, purpose: Purpose) -> Importance:
    """Read the entries of a file in the GGUF form. Raises :class:`BadFileError` where it is damaged."""
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
            checked_count(gguf.metadata.get(key), f"{file}: key {key}")
            for key in ("imatrix.chunk_count", "imatrix.chunk_size")
        )
        names = _names(gguf, SUMS_SUFFIX, COUNTS_SUFFIX)
        entries = _entries(file, gguf, SUMS_SUFFIX, COUNTS_SUFFIX, chosen)
        refining = _entries(file, gguf, REFINING_SUFFIX, REFINING_COUNTS_SUFFIX, chosen)
        fisher = _entries(file, gguf, FISHER_SUFFIX, FISHER_COUNTS_SUFFIX, chosen)
        correlated = dict(_correlations(file, gguf, {**refining, **entries}, chosen))
        run = gguf.metadata.get(KEY_RUN)
        same_inputs = _same_inputs(file, gguf.metadata.get(KEY_SAME_INPUTS))
    if not names:
        raise BadFileError(f"{file}: no tensor has an entry; make the imatrix again")
    names_in_file = tuple(dict.fromkeys((*names, *_names(gguf, REFINING_SUFFIX))))
    used, refining = (
        {name: entry for name, entry in group.items() if name in chosen} for group in (entries, refining)
    )
    run = run if isinstance(run, str) else None
    groups = (used, refining, fisher, correlated)
    return Importance(
        file, tuple(datasets), chunk_count, chunk_size, names_in_file, *groups, run, same_inputs
    )


def _same_inputs(file: str, value: object) -> dict[str, str] | None:
    """Return the file's list: tensor -> name under which its correlations are stored. None without a list."""
    if value is None:
        return None
    pairs = [str(item).partition("=") for item in value] if isinstance(value, list) else []
    if not pairs or not all(name and first for name, _, first in pairs):
        raise BadFileError(
            f"{file}: the key {KEY_SAME_INPUTS} is not a list of NAME=NAME; make the imatrix again"
        )
    return {name: first for name, _, first in pairs}


def _names(gguf: GgufFile, *suffixes: str) -> tuple[str, ...]:
    """Return the model's tensors that have a stored tensor with one of the suffixes, in the file's order."""
    names = {t.removesuffix(suffix): None for t in gguf.tensors for suffix in suffixes if t.endswith(suffix)}
    return tuple(names)


def _entries(
    file: str, gguf: GgufFile, sums_suffix: str, counts_suffix: str, chosen: WeightsFilter
) -> dict[str, Entry]:
    """Return the entries by tensor name. Bad entries of tensors that are not ``chosen`` are left out."""
    entries = {}
    for name in _names(gguf, sums_suffix, counts_suffix):
        try:
            entries[name] = _entry(file, gguf, name, sums_suffix, counts_suffix)
        except Q4HifiError:
            if name in chosen:
                raise
    return entries


def _entry(file: str, gguf: GgufFile, name: str, sums_suffix: str, counts_suffix: str) -> Entry:
    sums, counts = gguf.tensors.get(name + sums_suffix), gguf.tensors.get(name + counts_suffix)
    if sums is None or counts is None:
        missing = sums_suffix if sums is None else counts_suffix
        raise BadFileError(f"{file}: tensor {name}{missing} is missing; {remedy(name)}")
    for tensor in (sums, counts):
        if tensor.type.name != "F32":
            raise BadFileError(
                f"{file}: tensor {tensor.name} has the type {tensor.type.name}, but must be F32;"
                f" {remedy(name)}"
            )
    n_values, n_counts = prod(sums.shape), prod(counts.shape)
    if n_values == 0 or n_counts == 0 or n_values % (n_counts * sums.shape[0]):
        raise BadFileError(
            f"{file}: {name} has {counted(n_values, 'sum')} and {counted(n_counts, 'count')}; there must be a"
            f" count for every row of sums, or one for several; {remedy(name)}"
        )
    measured = gguf.read(counts).reshape(-1).view("<f4").astype(np.float64)
    check_values(measured, f"{file}: tensor {counts.name}", name)
    if measured.max() > MAX_COUNT:
        raise BadFileError(
            f"{file}: tensor {counts.name} has a count of {measured.max():g} tokens, which is too large;"
            f" {remedy(name)}"
        )
    rounded = np.floor(measured + 0.5).astype(np.float32)  # halves up, as llama-quantize rounds
    return Entry(gguf.paths[sums.shard], sums.offset, n_values, rounded)


def _correlations(
    file: str, gguf: GgufFile, entries: Mapping[str, Entry], chosen: WeightsFilter
) -> Iterator[tuple[str, Entry]]:
    for name in _names(gguf, CORRELATIONS_SUFFIX):
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
            yield name, Entry(gguf.paths[tensor.shard], tensor.offset, n_values, counts)
            continue
        if name in chosen:
            raise BadFileError(f"{file}: tensor {tensor.name} {problem}; {remedy(name)}")
