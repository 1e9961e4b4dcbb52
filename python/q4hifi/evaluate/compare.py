"""Several models beside a reference, on one text: :func:`compare`.

All models are open at once and read the text together, chunk by chunk, so that no base file is
needed and the divergence is exact, over the whole vocabulary. Speeds are taken in turns, so that
all models meet the same state of the machine.
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

from ..codec.fingerprint import fingerprint, path_fingerprint
from ..errors import Q4HifiError, UnsupportedModelError
from ..files.output_file import check_destination
from ..files.saver import SAVE_SECONDS, OnSave, Saver
from ..gguf_io.split import files_of
from ..progress import Progress
from .bench import ModelFacts, model_facts, write_seconds
from .chunks import Chunks, LanguageModel, ModelOrPath, Piece, Text, errors_in, opened
from .comparison_file import BYTES_A_TOKEN, REFERENCE, Figures, read_comparison, write_comparison
from .estimates import Estimate, mean
from .kl_divergence import KlDivergence
from .logits import Divergence, Doubles, divergence, token_nll
from .perplexity import Perplexity

DECODE_TOKENS = 16
DECODE_ROUNDS = 4
"""Tokens written in a round, and rounds, from which a speed is taken."""

VOCABULARY = "tokenizer.ggml.tokens"


@dataclass(frozen=True, slots=True, eq=False)
class ComparedModel:
    """One model of a comparison.

    ``quality`` is None for the reference itself. ``prompt_speed`` (the half of each chunk that is
    only read, without answers) and ``decode_speed`` are in tokens a second, with standard errors; None where
    they were not measured, as in a comparison that was interrupted.
    """

    model: str
    facts: ModelFacts
    perplexity: Perplexity = field(repr=False)
    quality: KlDivergence | None = field(repr=False)
    prompt_speed: Estimate | None
    decode_speed: Estimate | None

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain JSON types."""
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
    """The outcome of :func:`compare`; ``dataset`` is what the text is called.

    ``failures`` says of each model that could not be compared, by its file, why.
    """

    dataset: str
    n_ctx: int
    n_chunks: int
    reference: ComparedModel
    models: tuple[ComparedModel, ...]
    failures: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain JSON types."""
        return {
            "dataset": self.dataset,
            "n_ctx": self.n_ctx,
            "n_chunks": self.n_chunks,
            "reference": self.reference.as_dict(),
            "models": [model.as_dict() for model in self.models],
            "failures": dict(self.failures),
        }


class _Running:
    """One of the models at work: what was measured of it so far."""

    def __init__(self, model: LanguageModel, figures: Figures | None = None) -> None:
        self.model = model
        self.figures = Figures() if figures is None else figures
        self.decode_rates: list[float] = []
        self.error: Q4HifiError | None = None

    def answers(self, chunks: Chunks, chunk: int) -> Iterator[Piece]:
        """Yield the answers of a chunk, and note the time that the model took for them."""
        started = time.perf_counter()
        sequence = chunks.begin(self.model, chunk)
        rate = chunks.first / (time.perf_counter() - started)
        for piece in chunks.answers(sequence, chunk):
            self.figures.seconds += time.perf_counter() - started
            yield piece
            started = time.perf_counter()
        self.figures.prompt_rates.append(rate)

    def result(self, chunks: Chunks, n_chunks: int, reference: _Running | None) -> ComparedModel:
        """Sum up the first chunks; ``reference`` is None for the reference itself."""
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
    n_ctx: int = 512,
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
    """Compare models with a reference on one text: sizes, quality, speeds.

    The text is cut as by :func:`q4hifi.perplexity`, with the reference's tokenizer. The figures are
    those of llama-perplexity --kl-divergence, but that its base files keep 16 bits of what is within
    16 of the largest logit, and here the divergence is of the logits themselves. ``on_chunk`` gets the
    comparison so far after each chunk. A model that fails is left out of the rest; the others go on.

    ``output`` is a file that keeps the figures of each model (:mod:`q4hifi.evaluate.comparison_file`): every
    ``save_seconds``, at the end, and when the work fails or is interrupted; ``on_save`` is called afterwards.
    With ``resume``, chunks that it has of a model are not measured again. ``overwrite`` lets it replace a
    file.

    Raises :class:`UnsupportedModelError` for models of different vocabularies, :class:`BadOptionError` for
    a file that cannot be written or is of another reference or text, and where the reference fails, or all
    models do, their error.
    """
    with ExitStack() as stack:
        room = max(n_ctx, DECODE_TOKENS)
        opening = [opened(model, n_ctx=room, threads=threads) for model in (reference, *models)]
        base, *others = (_Running(stack.enter_context(model)) for model in opening)
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
    """A comparison at work."""

    base: _Running
    others: Sequence[_Running]
    chunks: Chunks
    dataset: str
    threads: int
    progress: Progress | None
    done: float = 0.0

    @property
    def alive(self) -> list[_Running]:
        """The models that have not failed. Raises the first's error where all have."""
        alive = [other for other in self.others if other.error is None]
        if self.others and not alive and self.others[0].error is not None:
            raise self.others[0].error
        return alive

    def measure(self, chunk: int) -> bool:
        """Have all models read a chunk that have not yet; return whether there was one."""
        chunks, base = self.chunks, self.base
        others = [other for other in self.alive if other.figures.n_chunks <= chunk]
        new = base.figures.n_chunks <= chunk
        self._tell(chunk, 0 if new or others else len(self.others) + 1)
        if not (new or others):
            return False
        streams = [(other, other.answers(chunks, chunk), list[Divergence]()) for other in others]
        nll: list[Doubles] = []
        for answer in base.answers(chunks, chunk):
            with errors_in(base.model, chunk):
                nll.append(token_nll(*answer, threads=self.threads))
            self._tell(chunk, answer.tokens.size / chunks.n_scored)
            for other, stream, found in streams:
                if other.error is not None:
                    continue
                try:
                    with errors_in(other.model, chunk):
                        logits = next(stream).logits
                        found.append(divergence(logits, *answer, threads=self.threads))
                except Q4HifiError as error:
                    other.error = error
                self._tell(chunk, answer.tokens.size / chunks.n_scored)
        if new:
            base.figures.nll.append(np.concatenate(nll))
        for other, stream, found in streams:
            if other.error is None:
                next(stream, None)  # it notes its speed at its end
                joined = Divergence.joined(found)
                other.figures.divergences.append(joined)
                other.figures.nll.append(joined.nll)
        return True

    def measure_speed(self) -> None:
        """Measure how fast the models write, in turns."""
        if self.progress is not None:
            total = (1 + len(self.others)) * self.chunks.tokens.size
            self.progress(total, total, "speed of writing")
        for _ in range(DECODE_ROUNDS):
            for running in (self.base, *self.alive):
                running.decode_rates.append(DECODE_TOKENS / write_seconds(running.model, DECODE_TOKENS))

    def result(self, n_chunks: int) -> Comparison:
        """Sum up the first chunks."""
        return Comparison(
            self.dataset,
            self.chunks.n_ctx,
            n_chunks,
            self.base.result(self.chunks, n_chunks, None),
            tuple(other.result(self.chunks, n_chunks, self.base) for other in self.alive),
            {str(o.model.path): str(o.error) for o in self.others if o.error is not None},
        )

    def _tell(self, chunk: int, share: float) -> None:
        """Note that a share of a chunk was read by one model."""
        self.done += share * self.chunks.n_ctx
        if self.progress is not None:
            total = (1 + len(self.others)) * self.chunks.tokens.size
            self.progress(min(total, round(self.done)), total, f"chunk {chunk + 1} of {len(self.chunks)}")


