"""Comparing several quantized models with their reference model on one text: :func:`compare`.

All models are open at the same time and read the text together, chunk by chunk. No base file is needed, and
the KL divergence is exact, over the whole vocabulary. Speeds are measured in turns, so that the state of the
machine is the same for all models.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from ..engines.opening import opened_alike
from ..engines.protocol import LanguageModel, ModelOrPath
from ..errors import UnsupportedModelError
from ..files.saver import SAVE_SECONDS, OnSave
from ..progress import Progress
from ..wording import counted
from .chunks import Chunks, Text
from .comparison import Comparison
from .comparison_run import DECODE_TOKENS, ComparisonRun, ModelRun
from .limits import CHUNK

VOCABULARY = "tokenizer.ggml.tokens"
"""Metadata key of the vocabulary, which compared models must have in common."""


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
        base, *others = (ModelRun(model) for model in stack.enter_context(opening))
        for other in others:
            _check_comparable(base.model, other.model)
        chunks = Chunks.of(base.model, text, n_ctx=n_ctx, n_chunks=n_chunks, dataset=dataset)
        work = ComparisonRun(base, others, chunks, dataset, threads or 0, progress)
        saver = None
        if output is not None:
            saver = stack.enter_context(
                work.saver(output, overwrite=overwrite, resume=resume, seconds=save_seconds, on_save=on_save)
            )
        for chunk in range(len(chunks)):
            if not work.measure(chunk):
                continue
            if saver is not None:
                saver.done(chunk + 1)
            if on_chunk is not None:
                on_chunk(work.result(chunk + 1))
        work.measure_speed()
        return work.result(len(chunks))


def _check_comparable(reference: LanguageModel, model: LanguageModel) -> None:
    if reference.reads_whole_texts != model.reads_whole_texts:
        raise UnsupportedModelError(
            f"{model.path}: only one of this model and {reference.path} reads texts in both directions;"
            " compare models of one family only"
        )
    ours, theirs = (m.metadata.get(VOCABULARY) for m in (reference, model))
    if reference.n_vocab != model.n_vocab or ours != theirs:
        raise UnsupportedModelError(
            f"{model.path}: has another vocabulary ({counted(model.n_vocab, 'token')}) than {reference.path} "
            f"({reference.n_vocab}); compare models of one family only"
        )
