"""Comparing several quantized models with their reference model on one text: :func:`compare`.

All models are open at the same time and read the text together, chunk by chunk. No base file is needed, and
the KL divergence is exact, over the whole vocabulary. Speeds are measured in turns, so that the state of the
machine is the same for all models.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..codec.fingerprint import path_fingerprint
from ..engines.opening import opened_alike
from ..engines.protocol import LanguageModel, ModelOrPath
from ..errors import Q4HifiError, UnsupportedModelError
from ..files.output_file import check_destination
from ..files.saver import SAVE_SECONDS, OnSave, Saver
from ..gguf_io.split import files_of
from ..progress import Progress
from ..wording import counted
from .bench import ModelFacts, model_facts, write_seconds
from .chunks import Chunks, Predictions, Text, errors_in
from .comparison_file import BYTES_A_TOKEN, REFERENCE, Figures, read_comparison, write_comparison
from .estimates import Estimate, mean
from .kl_divergence import KlDivergence
from .limits import CHUNK
from .logits import Divergence, Doubles, divergence, token_nll
from .perplexity import Perplexity
from .resuming import TOKENS

DECODE_TOKENS = 16
DECODE_ROUNDS = 4
"""The writing speed is measured in DECODE_ROUNDS rounds of DECODE_TOKENS tokens."""

VOCABULARY = "tokenizer.ggml.tokens"
"""Metadata key of the vocabulary, which compared models must have in common."""


@dataclass(frozen=True, slots=True, eq=False)
class ComparedModel:
    """The results of one model in a comparison.

    ``quality`` is the divergence from the reference; None for the reference itself. ``prompt_speed`` is the
    speed of reading, measured on the first half of each chunk, which needs no logits. ``decode_speed`` is the
    speed of writing one token after another. Both are in tokens per second, and None if they were not
    measured, as in an interrupted comparison.
    """

    model: str
    facts: ModelFacts
    perplexity: Perplexity = field(repr=False)
    quality: KlDivergence | None = field(repr=False)
    prompt_speed: Estimate | None
    decode_speed: Estimate | None

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain JSON types."""
        return {
            "model": self.model,
            "file_bytes": self.facts.file_bytes,
            "n_params": self.facts.n_params,
            "bits_per_weight": self.facts.bits_per_weight,
            "perplexity": self.perplexity.as_dict(),
            "quality": None if self.quality is None else self.quality.as_dict(),
            "prompt_speed": self.prompt_speed and self.prompt_speed.as_dict(),
            "decode_speed": self.decode_speed and self.decode_speed.as_dict(),
        }


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """The result of :func:`compare`.

    ``dataset`` is the name of the text. ``n_chunks`` of its ``total_chunks`` were measured: fewer than all
    if the comparison was interrupted. ``models`` has the models that could be compared, ``failures`` the
    others: the model's file -> the error message.
    """

    dataset: str
    n_ctx: int
    n_chunks: int
    total_chunks: int
    reference: ComparedModel
    models: tuple[ComparedModel, ...]
    failures: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain JSON types."""
        return {
            "dataset": self.dataset,
            "n_ctx": self.n_ctx,
            "n_chunks": self.n_chunks,
            "total_chunks": self.total_chunks,
            "reference": self.reference.as_dict(),
            "models": [model.as_dict() for model in self.models],
            "failures": dict(self.failures),
        }


class _ModelRun:
    """A model in a running comparison, with its measurements so far."""

    def __init__(self, model: LanguageModel, figures: Figures | None = None) -> None:
        self.model = model
        self.figures = Figures() if figures is None else figures
        self.decode_rates: list[float] = []
        self.error: Q4HifiError | None = None

    def predictions(self, chunks: Chunks, chunk: int) -> Iterator[Predictions]:
        """Yield the predictions in a chunk, and record how long the model takes."""
        started = time.perf_counter()
        sequence = chunks.begin(self.model, chunk)
        rate = chunks.first / (time.perf_counter() - started)
        for piece in chunks.predictions(sequence, chunk):
            seconds = time.perf_counter() - started
            if self.model.reads_whole_texts:
                rate = chunks.n_ctx / seconds
            self.figures.seconds += seconds
            yield piece
            started = time.perf_counter()
        self.figures.prompt_rates.append(rate)

    def result(self, chunks: Chunks, n_chunks: int, reference: _ModelRun | None) -> ComparedModel:
        """Return the results of the first ``n_chunks``. ``reference`` is None for the reference itself."""
        path, size = str(self.model.path), (chunks.n_ctx, n_chunks)
        seconds, parts = self.figures.seconds, self.figures.divergences[:n_chunks]
        quality = None
        if reference is not None:
            quality = KlDivergence(path, str(reference.model.path), *size, seconds, Divergence.joined(parts))
        return ComparedModel(
            model=path,
            facts=model_facts(self.model),
            perplexity=Perplexity(path, *size, seconds, np.concatenate(self.figures.nll[:n_chunks])),
            quality=quality,
            prompt_speed=_speed(self.figures.prompt_rates),
            decode_speed=_speed(self.decode_rates),
        )


def _speed(rates: Sequence[float]) -> Estimate | None:
    return mean(np.array(rates)) if rates else None


def compare(
    reference: ModelOrPath,
    models: Sequence[ModelOrPath],
    text: Text,
    *,
    n_ctx: int = CHUNK,
    n_chunks: int | None = None,
    threads: int | None = None,
    dataset: str = "the text",
    output: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    save_seconds: float = SAVE_SECONDS,
    progress: Progress | None = None,
    on_chunk: Callable[[Comparison], None] | None = None,
    on_save: OnSave | None = None,
) -> Comparison:
    """Compare quantized models with their reference model on one text: size, quality, speed.

    The text is cut into chunks as by :func:`q4hifi.perplexity`, with the reference's tokenizer. The figures
    are those of llama-perplexity --kl-divergence. They differ slightly from its own, because its base file
    rounds log-probabilities to 16 bits, while this function compares the logits themselves. A model that
    fails is left out, and the others continue.

    Parameters
    ----------
    reference, models
        The model that the others were made from, and these: paths or open models. All paths are opened with
        the same engine.
    text
        A string, or its token ids. It must fill at least two chunks.
    n_ctx, n_chunks
        Tokens per chunk, and the largest number of chunks; None is the whole text.
    threads
        Number of threads; None or 0 is one per core.
    dataset
        Name of the text in errors and results.
    output
        File that keeps the measurements (:mod:`q4hifi.evaluate.comparison_file`). It is saved every
        ``save_seconds``, at the end, and when the run fails or is interrupted.
    overwrite
        Allow ``output`` to replace an existing file.
    resume
        Take the chunks that ``output`` has of a model from it, instead of measuring them again.
    progress
        Called with the number of tokens that all models together have read.
    on_chunk
        Called after each chunk with the comparison so far.
    on_save
        Called after each save with the number of chunks.

    Raises :class:`UnsupportedModelError` if the models have different vocabularies. Raises
    :class:`BadOptionError` if the text is too short, or if ``output`` cannot be written or belongs to another
    reference or text. Raises the error of the reference if that fails, or of the first model if all fail.
    """
    with ExitStack() as stack:
        context = max(n_ctx, DECODE_TOKENS)
        opening = opened_alike((reference, *models), n_ctx=context, threads=threads)
        base, *others = (_ModelRun(model) for model in stack.enter_context(opening))
        for other in others:
            _check_vocabulary(base.model, other.model)
        chunks = Chunks.of(base.model, text, n_ctx=n_ctx, n_chunks=n_chunks, dataset=dataset)
        saver = None
        if output is not None:
            saver = stack.enter_context(
                _saver(output, base, others, chunks, overwrite, resume, save_seconds, on_save)
            )
        work = _Comparing(base, others, chunks, dataset, threads or 0, progress)
        for chunk in range(len(chunks)):
            if not work.measure(chunk):
                continue
            if saver is not None:
                saver.done(chunk + 1)
            if on_chunk is not None:
                on_chunk(work.result(chunk + 1))
        work.measure_speed()
        return work.result(len(chunks))


@dataclass(slots=True)
class _Comparing:
    """A running comparison. ``done`` counts the tokens that all models together have read."""

    base: _ModelRun
    others: Sequence[_ModelRun]
    chunks: Chunks
    dataset: str
    threads: int
    progress: Progress | None
    done: float = 0.0

    @property
    def alive(self) -> list[_ModelRun]:
        """The models that have not failed. Raises the error of the first if all have failed."""
        alive = [other for other in self.others if other.error is None]
        if self.others and not alive and self.others[0].error is not None:
            raise self.others[0].error
        return alive

    def measure(self, chunk: int) -> bool:
        """Let all models read a chunk that is not measured yet. Return False if none had to."""
        chunks, base = self.chunks, self.base
        others = [other for other in self.alive if other.figures.n_chunks <= chunk]
        new = base.figures.n_chunks <= chunk
        self._report(chunk, 0 if new or others else len(self.others) + 1)
        if not (new or others):
            return False
        streams = [(other, other.predictions(chunks, chunk), list[Divergence]()) for other in others]
        nll: list[Doubles] = []
        for expected in base.predictions(chunks, chunk):
            with errors_in(base.model, chunk):
                nll.append(token_nll(*expected, threads=self.threads))
            self._report(chunk, expected.tokens.size / chunks.n_scored)
            for other, stream, parts in streams:
                if other.error is not None:
                    continue
                try:
                    with errors_in(other.model, chunk):
                        logits = next(stream).logits
                        parts.append(divergence(logits, *expected, threads=self.threads))
                except Q4HifiError as error:
                    other.error = error
                self._report(chunk, expected.tokens.size / chunks.n_scored)
        if new:
            base.figures.nll.append(np.concatenate(nll))
        for other, stream, parts in streams:
            if other.error is None:
                next(stream, None)  # the stream records the speed when it ends
                joined = Divergence.joined(parts)
                other.figures.divergences.append(joined)
                other.figures.nll.append(joined.nll)
        return True

    def measure_speed(self) -> None:
        """Measure the models' writing speed, in turns."""
        if self.progress is not None:
            total = (1 + len(self.others)) * self.chunks.tokens.size
            self.progress(total, total, "speed of writing")
        for _ in range(DECODE_ROUNDS):
            for run in (self.base, *self.alive):
                if run.model.reads_whole_texts:
                    continue
                run.decode_rates.append(DECODE_TOKENS / write_seconds(run.model, DECODE_TOKENS))

    def result(self, n_chunks: int) -> Comparison:
        """Return the results of the first ``n_chunks``."""
        return Comparison(
            self.dataset,
            self.chunks.n_ctx,
            n_chunks,
            len(self.chunks),
            self.base.result(self.chunks, n_chunks, None),
            tuple(other.result(self.chunks, n_chunks, self.base) for other in self.alive),
            {str(o.model.path): str(o.error) for o in self.others if o.error is not None},
        )

    def _report(self, chunk: int, share: float) -> None:
        """Report progress: one model has read this share of a chunk."""
        self.done += share * self.chunks.n_ctx
        if self.progress is not None:
            total = (1 + len(self.others)) * self.chunks.tokens.size
            self.progress(min(total, round(self.done)), total, f"chunk {chunk + 1} of {len(self.chunks)}")


