"""Importance matrices from a model and a text, as llama-imatrix makes them: :func:`collect_importance`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

from .chunks import Chunks, LanguageModel, ModelOrPath, Progress, Text, errors_in, opened
from .errors import NotFiniteError
from .importance_sums import ColumnSums, ImportanceSums
from .logits import Doubles, Tokens, token_nll
from .perplexity import Perplexity

OUTPUT = "output.weight"

FISHER_CHUNKS = 12
"""Chunks whose Fisher information is measured. Of eight it is known to some ten percent on the example model;
on larger ones single tokens have more of it."""

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
    progress: Progress | None = None,
    on_chunk: Callable[[Perplexity], None] | None = None,
) -> ImportanceSums:
    """Measure how much each input column of a model's matrices matters on a text.

    The text is cut as by :func:`q4hifi.perplexity`, and every token counts. ``process_output`` takes
    the output matrix in, where it is a matrix of its own: otherwise only refined encodings go by what is
    known of it. With ``score``, ``on_chunk`` gets the perplexity so far after each chunk; without, that
    much work is saved. In ``fisher_chunks`` of the chunks, spread over the text, what an error in each
    matrix does to the predictions is measured, too (:meth:`q4hifi.Model.fisher`); 0 leaves it out. With
    ``correlations`` those of the inputs are kept, by which errors can be made to cancel. ``dataset`` is
    the text's name, which the file records.
    """
    started = time.perf_counter()
    nll: list[Doubles] = []
    with opened(model, n_ctx=n_ctx, threads=threads) as lm:
        chunks = Chunks.of(lm, text, n_ctx=n_ctx, n_chunks=n_chunks, dataset=dataset)
        sums, fisher = lm.input_sums(), dict[str, ColumnSums]()
        informed = {i * len(chunks) // max(1, fisher_chunks) for i in range(fisher_chunks)}
        for chunk in range(len(chunks)):
            if progress is not None:
                progress(chunk * n_ctx, len(chunks) * n_ctx, f"chunk {chunk + 1} of {len(chunks)}")
            with errors_in(lm, chunk):
                if chunk in informed:
                    fisher = _with_fisher(fisher, lm, chunks.input(chunk)[:FISHER_TOKENS], chunk)
                sequence = chunks.begin(lm, chunk, sums)
                if not score:
                    sequence.evaluate(chunks.input(chunk)[chunks.first :], logits="none", sums=sums)
                    continue
                for answers in chunks.answers(sequence, chunk, sums):
                    nll.append(token_nll(*answers, threads=threads or 0))
                sequence.evaluate(chunks.input(chunk)[-1:], logits="none", sums=sums)
            if on_chunk is not None:
                seconds = time.perf_counter() - started
                on_chunk(Perplexity(str(lm.path), n_ctx, chunk + 1, seconds, np.concatenate(nll)))
        known = _column_sums(lm, sums.all())
        products = {name: found for name, (found, _) in sums.products().items()} if correlations else {}
    taken = {name for name in known if name.startswith("blk.") or (process_output and name == OUTPUT)}
    tensors, refining = (
        {name: found for name, found in known.items() if (name in taken) == wanted}
        for wanted in (True, False)
    )
    return ImportanceSums(tensors, (dataset,), n_ctx, fisher, products, refining)


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


def _column_sums(model: LanguageModel, sums: Mapping[str, tuple[Doubles, int]]) -> dict[str, ColumnSums]:
    found = {}
    for name, (squares, count) in sums.items():
        if not np.isfinite(squares).all():
            raise NotFiniteError(
                f"{model.path}: the inputs of {name} are not finite; 'q4hifi verify' finds damaged weights"
            )
        found[name] = ColumnSums(squares.astype(np.float32).reshape(1, -1), np.array([count], np.float32))
    return found
