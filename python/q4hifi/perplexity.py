"""Perplexity as llama-perplexity measures it: :func:`perplexity`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .chunks import Chunks, ModelOrPath, Progress, Text, errors_in, opened
from .estimates import Estimate, mean
from .log_probs_file import write_log_probs
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
    dataset: str = "the text",
    progress: Progress | None = None,
    on_chunk: Callable[[Perplexity], None] | None = None,
) -> Perplexity:
    """Measure the perplexity of a model on a text, by llama-perplexity's protocol.

    ``model`` is a path or an open model; ``text`` a string or its tokens, which must fill two chunks
    of ``n_ctx``; only the first ``n_chunks`` are used if given. ``save_log_probs`` writes a base file
    for :func:`q4hifi.kl_divergence` and llama-perplexity. ``dataset`` is what errors call the text.
    ``on_chunk`` gets the result so far after each chunk. Raises :class:`BadOptionError` for a text
    that is too short, :class:`NotFiniteError` where the model's logits are.
    """
    started = time.perf_counter()
    found: list[Doubles] = []
    with opened(model, n_ctx=n_ctx, threads=threads) as lm, ExitStack() as stack:
        chunks = Chunks.of(lm, text, n_ctx=n_ctx, n_chunks=n_chunks, dataset=dataset)
        writer = None
        if save_log_probs is not None:
            writer = stack.enter_context(
                write_log_probs(save_log_probs, chunks, lm.n_vocab, overwrite=overwrite)
            )
        for chunk in range(len(chunks)):
            if progress is not None:
                progress(chunk * n_ctx, len(chunks) * n_ctx, f"chunk {chunk + 1} of {len(chunks)}")
            with errors_in(lm, chunk):
                for logits, tokens in chunks.answers(chunks.begin(lm, chunk), chunk):
                    if writer is None:
                        found.append(token_nll(logits, tokens, threads=threads or 0))
                    else:
                        nll, codes = encode_log_probs(logits, tokens, threads=threads or 0)
                        found.append(nll)
                        writer.write(codes)
            seconds = time.perf_counter() - started
            result = Perplexity(str(lm.path), n_ctx, chunk + 1, seconds, np.concatenate(found))
            if on_chunk is not None:
                on_chunk(result)
    return result
