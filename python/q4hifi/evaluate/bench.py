"""Speed of reading and writing, measured as llama-bench measures it: :func:`bench`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..codec.model_file import ModelFile
from ..codec.overview import Overview
from ..engines.opening import opened
from ..engines.protocol import LanguageModel, ModelOrPath, Tokens
from ..errors import BadOptionError, UnsupportedModelError
from ..progress import Progress
from ..threads import used_threads
from .chunks import bos_of
from .estimates import Estimate
from .limits import READ_TOKENS, WRITTEN_TOKENS


@dataclass(frozen=True, slots=True)
class Speed:
    """The result of one speed test of one model.

    ``test`` is the name that llama-bench gives the test: pp512 reads 512 tokens at once (prompt processing),
    tg128 writes 128 tokens one by one (text generation). ``n_tokens`` is that number of tokens. ``seconds``
    has the duration of each repetition. ``n_bytes`` is the size of the tensors, ``n_params`` the number of
    their weights, ``backend`` the instruction set of the kernels.
    """

    model: str
    description: str
    n_bytes: int
    n_params: int
    backend: str
    n_threads: int
    test: str
    n_tokens: int
    seconds: tuple[float, ...]

    @property
    def tokens_per_second(self) -> Estimate:
        """Mean over the repetitions. Its error is their standard deviation, as in llama-bench."""
        rates = self.n_tokens / np.array(self.seconds)
        return Estimate(float(rates.mean()), float(rates.std(ddof=1)) if rates.size > 1 else 0.0)

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain JSON types, with the keys of llama-bench's JSON where it has them."""
        rates = [self.n_tokens / s for s in self.seconds]
        speed = self.tokens_per_second
        return {
            "model_filename": self.model,
            "model_type": self.description,
            "model_size": self.n_bytes,
            "model_n_params": self.n_params,
            "backends": self.backend,
            "n_threads": self.n_threads,
            "test": self.test,
            "n_prompt": self.n_tokens if self.test.startswith("pp") else 0,
            "n_gen": self.n_tokens if self.test.startswith("tg") else 0,
            "avg_ts": speed.value,
            "stddev_ts": speed.error,
            "samples_ns": [round(1e9 * s) for s in self.seconds],
            "samples_ts": rates,
        }


def read_seconds(model: LanguageModel, n_tokens: int) -> float:
    """Return the seconds that a model takes to read ``n_tokens`` tokens at once, with one prediction."""
    tokens = _random_tokens(model, n_tokens)
    wanted: Literal["last", "none"] = "last" if model.has_logits else "none"
    sequence = model.sequence()
    started = time.perf_counter()
    sequence.evaluate(tokens, logits=wanted)
    return time.perf_counter() - started


def write_seconds(model: LanguageModel, n_tokens: int) -> float:
    """Return the seconds that a model takes for ``n_tokens`` one by one, with a prediction after each."""
    tokens = _random_tokens(model, n_tokens)
    sequence = model.sequence()
    started = time.perf_counter()
    for i in range(n_tokens):
        sequence.evaluate(tokens[i : i + 1], logits="last")
    return time.perf_counter() - started


def _random_tokens(model: LanguageModel, n: int) -> Tokens:
    tokens = np.random.default_rng(n).integers(0, model.n_vocab, n, np.uint32)
    bos = bos_of(model)
    if bos is not None:
        tokens[0] = bos
    return tokens


def bench(
    model: ModelOrPath,
    *,
    n_prompt: int | Sequence[int] = READ_TOKENS,
    n_gen: int | Sequence[int] = WRITTEN_TOKENS,
    threads: int | None = None,
    repetitions: int = 5,
    progress: Progress | None = None,
) -> tuple[Speed, ...]:
    """Measure how many tokens a model reads and writes per second.

    ``model`` is a path or an open model. ``n_prompt`` and ``n_gen`` are the tokens to read at once and to
    write one by one; each is a number or several, and 0 leaves the test out. Every test runs once to warm up
    and then ``repetitions`` times. ``threads`` None or 0 is one per core. ``progress`` is called with tokens.

    Returns one result per test, reading first. Raises :class:`BadOptionError` if there is nothing to measure,
    and :class:`UnsupportedModelError` for writing with a model that reads texts in both directions.
    """
    tests: list[tuple[str, Callable[[LanguageModel, int], float], int]] = []
    tests += [("pp", read_seconds, n) for n in _counts(n_prompt)]
    tests += [("tg", write_seconds, n) for n in _counts(n_gen)]
    if not tests or repetitions < 1:
        raise BadOptionError("nothing to measure; give a number of tokens and of repetitions above 0")
    total = sum(n for _, _, n in tests) * repetitions
    done, results = 0, []
    with opened(model, n_ctx=max(n for _, _, n in tests), threads=threads) as lm:
        if lm.reads_whole_texts and _counts(n_gen):
            raise UnsupportedModelError(
                f"{lm.path}: it does not write token by token; measure reading alone, with 0 tokens to write"
            )
        facts = model_facts(lm)
        for prefix, measure, n in tests:
            measure(lm, n if prefix == "pp" else 1)
            seconds = []
            for _ in range(repetitions):
                if progress is not None:
                    progress(done, total, f"{prefix}{n}")
                seconds.append(measure(lm, n))
                done += n
            results.append(
                Speed(
                    model=str(lm.path),
                    description=facts.description,
                    n_bytes=facts.n_bytes,
                    n_params=facts.n_params,
                    backend=lm.backend,
                    n_threads=used_threads(threads),
                    test=f"{prefix}{n}",
                    n_tokens=n,
                    seconds=tuple(seconds),
                )
            )
    return tuple(results)


def _counts(n: int | Sequence[int]) -> list[int]:
    return [count for count in ([n] if isinstance(n, int) else n) if count > 0]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Type and size of a model, as the tables show them.

    ``file_bytes`` is the size of its files, ``n_bytes`` that of the tensors alone, ``n_params`` the number of
    weights.
    """

    description: str
    file_bytes: int
    n_bytes: int
    n_params: int

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data per weight."""
        return 8 * self.n_bytes / max(1, self.n_params)


def model_facts(model: LanguageModel) -> ModelFacts:
    """Read type and size of a model from its file."""
    with ModelFile.open(model.path) as file:
        overview = Overview.of(file)
    metadata = model.metadata
    size = metadata.get("general.size_label", "?B")
    description = f"{metadata.get('general.architecture', '?')} {size} {overview.file_type}"
    return ModelFacts(description, overview.file_bytes, overview.n_bytes, overview.n_params)