def _saver(
    output: str | os.PathLike[str],
    base: _ModelRun,
    others: Sequence[_ModelRun],
    chunks: Chunks,
    overwrite: bool,
    resume: bool,
    seconds: float,
    on_save: OnSave | None,
) -> Saver:
    """Return what saves the measurements to ``output``. To resume, the file's measurements are read first."""
    runs = [base, *others]
    sources = [file for run in runs for file in files_of(Path(run.model.path))]
    names = [REFERENCE, *(path_fingerprint(other.model.path) for other in others)]
    settings = {
        "reference": path_fingerprint(base.model.path),
        TOKENS: chunks.fingerprint,
        "n_ctx": chunks.n_ctx,
        "n_chunks": len(chunks),
    }
    saved: dict[str, Figures] = {}
    if resume and check_destination(output, True, sources).exists():
        saved = read_comparison(output, settings, chunks.n_scored)
        for run, name in zip(runs, names, strict=True):
            if name in saved:
                run.figures = saved[name].copy()  # the same model may be given twice
        overwrite = True

    def save(overwrite: bool) -> None:
        figures = dict(zip(names, (run.figures for run in runs), strict=True))
        # measurements of models that are not compared this time stay in the file
        write_comparison(output, settings, saved | figures, overwrite=overwrite, sources=sources)

    n_bytes = len(runs) * len(chunks) * chunks.n_scored * BYTES_A_TOKEN
    return Saver(
        output,
        save,
        n_bytes=n_bytes,
        overwrite=overwrite,
        sources=sources,
        seconds=seconds,
        on_save=on_save,
    )


def _check_vocabulary(reference: LanguageModel, model: LanguageModel) -> None:
    ours, theirs = (m.metadata.get(VOCABULARY) for m in (reference, model))
    if reference.n_vocab != model.n_vocab or ours != theirs:
        raise UnsupportedModelError(
            f"{model.path}: has another vocabulary ({counted(model.n_vocab, 'token')}) than {reference.path} "
            f"({reference.n_vocab}); compare models of one family only"
        )
