"""What each candidate format would cost a matrix in precision, measured on some of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf

import numpy as np
import numpy.typing as npt

from .candidates import probe_of
from .errors import NotFiniteError
from .importance import Floats, Importance
from .layout import Format
from .model_file import ModelFile, ModelTensor, RowRange
from .rows import ErrorSums, Parts, check_finite, decode, encode, errors
from .sensitivities import Energy
from .types import TYPES

SHARE = 1 / 128
"""Of the rows of a matrix that are measured, but for the limits below."""

FEWEST_ROWS, FEWEST_WEIGHTS = 64, 50_000
"""Small matrices are measured to at least so much, or whole: rows differ."""

MOST_WEIGHTS = 1 << 18
"""Large ones to at most so much: enough to know the error to a few percent."""

SHORTEST_ROW = 32
"""Of shorter rows no more are measured than of rows of that length: no type of blocks fits them."""

OUTLIERS_SHARE = 4
"""Of a large sample's rows one in so many is encoded with outliers, which takes longest: they leave nearly
the same share of Q4_K's error in all rows."""

ORDINARY_COLUMNS = 0.995
"""Importances above this quantile are cut to it where the energy of ordinary tokens is measured. Massive
activations of single tokens, such as the first of a text, come from a few columns and go to a few rows."""

ROW_GROUPS = 15
"""The rows are measured in so many groups for that, and the median counts."""

OUTPUTS = ("output.weight", "token_embd.weight")
"""Names of the matrix that makes the logits; the first that a model has does."""

GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, slots=True)
class Sample:
    """Some rows of a tensor as they lie in the file, all under one row of importance.

    ``matrix`` is the number of the matrix (expert) whose importance that is.
    """

    matrix: int
    rows: tuple[int, ...]
    parts: Parts

    def every(self, step: int, first: int) -> Sample:
        """Return every ``step``-th of the rows, from number ``first`` on."""
        rows = len(self.rows)
        parts = tuple(part.reshape(rows, -1)[first::step].reshape(-1) for part in self.parts)
        return Sample(self.matrix, self.rows[first::step], parts)


def sampled_rows(n_rows: int, row_length: int) -> npt.NDArray[np.int64]:
    """Return the numbers of the rows to measure, in order.

    One of each of as many equal stretches. Its place in the stretch varies: evenly spaced rows would
    be the same row of every head.
    """
    length = max(row_length, SHORTEST_ROW)
    fewest = max(FEWEST_ROWS, ceil(FEWEST_WEIGHTS / length))
    most = max(fewest, MOST_WEIGHTS // length)
    count = min(n_rows, most, max(fewest, round(n_rows * SHARE)))
    numbers = np.arange(count)
    step = n_rows / count
    return (numbers * step + numbers * GOLDEN % 1 * (step - 1)).astype(np.int64)


def read_sample(model: ModelFile, tensor: ModelTensor, importance: Importance | None) -> list[Sample]:
    """Read the rows of a tensor to measure, those under one row of importance together."""
    weights = _weights(tensor, importance)
    n_groups = 1 if weights is None else len(weights)
    numbers = sampled_rows(tensor.n_rows, tensor.row_length)
    groups = numbers // tensor.rows_per_matrix % n_groups
    return [
        _read_rows(model, tensor, group, numbers[groups == group]) for group in np.unique(groups).tolist()
    ]


def _read_rows(model: ModelFile, tensor: ModelTensor, matrix: int, rows: npt.NDArray[np.int64]) -> Sample:
    runs = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    read = [model.read_rows(RowRange(tensor, matrix, int(run[0]), run.size)) for run in runs]
    parts = tuple(np.concatenate(pieces) for pieces in zip(*read, strict=True))
    try:
        check_finite(parts, tensor.format, tensor.row_length)
    except NotFiniteError:  # its place is that in the sample: find that in the tensor
        for run, piece in zip(runs, read, strict=True):
            check_finite(piece, tensor.format, tensor.row_length, first_row=int(run[0]))
        raise
    return Sample(matrix, tuple(rows.tolist()), parts)


def relative_errors(
    tensor: ModelTensor,
    samples: Sequence[Sample],
    formats: Sequence[Format],
    importance: Importance | None,
    *,
    threads: int = 0,
) -> list[float]:
    """Return the relative squared error of each format: Σ w (x - x')² / Σ w x² over the sample.

    The importances w are those that a quantization of the tensor uses, the encoder is the plain one.
    Infinite for a format that cannot hold weights so large.
    """
    weights = _weights(tensor, importance)

    def error(form: Format, samples: Sequence[Sample]) -> float:
        try:
            return _sums(tensor, samples, form, weights, threads).relative
        except NotFiniteError:  # the rows were checked, so it is what became of them
            return inf

    base, few = Format(TYPES["Q4_K"]), [sample.every(OUTLIERS_SHARE, 0) for sample in samples]
    n_few = sum(len(sample.rows) for sample in few) * tensor.row_length
    if n_few < FEWEST_WEIGHTS / 4 or not any(form.outliers for form in formats):
        return [error(form, samples) for form in formats]
    whole, of_few = error(base, samples), error(base, few)
    scale = whole / of_few if 0 < whole < inf and 0 < of_few < inf else 1.0
    return [scale * error(form, few) if form.outliers else error(form, samples) for form in formats]


def fisher_sensitivity(
    tensor: ModelTensor,
    samples: Sequence[Sample],
    importance: Importance | None,
    fisher: Floats,
    *,
    threads: int = 0,
) -> float:
    """Return the nats per relative error, under the importances, that a matrix' Fisher information tells.

    Half of its sum is per relative error under ``fisher`` itself, float32 [row length]: how much larger that
    is, :func:`~q4hifi.candidates.probe_of` tells.
    """
    length, value = tensor.row_length, float(fisher.sum(dtype=np.float64)) / 2
    kind = probe_of(length)
    if kind is None:
        return value
    probe = Format(kind)
    weights, own, felt = _weights(tensor, importance), ErrorSums(), ErrorSums()
    for sample in samples:
        columns = None if weights is None else weights[sample.matrix % len(weights)]
        encoded, sums = encode(sample.parts, tensor.format, probe, length, columns, threads=threads)
        decoded = decode(encoded, probe, length, threads=threads)
        own += sums
        felt += errors(sample.parts, tensor.format, decoded, fisher, threads=threads)
    return value * felt.relative / own.relative if own.relative else value


def output_energy(
    tensor: ModelTensor, samples: Sequence[Sample], importance: Importance | None, *, threads: int = 0
) -> Energy | None:
    """Return the mean squared length of what each matrix puts out, Σ importance x weight².

    None where the importance is not known.
    """
    weights = _weights(tensor, importance)
    if weights is None:
        return None
    cut = np.minimum(weights, np.quantile(weights, ORDINARY_COLUMNS, axis=-1, keepdims=True))
    squares = _squares(tensor, samples, threads)

    def energies(columns: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float64]]:
        return [
            (s * columns[sample.matrix % len(columns)]).sum(axis=-1)
            for s, sample in zip(squares, samples, strict=True)
        ]

    whole, ordinary = np.concatenate(energies(weights)), energies(cut)
    groups = [np.concatenate([rows[i::ROW_GROUPS] for rows in ordinary]) for i in range(ROW_GROUPS)]
    return Energy(
        tensor.shape[1] * float(whole.mean()),
        tensor.shape[1] * float(np.median([group.mean() for group in groups if group.size])),
    )


