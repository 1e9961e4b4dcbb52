"""The sums of an importance matrix while a model reads a text: :class:`ImportanceWork`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from ..engines.protocol import InputCollector, LanguageModel, Tokens
from ..errors import NotFiniteError
from ..formats.tensor_names import OUTPUT, is_expert, layer_of
from ..imatrix.sums import ColumnSums, ImportanceSums
from .chunks import Chunks
from .logits import Doubles, token_nll
from .noise_trials import fisher_by_noise
from .perplexity import Perplexity
from .scored_tokens import first_counted, n_predictions

FISHER_TOKENS = 256
"""Tokens from the start of a chunk on which the Fisher information is measured."""


@dataclass(frozen=True, slots=True)
class MeasuringOptions:
    """What is measured: the options of :func:`q4hifi.collect_importance`, which explains them."""

    dataset: str
    score: bool
    process_output: bool
    fisher_chunks: int
    correlations: bool
    threads: int


@dataclass
class ImportanceWork:
    """The sums of all complete chunks so far.

    ``run`` has the settings of this run, ``resumed`` the sums of the interrupted run.
    """

    model: LanguageModel
    chunks: Chunks
    options: MeasuringOptions
    run: str | None = None
    resumed: ImportanceSums | None = None
    fisher: dict[str, ColumnSums] = field(default_factory=dict)
    nll: list[Doubles] = field(default_factory=list)
    n_done: int = 0

    def __post_init__(self) -> None:
        n, n_chunks = self.options.fisher_chunks, len(self.chunks)
        self.fisher_chunks = {i * n_chunks // n for i in range(n)}
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
            fisher = _with_fisher(fisher, model, tokens, chunk, self.chunk_inputs, self.options.threads)
        self.inputs.take(self.chunk_inputs)
        self.fisher = fisher
        self.nll += nll
        self.n_done += 1

    def _read(self, chunk: int, sums: InputCollector) -> list[Doubles]:
        """Let the model read a chunk, and return -log of the probability of its scored tokens."""
        chunks = self.chunks
        sequence = chunks.begin(self.model, chunk, sums)
        pieces = chunks.predictions(sequence, chunk, sums) if self.options.score else ()
        nll = [token_nll(*predictions, threads=self.options.threads) for predictions in pieces]
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
            (self.inputs.products(), self.inputs.same_inputs()) if self.options.correlations else ({}, {})
        )
        included = {
            name
            for name in squares_by_name
            if layer_of(name) is not None or (self.options.process_output and name == OUTPUT)
        }
        tensors, refining = (
            {name: sums for name, sums in squares_by_name.items() if (name in included) == wanted}
            for wanted in (True, False)
        )
        total = ImportanceSums(
            tensors,
            (self.options.dataset,),
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


def has_gradients(model: LanguageModel) -> bool:
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
        if has_gradients(model)
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
