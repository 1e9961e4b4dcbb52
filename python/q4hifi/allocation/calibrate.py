"""What an error in each matrix costs a model, measured by running the model: :func:`calibrate`.

One matrix at a time is quantized; all others keep their 16 bits. The divergence is the KL divergence of the
resulting model from the reference model. Only the second half of each chunk of text is compared, as in
perplexity: models put massive activations at the first tokens of a text, and errors at those tokens say
nothing about the rest. Errors of about 4 bits are small. Then the divergence is proportional to the error,
and the divergences of several matrices add up. So one measurement gives the *sensitivity* of a matrix,
divergence divided by error, and the sensitivity predicts the divergence for any other type.

Two things save time. The reference model's states before every layer are kept for the current chunk, so that
a run begins at the layer of its matrix: that halves the work. And all matrices are measured on one chunk
before the next begins: a difficult text is difficult for all of them, so there is a usable result after the
first chunk, and each further chunk makes it more exact. Memory is bounded by one chunk.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from ..codec.fingerprint import fingerprint, model_fingerprint
from ..codec.model_file import ModelFile, row_ranges
from ..codec.quantized_tensor import QuantizedTensor
from ..codec.rows import Bytes, ErrorSums, encode
from ..engines.opening import opened
from ..engines.protocol import LanguageModel, ModelOrPath, Tokens, WeightTrial
from ..errors import BadOptionError
from ..evaluate.chunks import bos_of
from ..evaluate.estimates import Estimate
from ..evaluate.limits import CALIBRATION_CHUNK, CALIBRATION_CHUNKS, LONGEST_CHUNK
from ..evaluate.logits import Doubles, divergence
from ..evaluate.scored_tokens import first_counted
from ..files.output_file import check_writable
from ..formats.layout import Format
from ..formats.tensor_names import alike_layers, is_quantizable, layer_of, processing_order, role_of
from ..formats.types import TensorType
from ..gguf_io.split import files_of
from ..imatrix.file import load_importance
from ..imatrix.importance import Importance
from ..progress import Progress
from ..threads import thread_count
from ..wording import counted
from .calibration_file import Calibration, Setting
from .calibration_path import part_of_imatrix
from .candidates import probe_of
from .sampled_errors import GOLDEN_RATIO
from .sensitivities import Sensitivities

MOST_TOKENS = 1 << 20
"""The chunks are spread over the first tokens of a text, at most this number."""


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The result of :func:`calibrate`.

    ``sensitivities`` maps the name of each matrix to nats of KL divergence per unit of relative squared
    error, weighted by importance if there is any. ``klds`` has the divergence that was measured, and
    ``probes`` the type that the matrix was quantized to for that, with its relative squared error.
    ``n_chunks`` is the number of chunks that every matrix was measured on, ``n_ctx`` their tokens, ``file``
    the file of the measurements.
    """

    sensitivities: dict[str, Estimate]
    klds: dict[str, Estimate]
    n_chunks: int
    n_ctx: int
    file: str | None
    probes: Mapping[str, tuple[str, float]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain JSON types."""
        return {
            "file": self.file,
            "n_ctx": self.n_ctx,
            "n_chunks": self.n_chunks,
            "matrices": {
                name: {"sensitivity": value.as_dict(), "kld": self.klds[name].as_dict()}
                for name, value in self.sensitivities.items()
            },
        }

    def as_sensitivities(self) -> Sensitivities:
        """Return the values alone, as a choice of types uses them."""
        values = {name: estimate.value for name, estimate in self.sensitivities.items()}
        return Sensitivities(values, self.file or "a calibration", self.probes)


def calibrate(
    model: ModelOrPath,
    text: str,
    file: str | os.PathLike[str] | None = None,
    *,
    imatrix: str | os.PathLike[str] | None = None,
    include_weights: Sequence[str] = (),
    exclude_weights: Sequence[str] = (),
    n_ctx: int = CALIBRATION_CHUNK,
    n_chunks: int = CALIBRATION_CHUNKS,
    group: int = 1,
    seconds: float | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Calibrated:
    """Measure the sensitivity of each matrix of a model on a text.

    Parameters
    ----------
    model
        The reference model, in 16 bits: a path or an open model. It is run by our own runtime, or by
        llama.cpp where our own does not know the architecture.
    text
        A text of the kind that the model is for. ``n_ctx * n_chunks`` tokens of it are read.
    file
        A file for the measurements, which is saved after every matrix. Measurements that it already has are
        not repeated. None: no file.
    imatrix
        The importance matrix that the model will be quantized with.
    include_weights, exclude_weights
        Use the imatrix only for tensors, or not for tensors, with one of these texts in their name.
    n_ctx, n_chunks
        Tokens per chunk (512 at most) and number of chunks. The chunks are spread over the text. The
        relative standard error of a sensitivity is about 2 / sqrt(n_ctx / 2 * n_chunks).
    group
        Measure matrices of the same role in this many neighbouring layers together, which divides the time.
        Their errors are taken to be equally harmful. The first and the last layer are always measured alone.
    seconds
        After this time no further chunk is begun. The first one is always finished.
    threads
        Number of threads, at most one per core. None or 0: one per core.
    progress
        Called with the work done, the whole work (in weights multiplied), and the matrix.

    Raises
    ------
    BadOptionError
        The text is too short, or ``file`` is of another model, text or setting. Loading and running the
        model raise their own errors.
    """
    _check_setting(n_ctx, n_chunks, group, seconds)
    path = Path(model) if isinstance(model, (str, os.PathLike)) else model.path
    if file is not None:
        sources = [shard for source in (path, imatrix) if source for shard in files_of(Path(source))]
        check_writable(file, overwrite=True, sources=sources)  # before any work
    importance = None if imatrix is None else load_importance(imatrix, include_weights, exclude_weights)
    with ModelFile.open(path) as source:
        return measure_sensitivities(
            source,
            text,
            file,
            model=None if isinstance(model, (str, os.PathLike)) else model,
            importance=importance,
            part=part_of_imatrix(include_weights, exclude_weights),
            n_ctx=n_ctx,
            n_chunks=n_chunks,
            group=group,
            seconds=seconds,
            threads=threads,
            progress=progress,
        )


def measure_sensitivities(
    source: ModelFile,
    text: str,
    file: str | os.PathLike[str] | None,
    *,
    model: LanguageModel | None = None,
    importance: Importance | None,
    part: bytes,
    n_ctx: int = CALIBRATION_CHUNK,
    n_chunks: int = CALIBRATION_CHUNKS,
    group: int = 1,
    seconds: float | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Calibrated:
    """Do the work of :func:`calibrate` with files that are open already.

    ``model`` runs ``source``; None opens it. ``part`` identifies the tensors that use the importance matrix
    (:func:`~q4hifi.allocation.calibration_path.part_of_imatrix`).
    """
    _check_setting(n_ctx, n_chunks, group, seconds)
    if file is not None:
        imatrix = () if importance is None else (importance.path,)
        check_writable(file, overwrite=True, sources=(*source.paths, *imatrix))  # before any work
    with opened(model or source, n_ctx=n_ctx, threads=threads) as lm:
        tokens = lm.tokenizer.encode_array(text, limit=max(MOST_TOKENS, n_ctx * n_chunks))
        if tokens.size < n_ctx * n_chunks:
            raise BadOptionError(
                f"the text has {counted(tokens.size, 'token')}, and {counted(n_chunks, 'chunk')} of {n_ctx}"
                f" need {n_ctx * n_chunks};"
                " give a longer text, or measure fewer or shorter chunks with 'q4hifi calibrate'"
            )
        setting = Setting(
            model=model_fingerprint(source),
            text=fingerprint(tokens.tobytes()),
            importance=None if importance is None else fingerprint(importance.path.read_bytes(), part),
            n_ctx=n_ctx,
            group=group,
        )
        groups = _groups(source, lm.n_layer, group)
        found = Calibration.resumed(file, setting)
        run = _Run(lm, source, importance, groups, found, file, thread_count(threads))
        run.chunks([_chunk(tokens, i, n_ctx, bos_of(lm)) for i in range(n_chunks)], seconds, progress)
        return Calibrated(
            found.sensitivities(run.names),
            found.klds(run.names),
            found.n_chunks(run.names),
            n_ctx,
            None if file is None else os.fspath(file),
            found.probes,
        )


def _check_setting(n_ctx: int, n_chunks: int, group: int, seconds: float | None) -> None:
    if seconds is not None and not 0 <= seconds < inf:
        raise BadOptionError(
            f"a time limit of {seconds} seconds is not possible; choose 0 or more, or None for no limit"
        )
    if not 2 <= n_ctx <= LONGEST_CHUNK or n_chunks < 1 or group < 1:
        raise BadOptionError(
            f"`n_ctx` is {n_ctx}, `n_chunks` {n_chunks}, `group` {group}; choose 2 to {LONGEST_CHUNK},"
            " 1 or more, 1 or more"
        )


@dataclass(frozen=True, slots=True)
class _Run:
    """A calibration that is running."""

    model: LanguageModel
    source: ModelFile
    importance: Importance | None
    groups: Sequence[Sequence[str]]
    found: Calibration
    file: str | os.PathLike[str] | None
    threads: int

    @property
    def names(self) -> list[str]:
        return [name for group in self.groups for name in group]

    def chunks(self, chunks: Sequence[Tokens], seconds: float | None, progress: Progress | None) -> None:
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
            self.found.save(self.file, self.names)

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


def _groups(source: ModelFile, n_layer: int, size: int) -> list[list[str]]:
    """The groups of matrices that are measured together. A matrix that no probe type fits is in none."""
    architecture = str(source.metadata.get("general.architecture"))
    groups: dict[tuple[str, int | None], list[str]] = {}
    for name in sorted(source.tensors, key=processing_order):
        tensor = source.tensors[name]
        if not is_quantizable(name, tensor.shape, architecture):
            continue
        if probe_of(tensor.row_length) is None:
            continue
        layer = layer_of(name)
        alike = (name, None) if layer is None else (role_of(name), alike_layers(layer, n_layer, size))
        groups.setdefault(alike, []).append(name)
    return list(groups.values())


def _shares(errors: Sequence[ErrorSums], *, by_size: bool) -> list[float]:
    """The shares of a group's matrices in the divergence that was measured of them together.

    They go by the error relative to the matrix. With ``by_size``, for matrices that write to the residual
    stream, they go by the size of the error: their outputs differ up to a thousandfold between layers
    (massive activations), while the stream grows slowly.
    """
    sizes = [sums.error if by_size else sums.relative for sums in errors]
    total = sum(sizes)
    return [size / total if total else 1 / len(sizes) for size in sizes]


def _chunk(tokens: Tokens, i: int, n_ctx: int, bos: int | None) -> Tokens:
    first = round(
        i * GOLDEN_RATIO % 1 * (tokens.size - n_ctx)
    )  # spread over the text, for any number of chunks
    chunk: Tokens = tokens[first : first + n_ctx].copy()
    if bos is not None:
        chunk[0] = bos
    return chunk