def row_energy(tensor: ModelTensor, samples: Sequence[Sample], *, threads: int = 0) -> Energy:
    """Return the mean squared length of a row."""
    mean = float(np.concatenate([s.sum(axis=-1) for s in _squares(tensor, samples, threads)]).mean())
    return Energy(mean, mean)


def logit_variance(model: ModelFile) -> float | None:
    """Return the variance of a token's logits over the vocabulary, nats², by the weights alone.

    The output matrix meets a vector of length √n, times the gain of the norm before it: taken to be alike in
    all directions, as in no one token, but in the mean of many. None where the weights do not tell.
    """
    output = next((t for name in OUTPUTS if (t := model.tensors.get(name)) is not None), None)
    norm = model.tensors.get("output_norm.weight")
    if output is None or norm is None or norm.row_length != output.row_length or not output.n_elements:
        return None
    numbers = sampled_rows(output.n_rows, output.row_length).tolist()
    rows = np.concatenate([model.dequantize_rows(RowRange(output, 0, row, 1)) for row in numbers])
    gain = model.dequantize_rows(RowRange(norm, 0, 0, 1)).reshape(-1)
    variance = float(np.square(gain, dtype=np.float64) @ rows.var(axis=0, dtype=np.float64))
    return variance if 0 < variance < inf else None


def _squares(tensor: ModelTensor, samples: Sequence[Sample], threads: int) -> list[npt.NDArray[np.float64]]:
    """Each sample's weights, squared, [rows, row length]."""
    return [
        np.square(decode(s.parts, tensor.format, tensor.row_length, threads=threads), dtype=np.float64)
        for s in samples
    ]


def _weights(tensor: ModelTensor, importance: Importance | None) -> npt.NDArray[np.float32] | None:
    if importance is None:
        return None
    n_matrices = tensor.shape[2] if len(tensor.shape) > 2 else 1
    return importance.weights(tensor.name, tensor.row_length, n_matrices)


def _sums(
    tensor: ModelTensor,
    samples: Sequence[Sample],
    form: Format,
    weights: npt.NDArray[np.float32] | None,
    threads: int,
) -> ErrorSums:
    sums = ErrorSums()
    for sample in samples:
        columns = None if weights is None else weights[sample.matrix % len(weights)]
        _, part = encode(sample.parts, tensor.format, form, tensor.row_length, columns, threads=threads)
        sums += part
    return sums
