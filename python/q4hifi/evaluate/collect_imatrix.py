"""Making an importance matrix by running a model on a text: :func:`collect_importance`.

The result has the values of llama-imatrix and more: the Fisher information of the matrices and the
correlations of their inputs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..codec.fingerprint import path_fingerprint
from ..engines.opening import opened
from ..engines.protocol import InputCollector, LanguageModel, ModelOrPath, Tokens
from ..errors import BadOptionError, NotFiniteError
from ..files.output_file import check_destination
from ..files.saver import SAVE_SECONDS, OnSave, Saver
from ..formats.tensor_names import OUTPUT, is_expert, layer_of
from ..gguf_io.split import files_of
from ..imatrix.entries import WeightsFilter
from ..imatrix.file import IMATRIX, read_importance
from ..imatrix.forms import DAT
from ..imatrix.sums import ColumnSums, ImportanceSums, form_of
from ..progress import Progress
from .chunks import Chunks, Text, errors_in
from .limits import CHUNK, FISHER_CHUNKS, NOISE_CHUNKS
from .logits import Doubles, token_nll
from .noise_trials import fisher_by_noise
from .perplexity import Perplexity
from .resuming import (
    ANOTHER_FILE,
    CORRELATED,
    START_AGAIN,
    TOKENS,
    Settings,
    check_same,
    decode_settings,
    encode_settings,
)
from .scored_tokens import first_counted, n_predictions

FISHER_TOKENS = 256
"""Tokens from the start of a chunk on which the Fisher information is measured."""


def collect_importance(
    model: ModelOrPath,
    text: Text,
    *,
    n_ctx: int = CHUNK,
    n_chunks: int | None = None,
    from_chunk: int = 0,
    parse_special: bool = False,
    process_output: bool = False,
    score: bool = True,
    fisher_chunks: int | None = None,
    correlations: bool = True,
    threads: int | None = None,
    dataset: str = "the text",
    output: str | os.PathLike[str] | None = None,
    form: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    save_seconds: float = SAVE_SECONDS,
    save_chunks: int | None = None,
    copy_chunks: int | None = None,
    progress: Progress | None = None,
    on_chunk: Callable[[Perplexity], None] | None = None,
    on_save: OnSave | None = None,
) -> ImportanceSums:
    """Measure on a text how much each input column of a model's matrices matters.

    The text is cut into chunks as by :func:`q4hifi.perplexity`. All tokens of a chunk count.

    Parameters
    ----------
    model
        A path or an open model.
    text
        A string, or its token ids. It must fill at least two chunks.
    n_ctx, n_chunks
        Tokens per chunk, and the largest number of chunks; None is the whole text.
    from_chunk
        Number of chunks at the start of the text to leave out.
    parse_special
        Make text that spells a control token, such as ``<|im_end|>``, that token.
    process_output
        Treat the output matrix like all others. By default its values are stored apart, and only refined
        encodings use them. It makes no difference if the output matrix is the embedding matrix.
    score
        Compute the perplexity, which ``on_chunk`` receives. Without it the run is a little faster. Encoders
        have none.
    fisher_chunks
        Number of chunks, spread over the text, on which the Fisher information of the matrices is measured
        (:meth:`q4hifi.Model.fisher`). It says how much an error in each matrix changes the predictions. For
        mixtures of experts, and with an engine without a backward pass (llama.cpp), it is estimated by trials
        of noise in the weights, which take about three evaluations of 256 tokens for every matrix of a layer.
        None is 12, or 1 for such trials; 0 leaves it out. Encoders have none.
    correlations
        Store the correlations between input columns, which error feedback (GPTQ) needs.
    threads
        Number of threads; None or 0 is one per core.
    dataset
        Name of the text, which the file records.
    output, form
        The file to write, and its form (:meth:`ImportanceSums.save`). It is saved every ``save_seconds``, at
        the end, and when the run fails or is interrupted. It then contains all complete chunks.
    save_chunks, copy_chunks
        Also save ``output`` after every ``save_chunks`` chunks, and keep a copy ``OUTPUT.at_N`` after every
        ``copy_chunks`` chunks, where N is the number of chunks in it. The names of all copies are checked
        before the first chunk.
    overwrite
        Allow ``output`` to replace an existing file, and the copies.
    resume
        Continue from ``output``, a file of the form "gguf" that an interrupted run left. If there is none,
        start at the beginning. The perplexity is that of the chunks measured in this run. The sums differ
        from those of an uninterrupted run by rounding: a correlation by at most 1/254.
    progress
        Called with the number of tokens done.
    on_chunk
        Called after each chunk with the perplexity so far, if ``score``.
    on_save
        Called after each save with the number of chunks in ``output``.

    Raises :class:`BadOptionError` if the text is too short, if ``output`` cannot be written, or if it cannot
    be resumed because its model, text or options were others. Raises :class:`NotFiniteError` if activations,
    gradients or logits of the model are not finite.
    """
    with ExitStack() as stack:
        lm = stack.enter_context(opened(model, n_ctx=n_ctx, threads=threads))
        chunks = Chunks.of(
            lm,
            text,
            n_ctx=n_ctx,
            n_chunks=n_chunks,
            from_chunk=from_chunk,
            parse_special=parse_special,
            dataset=dataset,
        )
        if not lm.has_logits:
            score, fisher_chunks = False, 0
        work = _Work(lm, chunks, dataset, score, process_output, correlations, threads or 0)
        if fisher_chunks is None:
            fisher_chunks = FISHER_CHUNKS if _has_gradients(lm) else NOISE_CHUNKS
        work.fisher_chunks = {i * len(chunks) // max(1, fisher_chunks) for i in range(fisher_chunks)}
        saver, sources = None, files_of(Path(lm.path))
        may_replace = overwrite  # copies; resuming replaces only the output itself
        if output is not None:
            form = form_of(output, form)
            if resume and form == DAT:
                raise BadOptionError(
                    f"{os.fspath(output)}: `resume=True` needs the form gguf, because a file of the form dat"
                    " does not record its model and text; name another output"
                )
            expected = work.inputs.expected_bytes
            settings = {
                "model": path_fingerprint(lm.path),
                "engine": lm.engine,
                TOKENS: chunks.fingerprint,
                "n_ctx": chunks.n_ctx,
                "n_chunks": len(chunks),
                "process_output": process_output,
                "fisher_chunks": fisher_chunks,
                "correlations": correlations,
                CORRELATED: str(expected),  # differ with the correlated inputs
            }
            work.run = encode_settings(settings)
            if resume and check_destination(output, True, sources).exists():
                work.resumed = _resumed(output, settings)
                overwrite = True
            for n_done in range(work.first + 1, len(chunks) + 1):
                if copy_chunks and n_done % copy_chunks == 0:  # before hours of work
                    check_destination(_copy_path(output, n_done), may_replace, sources)

            def save(overwrite: bool) -> None:
                work.sums().save(output, form=form, overwrite=overwrite, sources=sources)

            saver = stack.enter_context(
                Saver(
                    output,
                    save,
                    n_bytes=max(work.sums().file_bytes, expected[1]),
                    overwrite=overwrite,
                    sources=sources,
                    seconds=save_seconds,
                    chunks=save_chunks,
                    on_save=on_save,
                )
            )
        for chunk in range(work.first, len(chunks)):
            if progress is not None:
                progress(chunk * n_ctx, len(chunks) * n_ctx, f"chunk {chunk + 1} of {len(chunks)}")
            with errors_in(lm, chunk):
                work.measure(chunk)
            if saver is not None and output is not None:
                saver.done(chunk + 1)
                if copy_chunks and (chunk + 1) % copy_chunks == 0:
                    copy = _copy_path(output, chunk + 1)
                    work.sums().save(copy, form=form, overwrite=may_replace, sources=sources)
            if on_chunk is not None and score:
                on_chunk(work.perplexity)
    return work.sums()


@dataclass
class _Work:
    """The sums of all complete chunks so far.

    ``fisher_chunks`` are the indices of the chunks on which Fisher information is measured, ``run`` has the
    settings of this run, ``resumed`` has the sums of the interrupted run.
    """

    model: LanguageModel
    chunks: Chunks
    dataset: str
    score: bool
    process_output: bool
    correlations: bool
    threads: int
    fisher_chunks: set[int] = field(default_factory=set)
    run: str | None = None
    resumed: ImportanceSums | None = None
    fisher: dict[str, ColumnSums] = field(default_factory=dict)
    nll: list[Doubles] = field(default_factory=list)
    n_done: int = 0

    def __post_init__(self) -> None:
        self.started = time.perf_counter()
        self.inputs = self.model.input_sums()
        self.chunk_inputs = self.model.input_sums()

    @property
    def first(self) -> int:
        """Index of the first chunk that this run measures."""
        return 0 if self.resumed is None else self.resumed.chunk_count

    @property
    def perplexity(self) -> Perplexity:
        """The perplexity of the chunks that this run measured."""
        seconds = time.perf_counter() - self.started
        nll = np.concatenate(self.nll)
        return Perplexity(str(self.model.path), self.chunks.n_ctx, self.n_done, seconds, nll)

    def measure(self, chunk: int) -> None:
        """Measure a chunk. If that fails or is interrupted, the sums stay as they were."""
        model, chunks, fisher = self.model, self.chunks, self.fisher
        nll = self._read(chunk, self.chunk_inputs)
        _check_finite(model, self.chunk_inputs)
        if chunk in self.fisher_chunks:
            tokens = chunks.input(chunk)[:FISHER_TOKENS]
            fisher = _with_fisher(fisher, model, tokens, chunk, self.chunk_inputs, self.threads)
        self.inputs.take(self.chunk_inputs)
        self.fisher = fisher
        self.nll += nll
        self.n_done += 1

    def _read(self, chunk: int, sums: InputCollector) -> list[Doubles]:
        """Let the model read a chunk, and return -log of the probability of its scored tokens."""
        chunks = self.chunks
        sequence = chunks.begin(self.model, chunk, sums)
        pieces = chunks.predictions(sequence, chunk, sums) if self.score else ()
        nll = [token_nll(*predictions, threads=self.threads) for predictions in pieces]
        rest = chunks.input(chunk)[sequence.length :]
        if rest.size:
            sequence.evaluate(rest, logits="none", sums=sums)
        return nll

    def sums(self) -> ImportanceSums:
        """Return the sums of all complete chunks, with those of the resumed run."""
        squares_by_name = {
            name: ColumnSums(squares.astype(np.float32), counts.astype(np.float32))
            for name, (squares, counts) in self.inputs.all().items()
        }
        products, same_inputs = (
            (self.inputs.products(), self.inputs.same_inputs()) if self.correlations else ({}, {})
        )
        included = {
            name
            for name in squares_by_name
            if layer_of(name) is not None or (self.process_output and name == OUTPUT)
        }
        tensors, refining = (
            {name: sums for name, sums in squares_by_name.items() if (name in included) == wanted}
            for wanted in (True, False)
        )
        total = ImportanceSums(
            tensors,
            (self.dataset,),
            self.chunks.n_ctx,
            self.fisher,
            products,
            refining,
            self.run,
            same_inputs,
            self.n_done,
        )
        if self.resumed is None:
            return total
        return replace(self.resumed + total, datasets=total.datasets, run=self.run)


def _copy_path(output: str | os.PathLike[str], n_done: int) -> str:
    """Return the name of the copy of ``output`` that has the sums of ``n_done`` chunks."""
    return f"{os.fspath(output)}.at_{n_done}"


def _resumed(output: str | os.PathLike[str], settings: Settings) -> ImportanceSums:
    """Read the sums of an interrupted run. Raises :class:`BadOptionError` if its settings were others."""
    purpose = IMATRIX._replace(again=START_AGAIN, source=ANOTHER_FILE)
    importance = read_importance(output, WeightsFilter(), purpose)
    check_same(output, decode_settings(importance.run), settings)
    return ImportanceSums.of(importance)


def _has_gradients(model: LanguageModel) -> bool:
    """Return whether gradients give the Fisher information, and not trials of noise.

    For mixtures of experts, trials tell more: a gradient does not see that a small error before a router can
    choose other experts.
    """
    return model.has_fisher and not any(is_expert(name) for name in model.matrices)


def _with_fisher(
    fisher: Mapping[str, ColumnSums],
    model: LanguageModel,
    tokens: Tokens,
    seed: int,
    inputs: InputCollector,
    threads: int,
) -> dict[str, ColumnSums]:
    """Return ``fisher`` with the Fisher information of a text added. Its first half only gives context."""
    first = first_counted(len(tokens))
    count = np.array([n_predictions(len(tokens))], np.float32)
    found = (
        model.fisher(tokens, first=first, seed=seed)
        if _has_gradients(model)
        else fisher_by_noise(model, tokens, inputs.all(), first=first, seed=seed, threads=threads)
    )
    added = {}
    for name, columns in found.items():
        if not np.isfinite(columns).all():
            raise NotFiniteError(
                f"{model.path}: the gradients of {name} are not finite; 'q4hifi verify' finds damaged weights"
            )
        added[name] = ColumnSums(columns.astype(np.float32).reshape(1, -1), count)
    return {name: fisher[name] + sums if name in fisher else sums for name, sums in added.items()}


def _check_finite(model: LanguageModel, sums: InputCollector) -> None:
    for name, (squares, _) in sums.all().items():
        if not np.isfinite(squares).all():
            raise NotFiniteError(
                f"{model.path}: the inputs of {name} are not finite; 'q4hifi verify' finds damaged weights"
            )
