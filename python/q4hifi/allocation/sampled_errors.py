"""What each candidate format would cost a matrix in precision, measured on some of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf

import numpy as np
import numpy.typing as npt

from ..codec.model_file import ModelFile, ModelTensor, RowRange
from ..codec.rows import ErrorSums, Parts, check_finite, decode, encode, errors
from ..errors import NotFiniteError
from ..formats.layout import Format
from ..formats.tensor_names import output_of
from ..formats.types import TYPES
from ..imatrix.file import Floats, Importance
from .candidates import probe_of
from .sensitivities import Energy

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

GOLDEN_RATIO = (5**0.5 - 1) / 2
"""Multiples of it, without their whole parts, are spread evenly: Weyl's sequence."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Some rows of a tensor as they lie in the file, all under one row of importance.

    ``matrix`` is the number of the matrix (expert) whose importance that is.
    """

    matrix: int
    rows: tuple[int, ...]
    parts: Parts

    def every(self, step: int) -> Sample:
        """Return every ``step``-th of the rows, from the first on."""
        rows = len(self.rows)
        parts = tuple(part.reshape(rows, -1)[::step].reshape(-1) for part in self.parts)
        return Sample(self.matrix, self.rows[::step], parts)


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
    return (numbers * step + numbers * GOLDEN_RATIO % 1 * (step - 1)).astype(np.int64)


class SampledTensor:
    """Some rows of a tensor, read once, with the importances under which the tensor will be quantized.

    Attributes: ``tensor``; ``samples``, the rows, those under one row of importance together; ``weights``,
    the importances as float32 [matrices, row length], or None.
    """

    def __init__(
        self, model: ModelFile, tensor: ModelTensor, importance: Importance | None, *, threads: int = 0
    ) -> None:
        """Read the rows. Raises :class:`NotFiniteError`, with the place, where a weight is NaN or
        infinite."""
        self.tensor = tensor
        self.weights: Floats | None = None
        if importance is not None:
            n_matrices = tensor.shape[2] if len(tensor.shape) > 2 else 1
            self.weights = importance.weights(tensor.name, tensor.row_length, n_matrices)
        n_groups = 1 if self.weights is None else len(self.weights)
        numbers = sampled_rows(tensor.n_rows, tensor.row_length)
        groups = numbers // tensor.rows_per_matrix % n_groups
        self.samples = [
            _read_rows(model, tensor, group, numbers[groups == group]) for group in np.unique(groups).tolist()
        ]
        self._threads = threads
        self._encoded: dict[tuple[Format, int], tuple[list[Parts], ErrorSums]] = {}

    def relative_errors(self, formats: Sequence[Format]) -> list[float]:
        """Return the relative squared error of each format: Σ w (x - x')² / Σ w x² over the sample.

        The importances w are those that a quantization of the tensor uses, the encoder is the plain one.
        Infinite for a format that cannot hold weights so large.
        """
        base = Format(TYPES["Q4_K"])
        n_few = sum(len(sample.every(OUTLIERS_SHARE).rows) for sample in self.samples)
        if n_few * self.tensor.row_length < FEWEST_WEIGHTS / 4 or not any(f.outliers for f in formats):
            return [self._error(form) for form in formats]
        whole, of_few = self._error(base), self._error(base, OUTLIERS_SHARE)
        scale = whole / of_few if 0 < whole < inf and 0 < of_few < inf else 1.0
        return [
            scale * self._error(form, OUTLIERS_SHARE) if form.outliers else self._error(form)
            for form in formats
        ]

    def fisher_sensitivity(self, fisher: Floats) -> float:
        """Return the nats per relative error, under the importances, by the Fisher information.

        Half of its sum is the nats per relative error under ``fisher`` itself, float32 [row length]. How
        much larger that error is, the encoding as :func:`~q4hifi.allocation.candidates.probe_of` shows.
        """
        length, value = self.tensor.row_length, float(fisher.sum(dtype=np.float64)) / 2
        kind = probe_of(length)
        if kind is None:
            return value
        probe = Format(kind)
        encoded, own = self._encode(probe, 1)
        under_fisher = ErrorSums()
        for sample, parts in zip(self.samples, encoded, strict=True):
            decoded = decode(parts, probe, length, threads=self._threads)
            under_fisher += errors(sample.parts, self.tensor.format, decoded, fisher, threads=self._threads)
        return value * under_fisher.relative / own.relative if own.relative else value

    def output_energy(self) -> Energy | None:
        """Return the mean squared length of what each matrix puts out, Σ importance x weight².

        None where the importance is not known.
        """
        weights = self.weights
        if weights is None:
            return None
        cut = np.minimum(weights, np.quantile(weights, ORDINARY_COLUMNS, axis=-1, keepdims=True))
        squares = self._squares()

        def energies(columns: Floats) -> list[npt.NDArray[np.float64]]:
            return [
                (s * columns[sample.matrix % len(columns)]).sum(axis=-1)
                for s, sample in zip(squares, self.samples, strict=True)
            ]

        whole, ordinary = np.concatenate(energies(weights)), energies(cut)
        groups = [np.concatenate([rows[i::ROW_GROUPS] for rows in ordinary]) for i in range(ROW_GROUPS)]
        return Energy(
            self.tensor.shape[1] * float(whole.mean()),
            self.tensor.shape[1] * float(np.median([group.mean() for group in groups if group.size])),
        )

    def row_energy(self) -> Energy:
        """Return the mean squared length of a row."""
        mean = float(np.concatenate([s.sum(axis=-1) for s in self._squares()]).mean())
        return Energy(mean, mean)

    def _error(self, form: Format, step: int = 1) -> float:
        try:
            return self._encode(form, step)[1].relative
        except NotFiniteError:  # the rows were checked, so it is what became of them
            return inf

    def _encode(self, form: Format, step: int) -> tuple[list[Parts], ErrorSums]:
        """Encode every ``step``-th row, once: a format may be a candidate, the base and the probe."""
        if (form, step) not in self._encoded:
            encoded, sums = [], ErrorSums()
            for sample in (sample.every(step) for sample in self.samples):
                columns = None if self.weights is None else self.weights[sample.matrix % len(self.weights)]
                length, source = self.tensor.row_length, self.tensor.format
                parts, of_sample = encode(sample.parts, source, form, length, columns, threads=self._threads)
                encoded.append(parts)
                sums += of_sample
            self._encoded[form, step] = encoded, sums
        return self._encoded[form, step]

    def _squares(self) -> list[npt.NDArray[np.float64]]:
        """Each sample's weights, squared, [rows, row length]."""
        form, length = self.tensor.format, self.tensor.row_length
        return [
            np.square(decode(s.parts, form, length, threads=self._threads), dtype=np.float64)
            for s in self.samples
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


def logit_variance(model: ModelFile) -> float | None:
    """Return the variance of a token's logits over the vocabulary, nats², by the weights alone.

    The output matrix meets a vector of length √n, times the gain of the norm before it: taken to be alike in
    all directions, as in no one token, but in the mean of many. None where the weights do not tell.
    """
    output = model.tensors.get(output_of(model.tensors))
    norm = model.tensors.get("output_norm.weight")
    if output is None or norm is None or norm.row_length != output.row_length or not output.n_elements:
        return None
    numbers = sampled_rows(output.n_rows, output.row_length).tolist()
    rows = np.concatenate([model.dequantize_rows(RowRange(output, 0, row, 1)) for row in numbers])
    gain = model.dequantize_rows(RowRange(norm, 0, 0, 1)).reshape(-1)
    variance = float(np.square(gain, dtype=np.float64) @ rows.var(axis=0, dtype=np.float64))
    return variance if 0 < variance < inf else None
