"""Carrying out a plan: a model is read, converted and written piece by piece, all three at the same time.

A few pieces of :data:`~q4hifi.codec.model_file.CHUNK_WEIGHTS` weights are in memory, whatever the size of the
model.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..codec.input_correlations import Hessian, TensorInputs
from ..codec.model_file import ModelFile, RowRange, row_ranges
from ..codec.rows import ErrorSums, Parts, base_of, check_finite, encode, relayout
from ..files.output_file import check_writable
from ..formats.layout import BASE
from ..formats.types import Q4_HIFI
from ..gguf_io.metadata import Metadata
from ..gguf_io.split import assign_shards, output_paths
from ..gguf_io.writer import GgufWriter
from ..imatrix.importance import Importance
from ..plan.plan import Plan, PlannedTensor
from ..progress import Progress

LOOKAHEAD = 2
"""The number of pieces that are read ahead, and that wait to be written."""

INPUTS_KEPT = 4
"""The number of matrices whose input correlations are kept: matrices of the same inputs follow each other."""


@dataclass(frozen=True, slots=True)
class Output:
    """Where a model is written, and how it is split into files.

    ``sources`` are files that must not be overwritten; the files of the source model need not be among them.
    """

    path: str | os.PathLike[str]
    overwrite: bool = False
    keep_split: bool = False
    split_max_size: int | None = None
    sources: tuple[str | os.PathLike[str], ...] = ()

    def check(self, model: ModelFile) -> None:
        """Raise :class:`Q4HifiError` if the destination cannot be written. This needs no plan.

        Only the plan says how many files ``split_max_size`` makes, so these are checked later.
        """
        if self.split_max_size is None:
            count = len(_kept_files(model)) if self.keep_split else 1
            for path in output_paths(Path(self.path), count):
                check_writable(path, self.overwrite, (*model.paths, *self.sources))

    def shards(self, model: ModelFile, plan: Plan) -> list[int]:
        """Return the index of the file of each stored tensor of ``plan``."""
        groups = [t.stored for t in plan.tensors]
        if self.split_max_size is not None:
            return assign_shards(groups, self.split_max_size, alignment=model.gguf.alignment)
        if self.keep_split:
            kept = {shard: number for number, shard in enumerate(_kept_files(model))}
            shards = [kept[model.tensors[t.name].parts[0].shard] for t in plan.tensors]
            return [shard for shard, group in zip(shards, groups, strict=True) for _ in group]
        return [0] * sum(map(len, groups))


def _kept_files(model: ModelFile) -> list[int]:
    """The files of a model that are kept, by index: all but those whose tensors are all left out."""
    stored = {info.shard for info in model.gguf.tensors.values()}
    left = {tensor.parts[0].shard for tensor in model.tensors.values()}
    return [shard for shard in range(len(model.paths)) if shard in left or shard not in stored]


@dataclass(frozen=True, slots=True)
class Rewritten:
    """The result: the errors of the encoded tensors by name, the files, and their sizes in bytes."""

    errors: dict[str, ErrorSums]
    paths: tuple[os.PathLike[str], ...]
    sizes: tuple[int, ...]


def rewrite(
    model: ModelFile,
    plan: Plan,
    metadata: Metadata,
    output: Output,
    *,
    importance: Importance | None = None,
    refine: bool = False,
    threads: int = 0,
    progress: Progress | None = None,
    drop_outliers: bool = False,
) -> Rewritten:
    """Write ``model`` as ``plan`` says, with ``metadata``, to ``output``.

    Files appear complete or not at all. ``refine`` is that of :func:`q4hifi.codec.rows.encode`. With
    ``drop_outliers`` a Q4_HIFI tensor that becomes Q4_K keeps the bytes of its base blocks.

    Raises :class:`BadFileError` if the model's files are changed meanwhile, and :class:`NotFiniteError` for
    weights that are NaN or infinite, with file, tensor and row. Copied tensors are checked as well, if the
    core can decode their type.
    """
    total = plan.n_params
    errors: dict[str, ErrorSums] = {}
    done = 0
    with GgufWriter(
        output.path,
        metadata,
        [part for t in plan.tensors for part in t.stored],
        alignment=model.gguf.alignment,
        overwrite=output.overwrite,
        sources=(*model.paths, *output.sources),
        shard_of=output.shards(model, plan),
    ) as writer:
        work = _pieces(model, plan, importance, refine, threads)
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as disk:
            pending: deque[Future[None]] = deque()
            for piece, parts in _ahead(reader, model, work):
                with model.errors_at(piece.target.name):
                    parts, sums = _convert(piece, parts, threads, refine, drop_outliers)
                if sums is not None:
                    errors[piece.target.name] = errors.get(piece.target.name, ErrorSums()) + sums
                while len(pending) >= LOOKAHEAD:
                    pending.popleft().result()
                pending.append(disk.submit(_write, writer, piece, parts))
                done += piece.rows.count * piece.rows.tensor.row_length
                if progress is not None:
                    progress(done, total, piece.target.name)
            for future in pending:
                future.result()
        model.gguf.check_unchanged()
        writer.commit()
    return Rewritten(errors, writer.paths, writer.sizes)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Some rows of a tensor, the importance of their columns, and the Hessian of their inputs."""

    target: PlannedTensor
    rows: RowRange
    importance: npt.NDArray[np.float32] | None
    inputs: Hessian | None


