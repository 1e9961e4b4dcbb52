"""Perplexity of a model on a text, measured as llama-perplexity measures it: :func:`perplexity`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..engines.opening import opened
from ..engines.protocol import LanguageModel, ModelOrPath
from ..errors import BadOptionError
from ..files.saver import OnSave
from ..gguf_io.split import files_of
from ..progress import Progress
from .chunks import Chunks, Text, errors_in
from .estimates import Estimate, mean
from .limits import CHUNK
from .log_probs_file import LogProbsWriter
from .logits import Doubles, encode_log_probs, token_nll
from .resuming import START_AGAIN


@dataclass(frozen=True, slots=True, eq=False)
class Perplexity:
    """The result of :func:`perplexity`: how well a model predicts a text.

    ``model`` is the model's file. The text had ``n_chunks`` chunks of ``n_ctx`` tokens, and measuring took
    ``seconds``. ``nll`` is -log (natural) of the probability of each scored token, float64 [n_scored].
    """

    model: str
    n_ctx: int
    n_chunks: int
    seconds: float
    nll: Doubles = field(repr=False)

    @property
    def ppl(self) -> Estimate:
        """The perplexity, exp(mean(nll)), with its standard error."""
        return mean(self.nll).exp()

    @property
    def running(self) -> list[float]:
        """The perplexity of the text up to the end of each chunk, one value per chunk."""
        ends = np.arange(1, self.n_chunks + 1) * (self.nll.size // self.n_chunks)
        with np.errstate(over="ignore"):  # it may be infinite
            values: list[float] = np.exp(np.cumsum(self.nll)[ends - 1] / ends).tolist()
        return values

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain JSON types."""
        return {
            "model": self.model,
            "n_ctx": self.n_ctx,
            "n_chunks": self.n_chunks,
            "n_scored": int(self.nll.size),
            "ppl": self.ppl.as_dict(),
            "running": self.running,
            "seconds": self.seconds,
        }


def perplexity(
    model: ModelOrPath,
    text: Text,
    *,
    n_ctx: int = CHUNK,
    n_chunks: int | None = None,
    threads: int | None = None,
    save_log_probs: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    dataset: str = "the text",
    progress: Progress | None = None,
    on_chunk: Callable[[Perplexity], None] | None = None,
    on_save: OnSave | None = None,
) -> Perplexity:
    """Measure the perplexity of a model on a text, as llama-perplexity does.

    The text is cut into chunks, and the predictions in the second half of each are scored.

    Parameters
    ----------
    model
        A path or an open model.
    text
        A string, or its token ids. It must fill at least two chunks.
    n_ctx, n_chunks
        Tokens per chunk, and the largest number of chunks; None is the whole text.
    threads
        Number of threads; None or 0 is one per core.
    save_log_probs
        Base file to write, for :func:`q4hifi.kl_divergence` and llama-perplexity. Until it is complete, its
        name is ``PATH.partial``.
    overwrite
        Allow ``save_log_probs`` to replace an existing file.
    resume
        Continue from ``PATH.partial``, which an interrupted run of the same model and text left.
    dataset
        Name of the text in errors.
    progress
        Called with the number of tokens done.
    on_chunk
        Called after each chunk with the result so far.
    on_save
        Called after each chunk with the number of chunks in the base file.

    Raises :class:`BadOptionError` if the text is too short, or the base file cannot be written or resumed.
    Raises :class:`NotFiniteError` if the model's logits are not finite.
    """
    started = time.perf_counter()
    with opened(model, n_ctx=n_ctx, threads=threads) as lm, ExitStack() as stack:
        chunks = Chunks.of(lm, text, n_ctx=n_ctx, n_chunks=n_chunks, dataset=dataset)
        writer = None
        if save_log_probs is not None:
            sources = files_of(Path(lm.path))
            writer = stack.enter_context(
                LogProbsWriter(save_log_probs, chunks, overwrite=overwrite, resume=resume, sources=sources)
            )
        nll = [] if writer is None else _resumed(lm, chunks, writer, threads or 0)
        for chunk in range(len(nll), len(chunks)):
            if progress is not None:
                progress(chunk * n_ctx, len(chunks) * n_ctx, f"chunk {chunk + 1} of {len(chunks)}")
            with errors_in(lm, chunk):
                nll.append(_scored(lm, chunks, chunk, writer, threads or 0))
            if writer is not None:
                writer.end_chunk(nll[-1])
                if on_save is not None:
                    on_save(writer.n_done)
            seconds = time.perf_counter() - started
            result = Perplexity(str(lm.path), n_ctx, chunk + 1, seconds, np.concatenate(nll))
            if on_chunk is not None:
                on_chunk(result)
        if writer is not None:
            writer.publish()
        seconds = time.perf_counter() - started
        return Perplexity(str(lm.path), n_ctx, len(chunks), seconds, np.concatenate(nll))


def _scored(
    model: LanguageModel, chunks: Chunks, chunk: int, writer: LogProbsWriter | None, threads: int
) -> Doubles:
    """Return -log of the probability of a chunk's scored tokens, and give the predictions to ``writer``."""
    parts: list[Doubles] = []
    for predictions in chunks.predictions(chunks.begin(model, chunk), chunk):
        if writer is None:
            parts.append(token_nll(*predictions, threads=threads))
        else:
            nll, codes = encode_log_probs(*predictions, threads=threads)
            parts.append(nll)
            writer.write(codes)
    return np.concatenate(parts)


def _resumed(model: LanguageModel, chunks: Chunks, writer: LogProbsWriter, threads: int) -> list[Doubles]:
    """Return -log of the probability of the scored tokens for each chunk that the partial file contains.

    Runs the model on the last of these chunks. Raises :class:`BadOptionError` if its predictions differ from
    the file's, because then the file was begun with another model.
    """
    for last in range(writer.n_done)[-1:]:
        predictions = chunks.predictions(chunks.begin(model, last), last)
        codes = [encode_log_probs(*part, threads=threads)[1] for part in predictions]
        if not np.array_equal(np.concatenate(codes), writer.read(last)):
            raise BadOptionError(
                f"{writer.partial}: was begun with another model than {model.path}, so it cannot be resumed;"
                f" give the same model, or {START_AGAIN}"
            )
    return list(writer.nll().reshape(-1, chunks.n_scored))
