"""The relative error of a matrix in each type that it may take, measured on a sample of its rows."""

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
from ..imatrix.entries import Floats
from ..imatrix.importance import Importance
from .candidates import probe_of
from .sensitivities import Energy

SHARE = 1 / 128
"""The share of the rows of a matrix that is measured, within the limits below."""

FEWEST_ROWS, FEWEST_WEIGHTS = 64, 50_000
"""The least number of rows and of weights that are measured; smaller matrices are measured whole."""

MOST_WEIGHTS = 1 << 18
"""The largest number of weights that are measured: enough to know the error to a few percent."""

SHORTEST_ROW = 32
"""Shorter rows, which no type of blocks fits, count as rows of this length in the limits above."""

OUTLIERS_SHARE = 4
"""In a large sample only every fourth row is encoded with outliers, which takes longest. The error with
outliers divided by that of Q4_K is nearly the same in all rows."""

ORDINARY_COLUMNS = 0.995
"""For the energy of ordinary tokens, importances above this quantile are cut to it. Massive activations of
single tokens, such as the first of a text, come from a few columns and go to a few rows."""

ROW_GROUPS = 15
"""The rows are measured in this number of groups for that, and the median of the groups is taken."""

GOLDEN_RATIO = (5**0.5 - 1) / 2
"""The fractional parts of its multiples are spread evenly over 0 to 1, for any number of them (Weyl's
sequence)."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Some rows of a tensor as they are in the file, which all have the same row of importances.

    ``matrix`` is the index of the matrix (expert) with that importance.
    """

    matrix: int
    rows: tuple[int, ...]
    parts: Parts

    def every(self, step: int) -> Sample:
        """Return every ``step``-th row, beginning with the first."""
        rows = len(self.rows)
        parts = tuple(part.reshape(rows, -1)[::step].reshape(-1) for part in self.parts)
        return Sample(self.matrix, self.rows[::step], parts)


def sampled_rows(n_rows: int, row_length: int) -> npt.NDArray[np.int64]:
    """Return the indices of the rows to measure, in order.

    The rows are cut into equal stretches, and one row of each stretch is taken. Its position in the stretch
    varies, because evenly spaced rows would be the same row of every head.
    """
    length = max(row_length, SHORTEST_ROW)
    fewest = max(FEWEST_ROWS, ceil(FEWEST_WEIGHTS / length))
    most = max(fewest, MOST_WEIGHTS // length)
    count = min(n_rows, most, max(fewest, round(n_rows * SHARE)))
    numbers = np.arange(count)
    step = n_rows / count
    return (numbers * step + numbers * GOLDEN_RATIO % 1 * (step - 1)).astype(np.int64)


class SampledTensor:
    """A sample of a tensor's rows, and the importances of the tensor; both are read once.

    Attributes: ``tensor``; ``samples``, the rows, grouped by their row of importances; ``weights``, the
    importances as float32 [matrices, row length], or None; ``routing``, how often each matrix (expert) is
    routed to, with mean 1, by which its errors and energies count.
    """

    def __init__(
        self, model: ModelFile, tensor: ModelTensor, importance: Importance | None, *, threads: int = 0
    ) -> None:
        """Read the rows. Raises :class:`NotFiniteError` for a weight that is NaN or infinite."""
        self.tensor = tensor
        self.weights: Floats | None = None
        if importance is not None:
            n_matrices = tensor.shape[2] if len(tensor.shape) > 2 else 1
            self.weights = importance.weights(tensor.name, tensor.row_length, n_matrices)
        self.routing: Floats = np.ones(1, np.float32)
        if importance is not None and self.weights is not None:
            self.routing = importance.routing(tensor.name, n_matrices)
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

        w are the importances of the tensor. Blocks are those of ggml's encoder. The error is infinite for a
        format that cannot hold weights of this size.
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
        """Return the sensitivity by the Fisher information: nats per relative error under the importances.

        Half of the sum of ``fisher``, float32 [row length], is the nats per relative error that is weighted
        by ``fisher`` itself. The two relative errors are compared in the probe type
        (:func:`~q4hifi.allocation.candidates.probe_of`).
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
            of_sample = errors(sample.parts, self.tensor.format, decoded, fisher, threads=self._threads)
            under_fisher += of_sample * self._routed(sample)
        return value * under_fisher.relative / own.relative if own.relative else value

    def output_energy(self) -> Energy | None:
        """Return the mean squared length of a matrix's output, Σ importance x weight².

        None if the importance is not known.
        """
        weights = self.weights
        if weights is None:
            return None
        cut = np.minimum(weights, np.quantile(weights, ORDINARY_COLUMNS, axis=-1, keepdims=True))
        squares = self._squares()

        def energies(columns: Floats) -> list[npt.NDArray[np.float64]]:
            return [
                self._routed(sample) * (s * columns[sample.matrix]).sum(axis=-1)
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

    def _routed(self, sample: Sample) -> float:
        return float(self.routing[sample.matrix])

    def _error(self, form: Format, step: int = 1) -> float:
        try:
            return self._encode(form, step)[1].relative
        except NotFiniteError:  # the rows are finite, so the type cannot hold them
            return inf

    def _encode(self, form: Format, step: int) -> tuple[list[Parts], ErrorSums]:
        """Encode every ``step``-th row. A format may be asked for again, and is encoded only once."""
        if (form, step) not in self._encoded:
            encoded, sums = [], ErrorSums()
            for sample in (sample.every(step) for sample in self.samples):
                columns = None if self.weights is None else self.weights[sample.matrix]
                length, source = self.tensor.row_length, self.tensor.format
                parts, of_sample = encode(sample.parts, source, form, length, columns, threads=self._threads)
                encoded.append(parts)
                sums += of_sample * self._routed(sample)
            self._encoded[form, step] = encoded, sums
        return self._encoded[form, step]

    def _squares(self) -> list[npt.NDArray[np.float64]]:
        """The squared weights of each sample, float64 [rows, row length]."""
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
    except NotFiniteError:  # it names the row of the sample: find the row of the tensor
        for run, piece in zip(runs, read, strict=True):
            check_finite(piece, tensor.format, tensor.row_length, first_row=int(run[0]))
        raise
    return Sample(matrix, tuple(rows.tolist()), parts)


def logit_variance(model: ModelFile) -> float | None:
    """Return the variance of a token's logits over the vocabulary, in nats², from the weights alone.

    The input of the output matrix is a vector of length √n, times the gain of the norm before it. Its
    direction is taken to be uniformly distributed, which is true of the mean of many tokens. None if the
    tensors are missing or the result is not a positive number.
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
