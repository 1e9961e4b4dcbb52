"""KL divergence of a model from a base model: the figures of llama-perplexity --kl-divergence.

:func:`kl_divergence` reads the base model's predictions from a file. The base model need not be loaded.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf, isfinite, sqrt
from typing import Any

from ..engines.opening import opened
from ..engines.protocol import ModelOrPath
from ..progress import Progress
from .chunks import bos_of, errors_in
from .estimates import Estimate, covariance, difference, mean, quantile, root_mean_square, share
from .log_probs_file import LogProbsFile
from .logits import Divergence, codes_per_row, divergence_from_codes

QUANTILES = (0.999, 0.99, 0.95, 0.9, 0.5, 0.1, 0.05, 0.01, 0.001)


@dataclass(frozen=True, slots=True, eq=False)
class KlDivergence:
    """How much the predictions of a model differ from those of a base model, over a text.

    ``model`` is the model's file. ``base`` is the base file, or the base model's file. The text had
    ``n_chunks`` chunks of ``n_ctx`` tokens, and measuring took ``seconds``. ``tokens`` has the values of each
    scored token. Divergences are in nats; shares and probabilities are 0 to 1.
    """

    model: str
    base: str
    n_ctx: int
    n_chunks: int
    seconds: float
    tokens: Divergence = field(repr=False)

    @property
    def ppl(self) -> Estimate:
        """Perplexity of the model."""
        return mean(self.tokens.nll).exp()

    @property
    def ppl_base(self) -> Estimate:
        """Perplexity of the base model."""
        return mean(self.tokens.nll_base).exp()

    @property
    def ln_ppl_ratio(self) -> Estimate:
        """Natural logarithm of :attr:`ppl_ratio`."""
        return difference(self.tokens.nll, self.tokens.nll_base)

    @property
    def ppl_ratio(self) -> Estimate:
        """Perplexity of the model divided by that of the base model."""
        return self.ln_ppl_ratio.exp()

    @property
    def ppl_difference(self) -> Estimate:
        """Perplexity of the model minus that of the base model."""
        ppl, base = self.ppl, self.ppl_base
        shared = 2 * ppl.value * base.value * covariance(self.tokens.nll, self.tokens.nll_base)
        variance = ppl.error * ppl.error + base.error * base.error - shared
        return Estimate(ppl.value - base.value, sqrt(max(0.0, variance)) if isfinite(variance) else inf)

    @property
    def correlation(self) -> float:
        """Correlation of the log-probabilities that the two models give to the text's tokens, -1 to 1."""
        errors = mean(self.tokens.nll).error * mean(self.tokens.nll_base).error
        return covariance(self.tokens.nll, self.tokens.nll_base) / errors if errors else 1.0

    @property
    def mean_kld(self) -> Estimate:
        """Mean Kullback-Leibler divergence from the base model."""
        return mean(self.tokens.kld)

    def kld_quantile(self, fraction: float) -> Estimate:
        """Return a quantile of the divergences; ``fraction`` is 0 to 1, 0.5 is the median."""
        return quantile(self.tokens.kld, fraction)

    @property
    def mean_delta_p(self) -> Estimate:
        """Mean of :attr:`Divergence.delta_p`, the change of the probability of the text's token."""
        return mean(self.tokens.delta_p)

    def delta_p_quantile(self, fraction: float) -> Estimate:
        """Return a quantile of :attr:`Divergence.delta_p`; ``fraction`` is 0 to 1."""
        return quantile(self.tokens.delta_p, fraction)

    @property
    def rms_delta_p(self) -> Estimate:
        """Root mean square of :attr:`Divergence.delta_p`."""
        return root_mean_square(self.tokens.delta_p)

    @property
    def same_top(self) -> Estimate:
        """Share of the tokens at which both models have the same most probable token."""
        return share(self.tokens.same_top)

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain JSON types."""
        estimates = {
            name: getattr(self, name).as_dict()
            for name in (
                *("ppl", "ppl_base", "ln_ppl_ratio", "ppl_ratio", "ppl_difference"),
                *("mean_kld", "mean_delta_p", "rms_delta_p", "same_top"),
            )
        }
        return {
            "model": self.model,
            "base": self.base,
            "n_ctx": self.n_ctx,
            "n_chunks": self.n_chunks,
            "n_scored": int(self.tokens.nll.size),
            **estimates,
            "correlation": self.correlation,
            "maximum_kld": float(self.tokens.kld.max()),
            "minimum_kld": float(self.tokens.kld.min()),
            "kld_quantiles": {str(q): self.kld_quantile(q).as_dict() for q in QUANTILES},
            "delta_p_quantiles": {str(q): self.delta_p_quantile(q).as_dict() for q in QUANTILES},
            "seconds": self.seconds,
        }


def kl_divergence(
    model: ModelOrPath,
    base: str | os.PathLike[str] | LogProbsFile,
    *,
    n_chunks: int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    on_chunk: Callable[[KlDivergence], None] | None = None,
) -> KlDivergence:
    """Compare a model with a base model, whose predictions are in a base file.

    ``model`` is a path or an open model. ``base`` is a file, by path or open, written by
    :func:`q4hifi.perplexity` (``save_log_probs``) or by llama-perplexity. It contains the text, the tokens
    per chunk, and the base model's predictions. At most ``n_chunks`` chunks are read; None is all.
    ``threads`` None or 0 is one per core. ``progress`` is called with tokens, and ``on_chunk`` after each
    chunk with the result so far.

    Raises :class:`BadFileError` if the base file is damaged, :class:`BadOptionError` if it has another
    vocabulary, and :class:`NotFiniteError` if the model's logits are not finite.
    """
    started = time.perf_counter()
    file = base if isinstance(base, LogProbsFile) else LogProbsFile.open(base)
    n_ctx = file.n_ctx
    row = codes_per_row(file.n_vocab)
    parts: list[Divergence] = []
    with opened(model, n_ctx=n_ctx, threads=threads) as lm:
        chunks = file.chunks(lm.n_vocab, bos_of(lm), n_chunks)
        for chunk in range(len(chunks)):
            if progress is not None:
                progress(chunk * n_ctx, len(chunks) * n_ctx, f"chunk {chunk + 1} of {len(chunks)}")
            codes = file.codes(chunk)
            with errors_in(lm, chunk):
                start = 0
                for logits, tokens in chunks.predictions(chunks.begin(lm, chunk), chunk):
                    part = codes[start : start + tokens.size * row]
                    parts.append(divergence_from_codes(logits, part, tokens, threads=threads or 0))
                    start += part.size
            seconds = time.perf_counter() - started
            tokens_so_far = Divergence.joined(parts)
            result = KlDivergence(str(lm.path), str(file.path), n_ctx, chunk + 1, seconds, tokens_so_far)
            if on_chunk is not None:
                on_chunk(result)
    return result
