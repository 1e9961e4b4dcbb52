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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..codec.fingerprint import fingerprint, model_fingerprint
from ..codec.model_file import ModelFile
from ..engines.opening import opened
from ..engines.protocol import LanguageModel, ModelOrPath
from ..errors import BadOptionError
from ..evaluate.chunks import bos_of
from ..evaluate.estimates import Estimate
from ..files.output_file import check_writable
from ..gguf_io.split import files_of
from ..imatrix.file import load_importance
from ..imatrix.importance import Importance
from ..progress import Progress
from ..threads import thread_count
from ..wording import counted
from .calibration_file import Calibration, Setting
from .calibration_options import DEFAULTS, CalibrationOptions
from .calibration_path import part_of_imatrix
from .calibration_run import CalibrationRun, chunk_of, groups_of, measurable_matrices
from .sensitivities import Sensitivities

MOST_TOKENS = 1 << 20
"""Tokens at the start of a text over which the chunks are spread; more only where the chunks need more."""


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The result of :func:`calibrate`.

    ``sensitivities`` maps the name of each matrix to nats of KL divergence per unit of relative squared
    error, weighted by importance if there is any. ``klds`` has the divergence that was measured, and
    ``probes`` the type that the matrix was quantized to for that, with its relative squared error.
    ``n_chunks`` is the number of chunks that every matrix was measured on, ``n_ctx`` their tokens, ``file``
    the file of the measurements. ``typical`` has sensitivities for matrices that the model does not use, as
    those of layers for multi-token prediction: the median of similar matrices.
    """

    sensitivities: dict[str, Estimate]
    klds: dict[str, Estimate]
    n_chunks: int
    n_ctx: int
    file: str | None
    probes: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    typical: Mapping[str, Estimate] = field(default_factory=dict)

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
        every = {**self.sensitivities, **self.typical}
        values = {name: estimate.value for name, estimate in every.items()}
        return Sensitivities(values, self.file or "a calibration", self.probes)


def calibrate(
    model: ModelOrPath,
    text: str,
    file: str | os.PathLike[str] | None = None,
    *,
    imatrix: str | os.PathLike[str] | None = None,
    include_weights: Sequence[str] = (),
    exclude_weights: Sequence[str] = (),
    n_ctx: int = DEFAULTS.n_ctx,
    n_chunks: int = DEFAULTS.n_chunks,
    group: int = DEFAULTS.group,
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
        Tokens per chunk (512 at most) and number of chunks. The chunks are spread over the text, or over its
        first 2^20 tokens. The relative standard error of a sensitivity is about
        2 / sqrt(n_ctx / 2 * n_chunks).
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
    options = CalibrationOptions(n_ctx, n_chunks, group, seconds, threads, progress)
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
            options=options,
        )


def measure_sensitivities(
    source: ModelFile,
    text: str,
    file: str | os.PathLike[str] | None,
    *,
    model: LanguageModel | None = None,
    importance: Importance | None,
    part: bytes,
    options: CalibrationOptions,
) -> Calibrated:
    """Do the work of :func:`calibrate` with files that are open already.

    ``model`` runs ``source``; None opens it. ``part`` identifies the tensors that use the importance matrix
    (:func:`~q4hifi.allocation.calibration_path.part_of_imatrix`).
    """
    if file is not None:
        imatrix = () if importance is None else (importance.path,)
        check_writable(file, overwrite=True, sources=(*source.paths, *imatrix))  # before any work
    n_ctx, n_chunks = options.n_ctx, options.n_chunks
    with opened(model or source, n_ctx=n_ctx, threads=options.threads) as lm:
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
            group=options.group,
        )
        chunks = [chunk_of(tokens, i, n_ctx, bos_of(lm)) for i in range(n_chunks)]
        names = measurable_matrices(source)
        used = lm.trial(chunks[0]).used
        unused = [name for name in names if name not in used]
        groups = groups_of([name for name in names if name in used], lm.n_layer, options.group)
        found = Calibration.resumed(file, setting)
        run = CalibrationRun(
            lm, source, importance, groups, unused, found, file, thread_count(options.threads)
        )
        run.measure(chunks, options.seconds, options.progress)
        return Calibrated(
            found.sensitivities(run.names),
            found.klds(run.names),
            found.n_chunks(run.names),
            n_ctx,
            None if file is None else os.fspath(file),
            found.probes,
            found.typical(run.names, unused),
        )
