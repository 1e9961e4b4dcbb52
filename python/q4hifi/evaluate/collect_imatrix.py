"""Making an importance matrix by running a model on a text: :func:`collect_importance`.

The result has the values of llama-imatrix and more: the Fisher information of the matrices and the
correlations of their inputs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from ..codec.fingerprint import path_fingerprint
from ..engines.opening import opened
from ..engines.protocol import ModelOrPath
from ..errors import BadOptionError
from ..files.output_file import check_destination
from ..files.saver import SAVE_SECONDS, OnSave, Saver
from ..gguf_io.split import files_of
from ..imatrix.entries import WeightsFilter
from ..imatrix.file import IMATRIX, read_importance
from ..imatrix.forms import DAT
from ..imatrix.sums import ImportanceSums, form_of
from ..progress import Progress
from .chunks import Chunks, Text, errors_in
from .importance_work import ImportanceWork, MeasuringOptions, has_gradients
from .limits import CHUNK, FISHER_CHUNKS, NOISE_CHUNKS
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
        if fisher_chunks is None:
            fisher_chunks = FISHER_CHUNKS if has_gradients(lm) else NOISE_CHUNKS
        options = MeasuringOptions(dataset, score, process_output, fisher_chunks, correlations, threads or 0)
        work = ImportanceWork(lm, chunks, options)
        saver = file = None
        if output is not None:
            file = _File(work, output, form_of(output, form), overwrite=overwrite, copy_chunks=copy_chunks)
            begun = file.begin(resume=resume)
            saver = stack.enter_context(
                file.saver(begun or overwrite, seconds=save_seconds, chunks=save_chunks, on_save=on_save)
            )
        for chunk in range(work.first, len(chunks)):
            if progress is not None:
                progress(chunk * n_ctx, len(chunks) * n_ctx, f"chunk {chunk + 1} of {len(chunks)}")
            with errors_in(lm, chunk):
                work.measure(chunk)
            if saver is not None and file is not None:
                saver.done(chunk + 1)
                file.copy(chunk + 1)
            if on_chunk is not None and score:
                on_chunk(work.perplexity)
    return work.sums()


class _File:
    """The file of the sums, and its copies. ``overwrite`` allows to replace both."""

    def __init__(
        self,
        work: ImportanceWork,
        path: str | os.PathLike[str],
        form: str,
        *,
        overwrite: bool,
        copy_chunks: int | None,
    ) -> None:
        self.work, self.path, self.form = work, path, form
        self.overwrite, self.copy_chunks = overwrite, copy_chunks
        self.sources = files_of(Path(work.model.path))

    def begin(self, *, resume: bool) -> bool:
        """Check that the run can be saved, and resume an interrupted one. Return whether there was one."""
        work, chunks, options = self.work, self.work.chunks, self.work.options
        if resume and self.form == DAT:
            raise BadOptionError(
                f"{os.fspath(self.path)}: `resume=True` needs the form gguf, because a file of the form dat"
                " does not record its model and text; name another output"
            )
        settings = {
            "model": path_fingerprint(work.model.path),
            "engine": work.model.engine,
            TOKENS: chunks.fingerprint,
            "n_ctx": chunks.n_ctx,
            "n_chunks": len(chunks),
            "process_output": options.process_output,
            "fisher_chunks": options.fisher_chunks,
            "correlations": options.correlations,
            CORRELATED: str(work.inputs.expected_bytes),  # differ with the correlated inputs
        }
        work.run = encode_settings(settings)
        if resume and check_destination(self.path, True, self.sources).exists():
            work.resumed = _resumed(self.path, settings)
        for n_done in range(work.first + 1, len(chunks) + 1):
            if self._is_copied(n_done):  # before hours of work
                check_destination(self._copy_path(n_done), self.overwrite, self.sources)
        return work.resumed is not None

    def saver(self, overwrite: bool, *, seconds: float, chunks: int | None, on_save: OnSave | None) -> Saver:
        """Return what saves the sums. ``overwrite`` allows to replace the file itself."""
        return Saver(
            self.path,
            lambda overwrite: self._save(self.path, overwrite),
            n_bytes=max(self.work.sums().file_bytes, self.work.inputs.expected_bytes[1]),
            overwrite=overwrite,
            sources=self.sources,
            seconds=seconds,
            chunks=chunks,
            on_save=on_save,
        )

    def copy(self, n_done: int) -> None:
        """Write a copy with the sums of ``n_done`` chunks, if one is wanted after these."""
        if self._is_copied(n_done):
            self._save(self._copy_path(n_done), self.overwrite)

    def _save(self, path: str | os.PathLike[str], overwrite: bool) -> None:
        self.work.sums().save(path, form=self.form, overwrite=overwrite, sources=self.sources)

    def _is_copied(self, n_done: int) -> bool:
        return bool(self.copy_chunks and n_done % self.copy_chunks == 0)

    def _copy_path(self, n_done: int) -> str:
        return f"{os.fspath(self.path)}.at_{n_done}"


def _resumed(output: str | os.PathLike[str], settings: Settings) -> ImportanceSums:
    """Read the sums of an interrupted run. Raises :class:`BadOptionError` if its settings were others."""
    purpose = IMATRIX._replace(again=START_AGAIN, source=ANOTHER_FILE)
    importance = read_importance(output, WeightsFilter(), purpose)
    check_same(output, decode_settings(importance.run), settings)
    return ImportanceSums.of(importance)