def _saver(
    output: str | os.PathLike[str],
    base: _Running,
    others: Sequence[_Running],
    chunks: Chunks,
    overwrite: bool,
    resume: bool,
    seconds: float,
    on_save: OnSave | None,
) -> Saver:
    """What saves the figures, which it first reads if the work is resumed."""
    everything = [base, *others]
    sources = [file for running in everything for file in files_of(Path(running.model.path))]
    names = [REFERENCE, *(path_fingerprint(other.model.path) for other in others)]
    cut = f"{path_fingerprint(base.model.path)} {chunks.n_ctx} {chunks.bos}"
    text = fingerprint(cut.encode(), chunks.tokens.tobytes())
    found: dict[str, Figures] = {}
    if resume and check_destination(output, True, sources).exists():
        found = read_comparison(output, text, chunks.n_scored)
        for running, name in zip(everything, names, strict=True):
            if name in found:  # one model may be compared twice
                running.figures = found[name].copy()
        overwrite = True

    def save(overwrite: bool) -> None:
        figures = dict(zip(names, (running.figures for running in everything), strict=True))
        # those of models that are not compared this time stay
        write_comparison(output, text, found | figures, overwrite=overwrite, sources=sources)

    n_bytes = len(everything) * len(chunks) * chunks.n_scored * BYTES_A_TOKEN
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
            f"{model.path}: has another vocabulary ({model.n_vocab} tokens) than {reference.path} "
            f"({reference.n_vocab}); compare models of one family only"
        )
