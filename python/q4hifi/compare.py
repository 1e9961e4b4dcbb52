"""Several models beside a reference, on one text: :func:`compare`.

All models are open at once and read the text together, chunk by chunk, so that no base file is
needed and the divergence is exact, over the whole vocabulary. Speeds are taken in turns, so that
all models meet the same state of the machine.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .bench import ModelFacts, model_facts, write_seconds
from .chunks import Chunks, LanguageModel, ModelOrPath, Piece, Progress, Text, errors_in, opened
from .errors import UnsupportedModelError
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
    only read, without answers) and ``decode_speed`` are in tokens a second, with standard errors.
    """

    model: str
    facts: ModelFacts
    perplexity: Perplexity = field(repr=False)
    quality: KlDivergence | None = field(repr=False)
    prompt_speed: Estimate
    decode_speed: Estimate

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain JSON types."""
        return {
            "model": self.model,
            "file_bytes": self.facts.file_bytes,
            "n_params": self.facts.n_params,
            "bits_per_weight": self.facts.bits_per_weight,
            "perplexity": self.perplexity.as_dict(),
            "quality": None if self.quality is None else self.quality.as_dict(),
            "prompt_speed": self.prompt_speed.as_dict(),
            "decode_speed": self.decode_speed.as_dict(),
        }


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """The outcome of :func:`compare`; ``dataset`` is what the text is called."""

    dataset: str
    n_ctx: int
    n_chunks: int
    reference: ComparedModel
    models: tuple[ComparedModel, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain JSON types."""
        return {
            "dataset": self.dataset,
            "n_ctx": self.n_ctx,
            "n_chunks": self.n_chunks,
            "reference": self.reference.as_dict(),
            "models": [model.as_dict() for model in self.models],
        }


class _Running:
    """What is gathered of a model while the text goes by."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.nll: list[Doubles] = []
        self.divergences: list[Divergence] = []
        self.prompt_rates: list[float] = []
        self.decode_rates: list[float] = []
        self.seconds = 0.0

    def answers(self, chunks: Chunks, chunk: int) -> Iterator[Piece]:
        """Yield the answers of a chunk, and note the time that the model took for them."""
        started = time.perf_counter()
        sequence = chunks.begin(self.model, chunk)
        self.prompt_rates.append(chunks.first / (time.perf_counter() - started))
        for piece in chunks.answers(sequence, chunk):
            self.seconds += time.perf_counter() - started
            yield piece
            started = time.perf_counter()

    def result(self, chunks: Chunks, reference: _Running | None) -> ComparedModel:
        """Sum up; ``reference`` is None for the reference itself."""
        path, size = str(self.model.path), (chunks.n_ctx, len(chunks))
        nll = np.concatenate(self.nll)
        quality = None
        if reference is not None:
            tokens = Divergence.joined(self.divergences)
            quality = KlDivergence(path, str(reference.model.path), *size, self.seconds, tokens)
        return ComparedModel(
            model=path,
            facts=model_facts(self.model),
            perplexity=Perplexity(path, *size, self.seconds, nll),
            quality=quality,
            prompt_speed=mean(np.array(self.prompt_rates)),
            decode_speed=mean(np.array(self.decode_rates)),
        )


def compare(
    reference: ModelOrPath,
    models: Sequence[ModelOrPath],
    text: Text,
    *,
    n_ctx: int = 512,
    n_chunks: int | None = None,
    threads: int | None = None,
    dataset: str = "the text",
    progress: Progress | None = None,
) -> Comparison:
    """Compare models with a reference on one text: sizes, quality, speeds.

    The text is cut as by :func:`q4hifi.perplexity`, with the reference's tokenizer. The figures are
    those of llama-perplexity --kl-divergence, but that its base files keep 16 bits of what is within
    16 of the largest logit, and here the divergence is of the logits themselves. Raises
    :class:`UnsupportedModelError` for models of different vocabularies.
    """
    with ExitStack() as stack:
        opening = [opened(model, n_ctx=n_ctx, threads=threads) for model in (reference, *models)]
        base, *others = (_Running(stack.enter_context(model)) for model in opening)
        for other in others:
            _check_vocabulary(base.model, other.model)
        chunks = Chunks.of(base.model, text, n_ctx=n_ctx, n_chunks=n_chunks, dataset=dataset)
        total = (1 + len(others)) * len(chunks) * n_ctx
        done = 0.0
        for chunk in range(len(chunks)):

            def tell(piece: Piece | None, what: str = f"chunk {chunk + 1} of {len(chunks)}") -> None:
                nonlocal done
                done += 0 if piece is None else n_ctx * piece.tokens.size / chunks.n_scored
                if progress is not None:
                    progress(round(done), total, what)

            tell(None)
            streams = [other.answers(chunks, chunk) for other in others]
            for answer in base.answers(chunks, chunk):
                with errors_in(base.model, chunk):
                    base.nll.append(token_nll(*answer, threads=threads or 0))
                tell(answer)
                for other, stream in zip(others, streams, strict=True):
                    with errors_in(other.model, chunk):
                        logits = next(stream).logits
                        found = divergence(logits, *answer, threads=threads or 0)
                    other.nll.append(found.nll)
                    other.divergences.append(found)
                    tell(answer)
        if progress is not None:
            progress(total, total, "speed of writing")
        for _ in range(DECODE_ROUNDS):
            for running in (base, *others):
                running.decode_rates.append(DECODE_TOKENS / write_seconds(running.model, DECODE_TOKENS))
        return Comparison(
            dataset,
            n_ctx,
            len(chunks),
            base.result(chunks, None),
            tuple(other.result(chunks, base) for other in others),
        )


def _check_vocabulary(reference: LanguageModel, model: LanguageModel) -> None:
    ours, theirs = (m.metadata.get(VOCABULARY) for m in (reference, model))
    if reference.n_vocab != model.n_vocab or ours != theirs:
        raise UnsupportedModelError(
            f"{model.path}: has another vocabulary ({model.n_vocab} tokens) than {reference.path} "
            f"({reference.n_vocab}); compare models of one family only"
        )
