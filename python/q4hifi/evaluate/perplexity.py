"""Perplexity as llama-perplexity measures it: :func:`perplexity`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BadOptionError
from ..files.saver import OnSave
from ..gguf_io.split import files_of
from ..progress import Progress
from .chunks import Chunks, LanguageModel, ModelOrPath, Text, errors_in, opened
from .estimates import Estimate, mean
from .log_probs_file import LogProbsWriter
from .logits import Doubles, encode_log_probs, token_nll


@dataclass(frozen=True, slots=True, eq=False)
class Perplexity:
    """How well a model predicts a text.

    ``model`` is its file; the text was cut into ``n_chunks`` chunks of ``n_ctx`` tokens, which took
    ``seconds``. ``nll`` is -log (natural) of the probability of each scored token, float64.
    """

    model: str
    n_ctx: int
    n_chunks: int
    seconds: float
    nll: Doubles = field(repr=False)

    @property
    def ppl(self) -> Estimate:
        """Perplexity: exp of the mean of ``nll``."""
        return mean(self.nll).exp()

    @property
    def running(self) -> list[float]:
        """Perplexity after each chunk."""
        ends = np.arange(1, self.n_chunks + 1) * (self.nll.size // self.n_chunks)
        with np.errstate(over="ignore"):  # infinite beyond floats
            values: list[float] = np.exp(np.cumsum(self.nll)[ends - 1] / ends).tolist()
        return values

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain JSON types."""
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
    n_ctx: int = 512,
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
    """Measure the perplexity of a model on a text, by llama-perplexity's protocol.

    ``model`` is a path or an open model; ``text`` a string or its tokens, which must fill two chunks
    of ``n_ctx``; only the first ``n_chunks`` are used if given. ``dataset`` is what errors call the text.
    ``on_chunk`` gets the result so far after each chunk.

    ``save_log_probs`` writes a base file for :func:`q4hifi.kl_divergence` and llama-perplexity. Until it is
    complete it is called ``PATH.partial``; ``resume`` goes on from that file.
    ``on_save`` gets the number of chunks in it after each chunk. ``overwrite`` lets it replace a file.

    Raises :class:`BadOptionError` for a text that is too short and a file that cannot be written or resumed,
    :class:`NotFiniteError` where the model's logits are not finite.
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
        found = [] if writer is None else _resumed(lm, chunks, writer, threads or 0)
        for chunk in range(len(found), len(chunks)):
            if progress is not None:
                progress(chunk * n_ctx, len(chunks) * n_ctx, f"chunk {chunk + 1} of {len(chunks)}")
            with errors_in(lm, chunk):
                found.append(_scored(lm, chunks, chunk, writer, threads or 0))
            if writer is not None:
                writer.end_chunk(found[-1])
                if on_save is not None:
                    on_save(writer.n_done)
            seconds = time.perf_counter() - started
            result = Perplexity(str(lm.path), n_ctx, chunk + 1, seconds, np.concatenate(found))
            if on_chunk is not None:
                on_chunk(result)
        if writer is not None:
            writer.publish()
        seconds = time.perf_counter() - started
        return Perplexity(str(lm.path), n_ctx, len(chunks), seconds, np.concatenate(found))


def _scored(
    model: LanguageModel, chunks: Chunks, chunk: int, writer: LogProbsWriter | None, threads: int
) -> Doubles:
    """-log of the probability of a chunk's tokens; the answers are written, too, where there is a writer."""
    found: list[Doubles] = []
    for answers in chunks.answers(chunks.begin(model, chunk), chunk):
        if writer is None:
            found.append(token_nll(*answers, threads=threads))
        else:
            nll, codes = encode_log_probs(*answers, threads=threads)
            found.append(nll)
            writer.write(codes)
    return np.concatenate(found)


def _resumed(model: LanguageModel, chunks: Chunks, writer: LogProbsWriter, threads: int) -> list[Doubles]:
    """-log of the probability of the tokens of each chunk that a partial file holds.

    Raises :class:`BadOptionError` where the model answers the last of them otherwise: then the file is of
    another model.
    """
    for last in range(writer.n_done)[-1:]:
        answers = chunks.answers(chunks.begin(model, last), last)
        codes = [encode_log_probs(*some, threads=threads)[1] for some in answers]
        if not np.array_equal(np.concatenate(codes), writer.read(last)):
            raise BadOptionError(
                f"{writer.partial}: was not begun with {model.path}, so it cannot be resumed; give the same"
                " model, or begin anew with `overwrite=True`"
            )
    return list(writer.nll().reshape(-1, chunks.n_scored))