def _pieces(
    model: ModelFile, plan: Plan, importance: Importance | None, refine: bool, threads: int
) -> Iterator[_Piece]:
    @lru_cache(INPUTS_KEPT)
    def inputs_of(name: str, row_length: int, n_matrices: int) -> TensorInputs | None:
        return (
            None if importance is None else importance.inputs(name, row_length, n_matrices, threads=threads)
        )

    for target in plan.tensors:
        tensor = model.tensors[target.name]
        weights = known = None
        n_matrices = tensor.shape[2] if len(tensor.shape) > 2 else 1
        if importance is not None and target.target.type.quantized and not target.copied:
            with model.errors_at(target.name):
                weights = importance.weights(target.name, tensor.row_length, n_matrices)
                if refine:
                    name = importance.correlated_name(target.name) or target.name
                    known = inputs_of(name, tensor.row_length, n_matrices)
        # all rows of a piece have the same row of importances
        by_matrix = n_matrices > 1 and (weights is not None or known is not None)
        for rows in row_ranges(tensor, by_matrix=by_matrix):
            columns = None if weights is None else weights[rows.matrix % len(weights)]
            yield _Piece(target, rows, columns, None if known is None else known.of(rows.matrix))


def _ahead(
    reader: ThreadPoolExecutor, model: ModelFile, work: Iterable[_Piece]
) -> Iterator[tuple[_Piece, Parts]]:
    """Read pieces in order, :data:`LOOKAHEAD` of them ahead."""
    work = iter(work)
    reading = deque((piece, reader.submit(model.read_rows, piece.rows)) for piece in islice(work, LOOKAHEAD))
    while reading:
        piece, future = reading.popleft()
        parts = future.result()
        for following in islice(work, 1):
            reading.append((following, reader.submit(model.read_rows, following.rows)))
        yield piece, parts


def _convert(
    piece: _Piece, parts: Parts, threads: int, refine: bool, drop_outliers: bool
) -> tuple[Parts, ErrorSums | None]:
    """The rows in their target format, and their error if they were encoded again."""
    source, target = piece.target.source, piece.target.target
    length, first = piece.rows.tensor.row_length, piece.rows.first
    if source == target:
        if source.type.codec:  # decoding others, only to check them, would take longer than the copy
            check_finite(parts, source, length, threads=threads, first_row=first)
        return parts, None
    if source.type == Q4_HIFI and target.type == Q4_HIFI and source.outliers == target.outliers:
        return relayout(parts, source, target.layout, length, first_row=first), None
    if source.type == Q4_HIFI and target.type == BASE and drop_outliers:
        return (base_of(parts, source, length, first_row=first),), None
    return encode(
        parts,
        source,
        target,
        length,
        piece.importance,
        refine=refine,
        inputs=piece.inputs,
        threads=threads,
        first_row=first,
    )


def _write(writer: GgufWriter, piece: _Piece, parts: Sequence[npt.NDArray[np.uint8]]) -> None:
    sizes = piece.target.target.part_row_bytes(piece.rows.tensor.row_length)
    for stored, size, data in zip(piece.target.stored, sizes, parts, strict=True):
        if data.size:
            writer.write_at(stored.name, piece.rows.first * size, data)
