"""The work of a calibration: which matrices are measured together, and what a run measures and saves."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..codec.model_file import ModelFile, row_ranges
from ..codec.quantized_tensor import QuantizedTensor
from ..codec.rows import Bytes, ErrorSums, encode
from ..engines.protocol import LanguageModel, Tokens, WeightTrial
from ..evaluate.logits import Doubles, divergence
from ..evaluate.scored_tokens import first_counted
from ..formats.layout import Format
from ..formats.tensor_names import group_of, is_quantizable, layer_of, processing_order
from ..formats.types import TensorType
from ..imatrix.importance import Importance
from ..progress import Progress
from .calibration_file import Calibration
from .candidates import probe_of
from .sampled_errors import GOLDEN_RATIO


@dataclass(frozen=True, slots=True)
class CalibrationRun:
    """A calibration that is running. ``unused`` are matrices that the model does not multiply with."""

    model: LanguageModel
    source: ModelFile
    importance: Importance | None
    groups: Sequence[Sequence[str]]
    unused: Sequence[str]
    found: Calibration
    file: str | os.PathLike[str] | None
    threads: int

    @property
    def names(self) -> list[str]:
        """The names of all matrices that are measured."""
        return [name for group in self.groups for name in group]

    def measure(self, chunks: Sequence[Tokens], seconds: float | None, progress: Progress | None) -> None:
        """Measure chunk by chunk, except what the file has already."""
        todo = [
            [group for group in self.groups if self.found.n_chunks(group) <= i] for i in range(len(chunks))
        ]
        work = _Work(self._cost, sum(self._cost(group) for groups in todo for group in groups), progress)
        started = time.monotonic()
        for i, (chunk, groups) in enumerate(zip(chunks, todo, strict=True)):
            if i and seconds is not None and time.monotonic() - started > seconds:
                return
            if not groups:
                continue
            trial = self.model.trial(chunk)
            for group in groups:
                work.begin(group, f"chunk {i + 1}: {group[0]}")
                self._measure(group, chunk, trial)

    def _measure(self, group: Sequence[str], chunk: Tokens, trial: WeightTrial) -> None:
        probed = {name: self._probed(name) for name in group}
        errors = [sums for _, sums in probed.values()]
        logits = trial.logits({name: tensor for name, (tensor, _) in probed.items()})
        reference = trial.reference
        scored = slice(first_counted(len(chunk)), None)
        targets = np.zeros_like(chunk[scored])  # a divergence does not depend on the next tokens
        kld: Doubles = divergence(logits[scored], reference[scored], targets, threads=self.threads).kld
        shares = _shares(errors, by_size=group[0] in trial.writers)
        for name, sums, share in zip(group, errors, shares, strict=True):
            part = kld * share
            probe = self._probe(name).name
            self.found.add(name, probe, sums.relative, float(part.mean()), float(np.sqrt(part).mean()))
        if self.file is not None:
            self.found.save(self.file, self.names, self.unused)

    def _probe(self, name: str) -> TensorType:
        probe = probe_of(self.source.tensors[name].row_length)
        assert probe is not None  # a matrix without a probe is in no group
        return probe

    def _probed(self, name: str) -> tuple[QuantizedTensor, ErrorSums]:
        """The matrix quantized to its probe type, and its error."""
        source, target = self.source.tensors[name], Format(self._probe(name))
        weights = None
        if self.importance is not None:
            n_matrices = source.shape[2] if len(source.shape) > 2 else 1
            weights = self.importance.weights(name, source.row_length, n_matrices)
        encoded, sums = list[Bytes](), ErrorSums()
        # all rows of a range have the same row of importances
        for rows in row_ranges(source, by_matrix=weights is not None and len(weights) > 1):
            row = None if weights is None else weights[rows.matrix % len(weights)]
            with self.source.errors_at(name):
                (part,), of_rows = encode(
                    self.source.read_rows(rows),
                    source.format,
                    target,
                    source.row_length,
                    row,
                    threads=self.threads,
                    first_row=rows.first,
                )
            encoded.append(part)
            sums += of_rows
        return QuantizedTensor.from_parts((np.concatenate(encoded),), target, source.shape[::-1]), sums

    def _cost(self, group: Sequence[str]) -> int:
        """Weights that a token is multiplied by in a run that measures this group."""
        first = self.model.first_layer(group[0]) or 0
        return sum(
            tensor.n_elements
            for name, tensor in self.source.tensors.items()
            if (layer := layer_of(name)) is None or layer >= first
        )


@dataclass(slots=True)
class _Work:
    """The work done so far, reported to ``progress``."""

    cost: Callable[[Sequence[str]], int]
    total: int
    progress: Progress | None
    done: int = 0

    def begin(self, group: Sequence[str], what: str) -> None:
        if self.progress is not None:
            self.progress(self.done, self.total, what)
        self.done += self.cost(group)


def measurable_matrices(source: ModelFile) -> list[str]:
    """Return the names of the matrices that a probe type fits, in the order of the layers."""
    architecture = str(source.metadata.get("general.architecture"))
    return [
        name
        for name in sorted(source.tensors, key=processing_order)
        if is_quantizable(name, source.tensors[name].shape, architecture)
        and probe_of(source.tensors[name].row_length) is not None
    ]


def groups_of(names: Sequence[str], n_layer: int, size: int) -> list[list[str]]:
    """Return the groups of matrices that are measured together."""
    groups: dict[tuple[str, int | None], list[str]] = {}
    for name in names:
        groups.setdefault(group_of(name, n_layer, size), []).append(name)
    return list(groups.values())


def _shares(errors: Sequence[ErrorSums], *, by_size: bool) -> list[float]:
    """The shares of a group's matrices in the divergence that was measured of them together.

    They are proportional to the relative error of the matrix. With ``by_size``, for matrices that write to
    the residual stream, they are proportional to the absolute error: their outputs differ up to a
    thousandfold between layers (massive activations), while the stream grows slowly.
    """
    sizes = [sums.error if by_size else sums.relative for sums in errors]
    total = sum(sizes)
    return [size / total if total else 1 / len(sizes) for size in sizes]


def chunk_of(tokens: Tokens, i: int, n_ctx: int, bos: int | None) -> Tokens:
    """Return chunk ``i`` of a text. Chunks of any number are spread over the tokens."""
    first = round(i * GOLDEN_RATIO % 1 * (tokens.size - n_ctx))
    chunk: Tokens = tokens[first : first + n_ctx].copy()
    if bos is not None:
        chunk[0] = bos
    return chunk
