"""What a model's logits say of the tokens that came, and how two models' answers differ.

Logits are float32 [rows, n_vocab], tokens uint32 [rows]: the token that came after each row. Codes
are log-probabilities as llama-perplexity's files hold them, uint16 [rows * codes_per_row(n_vocab)].
Logarithms are natural. The arithmetic is the Rust core's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .. import _core
from ..codec.core_errors import core_errors
from ..errors import BadOptionError, NotFiniteError
from ..threads import thread_count

Logits = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.uint32]
Codes = npt.NDArray[np.uint16]
Doubles = npt.NDArray[np.float64]


LARGEST = 1e39


class Divergence(NamedTuple):
    """How a model's answers differ from a base model's: one value for each scored token.

    ``nll`` and ``nll_base`` are -log of the probability of the token that came, ``kld`` the
    Kullback-Leibler divergence from the base, all in nats. ``delta_p`` is the probability of the
    token that came less that of the base (-1 to 1), ``same_top`` whether both find the same token
    most probable.
    """

    nll: Doubles
    nll_base: Doubles
    kld: Doubles
    delta_p: Doubles
    same_top: npt.NDArray[np.bool_]

    @classmethod
    def joined(cls, parts: list[Divergence]) -> Divergence:
        """Put parts of a text together."""
        return cls(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def codes_per_row(n_vocab: int) -> int:
    """Return how many uint16 hold the log-probabilities of a row."""
    return n_vocab + n_vocab % 2 + 4


def token_nll(logits: Logits, tokens: Tokens, *, threads: int | None = None) -> Doubles:
    """Return -log of the probability of each token. Raises :class:`NotFiniteError`."""
    with core_errors(BadOptionError):
        nll = _core.token_nll(logits, tokens, thread_count(threads))
    return _finite(nll)


def encode_log_probs(logits: Logits, tokens: Tokens, *, threads: int | None = None) -> tuple[Doubles, Codes]:
    """Return the same and all log-probabilities as codes. Raises :class:`NotFiniteError`."""
    with core_errors(BadOptionError):
        nll, codes = _core.encode_log_probs(logits, tokens, thread_count(threads))
    return _finite(nll), codes


def divergence(logits: Logits, base: Logits, tokens: Tokens, *, threads: int | None = None) -> Divergence:
    """Compare with a base model's logits, over the whole vocabulary. Raises :class:`NotFiniteError`."""
    with core_errors(BadOptionError):
        found = _core.divergence(logits, base, tokens, thread_count(threads))
    return _checked(Divergence(*found))


def divergence_from_codes(
    logits: Logits, base: Codes, tokens: Tokens, *, threads: int | None = None
) -> Divergence:
    """Compare with a base model's codes. Raises :class:`NotFiniteError`."""
    with core_errors(BadOptionError):
        found = _core.divergence_from_log_probs(logits, base, tokens, thread_count(threads))
    return _checked(Divergence(*found))


def _checked(found: Divergence) -> Divergence:
    for column in (found.nll, found.nll_base, found.kld):
        _finite(column)
    return found


def are_figures(values: npt.NDArray[Any]) -> bool:
    """Whether a model can have given these values: float32 logits make none that are larger than 1e39."""
    return bool((np.abs(values) <= LARGEST).all())


def _finite(values: Doubles) -> Doubles:
    if not np.isfinite(values).all():
        raise NotFiniteError("the model's logits are not finite; 'q4hifi verify' finds damaged weights")
    return values
