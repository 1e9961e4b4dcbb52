"""Figures from logits: how probable the next tokens are, and how the predictions of two models differ.

In all functions, ``logits`` is float32 [rows, n_vocab], one prediction per row, and ``tokens`` is uint32
[rows], the token that follows in the text. Codes are log-probabilities in the format of llama-perplexity's
base files, uint16 [rows * codes_per_row(n_vocab)] (:mod:`q4hifi.evaluate.log_probs_file`). Logarithms are
natural. The Rust core does the arithmetic.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .. import _core
from ..codec.core_errors import core_errors
from ..engines.protocol import Logits, Tokens
from ..errors import BadOptionError, NotFiniteError
from ..threads import thread_count

Codes = npt.NDArray[np.uint16]
Doubles = npt.NDArray[np.float64]

LARGEST = 1e39
"""Limit on the values of a sound file. Logits are float32, so no figure that is made of them is larger."""


class Divergence(NamedTuple):
    """How the predictions of a model differ from those of a base model: one value per scored token.

    ``nll`` and ``nll_base`` are -log of the probability that each model gives to the next token of the text.
    ``kld`` is the Kullback-Leibler divergence from the base model's distribution. All three are in nats.
    ``delta_p`` is the model's probability of the next token minus the base model's, -1 to 1. ``same_top``
    says whether both have the same most probable token.
    """

    nll: Doubles
    nll_base: Doubles
    kld: Doubles
    delta_p: Doubles
    same_top: npt.NDArray[np.bool_]

    @classmethod
    def joined(cls, parts: list[Divergence]) -> Divergence:
        """Join the values of consecutive parts of a text."""
        return cls(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def codes_per_row(n_vocab: int) -> int:
    """Return the number of uint16 values that store the log-probabilities of a row."""
    return n_vocab + n_vocab % 2 + 4


def token_nll(logits: Logits, tokens: Tokens, *, threads: int | None = None) -> Doubles:
    """Return -log of the probability of each token, float64 [rows].

    Raises :class:`NotFiniteError` if the logits are not finite.
    """
    with core_errors(BadOptionError):
        nll = _core.token_nll(logits, tokens, thread_count(threads))
    return _finite(nll)


def encode_log_probs(logits: Logits, tokens: Tokens, *, threads: int | None = None) -> tuple[Doubles, Codes]:
    """Return -log of the probability of each token, float64 [rows], and all log-probabilities as codes.

    Raises :class:`NotFiniteError` if the logits are not finite.
    """
    with core_errors(BadOptionError):
        nll, codes = _core.encode_log_probs(logits, tokens, thread_count(threads))
    return _finite(nll), codes


def divergence(logits: Logits, base: Logits, tokens: Tokens, *, threads: int | None = None) -> Divergence:
    """Compare a model's logits with the base model's, ``base``, over the whole vocabulary.

    Raises :class:`NotFiniteError` if logits are not finite.
    """
    with core_errors(BadOptionError):
        columns = _core.divergence(logits, base, tokens, thread_count(threads))
    return _checked(Divergence(*columns))


def divergence_from_codes(
    logits: Logits, base: Codes, tokens: Tokens, *, threads: int | None = None
) -> Divergence:
    """Compare a model's logits with the codes of a base model, ``base``.

    Raises :class:`NotFiniteError` if logits are not finite.
    """
    with core_errors(BadOptionError):
        columns = _core.divergence_from_log_probs(logits, base, tokens, thread_count(threads))
    return _checked(Divergence(*columns))


def _checked(values: Divergence) -> Divergence:
    for column in (values.nll, values.nll_base, values.kld):
        _finite(column)
    return values


def are_possible(values: npt.NDArray[Any]) -> bool:
    """Return whether all values are finite and at most :data:`LARGEST`, as figures from logits are."""
    return bool((np.abs(values) <= LARGEST).all())


def _finite(values: Doubles) -> Doubles:
    if not np.isfinite(values).all():
        raise NotFiniteError("the model's logits are not finite; 'q4hifi verify' finds damaged weights")
    return values
