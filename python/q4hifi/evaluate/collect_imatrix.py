"""Importance matrices from a model and a text, as llama-imatrix makes them: :func:`collect_importance`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..codec.fingerprint import fingerprint, path_fingerprint
from ..errors import BadOptionError, NotFiniteError
from ..files.output_file import check_destination
from ..files.saver import SAVE_SECONDS, OnSave, Saver
from ..formats.tensor_names import OUTPUT
from ..gguf_io.split import files_of
from ..imatrix.file import load_importance
from ..imatrix.forms import DAT
from ..imatrix.sums import ColumnSums, ImportanceSums, form_of
from ..progress import Progress
from .chunks import Chunks, InputSums, LanguageModel, ModelOrPath, Text, errors_in, opened
from .limits import FISHER_CHUNKS
from .logits import Doubles, Tokens, token_nll
from .perplexity import Perplexity

FISHER_TOKENS = 256
"""The first tokens of a chunk are taken, so many."""


def collect_importance(
    model: ModelOrPath,
    text: Text,
    *,
    n_ctx: int = 512,
    n_chunks: int | None = None,
    process_output: bool = False,
    score: bool = True,
    fisher_chunks: int = FISHER_CHUNKS,
    correlations: bool = True,
    threads: int | None = None,
    dataset: str = "the text",
    output: str | os.PathLike[str] | None = None,
    form: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    save_seconds: float = SAVE_SECONDS,
    progress: Progress | None = None,
    on_chunk: Callable[[Perplexity], None] | None = None,
    on_save: OnSave | None = None,
) -> ImportanceSums:
    """Measure how much each input column of a model's matrices matters on a text.

    The text is cut as by :func:`q4hifi.perplexity`, and every token counts. ``process_output`` takes
    the output matrix in, where it is a matrix of its own: otherwise only refined encodings go by what is
    known of it. With ``score``, ``on_chunk`` gets the perplexity so far after each chunk; without, that
    much work is saved. In ``fisher_chunks`` of the chunks, spread over the text, what an error in each
    matrix does to the predictions is measured, too (:meth:`q4hifi.Model.fisher`); 0 leaves it out. With
    ``correlations`` those of the inputs are kept, by which errors can be made to cancel. ``dataset`` is
    the text's name, which the file records.

    ``output`` is the file to write, in the form ``form`` (:meth:`ImportanceSums.save`). It is written every
    ``save_seconds``, at the end, and when the work fails or is interrupted, each time with all complete
    chunks; ``on_save`` is called afterwards. ``overwrite`` lets it replace a file. ``resume`` goes on from a
    file of the form "gguf" that was written so, or begins where there is none; the perplexity is then that of
    the chunks measured now. Sums of a resumed run differ from those of an uninterrupted one by rounding, at
    most half a step of 1/127 in a correlation.

    Raises :class:`BadOptionError` for a text that is too short, for an output that cannot be written, and
    where the file to be resumed was made with another model, text or option; :class:`NotFiniteError` where
    the model gives numbers that are not finite.
    """
    with ExitStack() as stack:
        lm = stack.enter_context(opened(model, n_ctx=n_ctx, threads=threads))
        chunks = Chunks.of(lm, text, n_ctx=n_ctx, n_chunks=n_chunks, dataset=dataset)
        work = _Work(lm, chunks, dataset, score, process_output, correlations, threads or 0)
        work.informed = {i * len(chunks) // max(1, fisher_chunks) for i in range(fisher_chunks)}
        saver = None
        if output is not None:
            sources = files_of(Path(lm.path))
            form = form_of(output, form)
            if resume and form == DAT:
                raise BadOptionError(
                    f"{os.fspath(output)}: `resume=True` is for the form gguf, because a file in the form dat"
                    " does not say which model and text it was measured with; name another output"
                )
            work.run = _run(lm, chunks, process_output, fisher_chunks, correlations)
            if resume and check_destination(output, True, sources).exists():
                work.kept = _resumed(output, work.run)
                overwrite = True

            def save(overwrite: bool) -> None:
                work.sums().save(output, form=form, overwrite=overwrite, sources=sources)

            saver = stack.enter_context(
                Saver(
                    output,
                    save,
                    n_bytes=work.sums().file_bytes,
                    overwrite=overwrite,
                    sources=sources,
                    seconds=save_seconds,
                    on_save=on_save,
                )
            )
        for chunk in range(work.first, len(chunks)):
            if progress is not None:
                progress(chunk * n_ctx, len(chunks) * n_ctx, f"chunk {chunk + 1} of {len(chunks)}")
            with errors_in(lm, chunk):
                work.measure(chunk)
            if saver is not None:
                saver.done(chunk + 1)
            if on_chunk is not None and score:
                on_chunk(work.perplexity)
    return work.sums()


@dataclass
class _Work:
    """What was measured so far: the sums of whole chunks.

    ``kept`` are the sums of the run that is resumed, ``informed`` the chunks whose Fisher information is
    measured.
    """

    model: LanguageModel
    chunks: Chunks
    dataset: str
    score: bool
    process_output: bool
    correlations: bool
    threads: int
    informed: set[int] = field(default_factory=set)
    run: str | None = None
    kept: ImportanceSums | None = None
    fisher: dict[str, ColumnSums] = field(default_factory=dict)
    nll: list[Doubles] = field(default_factory=list)
    n_done: int = 0

    def __post_init__(self) -> None:
        self.started = time.perf_counter()
        self.inputs = self.model.input_sums()
        self.of_chunk = self.model.input_sums()

    @property
    def first(self) -> int:
        """The first chunk that is still to be measured."""
        return 0 if self.kept is None else self.kept.chunk_count

    @property
    def perplexity(self) -> Perplexity:
        """That of the chunks measured by this run."""
        seconds = time.perf_counter() - self.started
        nll = np.concatenate(self.nll)
        return Perplexity(str(self.model.path), self.chunks.n_ctx, self.n_done, seconds, nll)

    def measure(self, chunk: int) -> None:
        """Measure a chunk; where that fails or is interrupted, nothing of it counts."""
        model, chunks, fisher = self.model, self.chunks, self.fisher
        if chunk in self.informed:
            fisher = _with_fisher(fisher, model, chunks.input(chunk)[:FISHER_TOKENS], chunk)
        nll = self._read(chunk, self.of_chunk)
        _check_finite(model, self.of_chunk)
        self.inputs.take(self.of_chunk)
        self.fisher = fisher
        self.nll += nll
        self.n_done += 1

    def _read(self, chunk: int, sums: InputSums) -> list[Doubles]:
        """Have the model read a chunk; return what its tokens scored."""
        chunks = self.chunks
        sequence = chunks.begin(self.model, chunk, sums)
        if not self.score:
            sequence.evaluate(chunks.input(chunk)[chunks.first :], logits="none", sums=sums)
            return []
        nll = [token_nll(*answers, threads=self.threads) for answers in chunks.answers(sequence, chunk, sums)]
        sequence.evaluate(chunks.input(chunk)[-1:], logits="none", sums=sums)
        return nll

    def sums(self) -> ImportanceSums:
        """The sums of all whole chunks, those of the resumed run included."""
        known = {
            name: ColumnSums(squares.astype(np.float32).reshape(1, -1), np.array([count], np.float32))
            for name, (squares, count) in self.inputs.all().items()
        }
        products = {}
        if self.correlations:
            products = {name: found for name, (found, _) in self.inputs.products().items()}
        taken = {
            name for name in known if name.startswith("blk.") or (self.process_output and name == OUTPUT)
        }
        tensors, refining = (
            {name: found for name, found in known.items() if (name in taken) == wanted}
            for wanted in (True, False)
        )
        found = ImportanceSums(
            tensors, (self.dataset,), self.chunks.n_ctx, self.fisher, products, refining, self.run
        )
        if self.kept is None:
            return found
        return replace(self.kept + found, datasets=found.datasets, run=self.run)


def _run(
    model: LanguageModel, chunks: Chunks, process_output: bool, fisher_chunks: int, correlations: bool
) -> str:
    """Fingerprint of a model, a text and options: only what was begun with the same is resumed."""
    options = f"{chunks.n_ctx} {len(chunks)} {chunks.bos} {process_output} {fisher_chunks} {correlations}"
    return fingerprint(path_fingerprint(model.path).encode(), options.encode(), chunks.tokens.tobytes())


def _resumed(output: str | os.PathLike[str], run: str) -> ImportanceSums:
    """The sums that an interrupted run left. Raises :class:`BadOptionError` where it was another one."""
    importance = load_importance(output)
    if importance.run != run:
        raise BadOptionError(
            f"{output}: was not begun with this model, text and options, so it cannot be resumed;"
            " give the same ones, or another output"
        )
    return ImportanceSums.of(importance)


def _with_fisher(
    fisher: Mapping[str, ColumnSums], model: LanguageModel, tokens: Tokens, seed: int
) -> dict[str, ColumnSums]:
    """Add what a text tells, whose first half only gives context."""
    first = len(tokens) // 2
    count = np.array([len(tokens) - first], np.float32)
    found = {}
    for name, columns in model.fisher(tokens, first=first, seed=seed).items():
        if not np.isfinite(columns).all():
            raise NotFiniteError(
                f"{model.path}: the gradients of {name} are not finite; 'q4hifi verify' finds damaged weights"
            )
        found[name] = ColumnSums(columns.astype(np.float32).reshape(1, -1), count)
    return {name: fisher[name] + sums if name in fisher else sums for name, sums in found.items()}


def _check_finite(model: LanguageModel, sums: InputSums) -> None:
    for name, (squares, _) in sums.all().items():
        if not np.isfinite(squares).all():
            raise NotFiniteError(
                f"{model.path}: the inputs of {name} are not finite; 'q4hifi verify' finds damaged weights"
            )
