"""A running comparison: all models read the text together, chunk by chunk."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..codec.fingerprint import path_fingerprint
from ..engines.protocol import LanguageModel
from ..errors import Q4HifiError
from ..files.output_file import check_destination
from ..files.saver import OnSave, Saver
from ..gguf_io.split import files_of
from ..progress import Progress
from .bench import model_facts, write_seconds
from .chunks import Chunks, Predictions, errors_in
from .comparison import ComparedModel, Comparison
from .comparison_file import BYTES_PER_TOKEN, REFERENCE, Figures, read_comparison, write_comparison
from .estimates import Estimate, mean
from .kl_divergence import KlDivergence
from .logits import Divergence, Doubles, divergence, token_nll
from .perplexity import Perplexity
from .resuming import TOKENS

DECODE_TOKENS = 16
DECODE_ROUNDS = 4
"""The writing speed is measured in DECODE_ROUNDS rounds of DECODE_TOKENS tokens."""


@dataclass(slots=True)
class ModelRun:
    """A model in a running comparison, with its measurements so far; ``error`` if it has failed."""

    model: LanguageModel
    figures: Figures = field(default_factory=Figures)
    decode_rates: list[float] = field(default_factory=list)
    error: Q4HifiError | None = None

    def predictions(self, chunks: Chunks, chunk: int) -> Iterator[Predictions]:
        """Yield the predictions in a chunk, and record how long the model takes."""
        started = time.perf_counter()
        sequence = chunks.begin(self.model, chunk)
        whole = self.model.reads_whole_texts  # then the first half is only read with the second
        rate = 0.0 if whole else chunks.first / (time.perf_counter() - started)
        for piece in chunks.predictions(sequence, chunk):
            seconds = time.perf_counter() - started
            if whole:
                rate = chunks.n_ctx / seconds
            self.figures.seconds += seconds
            yield piece
            started = time.perf_counter()
        self.figures.prompt_rates.append(rate)

    def result(self, chunks: Chunks, n_chunks: int, reference: ModelRun | None) -> ComparedModel:
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


@dataclass(slots=True)
class ComparisonRun:
    """A running comparison. ``done`` counts the tokens that all models together have read."""

    base: ModelRun
    others: Sequence[ModelRun]
    chunks: Chunks
    dataset: str
    threads: int
    progress: Progress | None
    done: float = 0.0

    @property
    def alive(self) -> list[ModelRun]:
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

    def saver(
        self,
        output: str | os.PathLike[str],
        *,
        overwrite: bool,
        resume: bool,
        seconds: float,
        on_save: OnSave | None,
    ) -> Saver:
        """Return what saves the measurements to ``output``. To resume, those of the file are read first."""
        runs = [self.base, *self.others]
        sources = [file for run in runs for file in files_of(Path(run.model.path))]
        names = [REFERENCE, *(path_fingerprint(other.model.path) for other in self.others)]
        settings = {
            "reference": path_fingerprint(self.base.model.path),
            TOKENS: self.chunks.fingerprint,
            "n_ctx": self.chunks.n_ctx,
            "n_chunks": len(self.chunks),
        }
        saved: dict[str, Figures] = {}
        if resume and check_destination(output, True, sources).exists():
            saved = read_comparison(output, settings, self.chunks.n_scored)
            for run, name in zip(runs, names, strict=True):
                if name in saved:
                    run.figures = saved[name].copy()  # the same model may be given twice
            overwrite = True

        def save(overwrite: bool) -> None:
            figures = dict(zip(names, (run.figures for run in runs), strict=True))
            # measurements of models that are not compared this time stay in the file
            write_comparison(output, settings, saved | figures, overwrite=overwrite, sources=sources)

        n_bytes = len(runs) * len(self.chunks) * self.chunks.n_scored * BYTES_PER_TOKEN
        return Saver(
            output,
            save,
            n_bytes=n_bytes,
            overwrite=overwrite,
            sources=sources,
            seconds=seconds,
            on_save=on_save,
        )

    def _report(self, chunk: int, share: float) -> None:
        """Report progress: one model has read this share of a chunk."""
        self.done += share * self.chunks.n_ctx
        if self.progress is not None:
            total = (1 + len(self.others)) * self.chunks.tokens.size
            self.progress(min(total, round(self.done)), total, f"chunk {chunk + 1} of {len(self.chunks)}")
