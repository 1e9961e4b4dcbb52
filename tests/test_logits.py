"""Statistics of logits against their definitions, in float64 by numpy."""

from __future__ import annotations

import numpy as np
import pytest

from q4hifi import NotFiniteError
from q4hifi.evaluate.logits import (
    Codes,
    Divergence,
    Logits,
    codes_per_row,
    divergence,
    divergence_from_codes,
    encode_log_probs,
    token_nll,
)

N_VOCAB, ROWS = 301, 20
RNG = np.random.default_rng(3)
X = (RNG.standard_normal((ROWS, N_VOCAB)) * 4).astype(np.float32)
BASE = (X + RNG.standard_normal(X.shape) * 0.3).astype(np.float32)
TOKENS = RNG.integers(0, N_VOCAB, ROWS, np.uint32)


def log_softmax(logits: Logits) -> np.ndarray:
    x = logits.astype(np.float64)
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def decoded(codes: Codes) -> np.ndarray:
    """Log-probabilities from codes, by the description of the format."""
    rows = codes.reshape(-1, codes_per_row(N_VOCAB))
    step, least = rows[:, :4].copy().view("<f4").T.astype(np.float64)
    return step[:, None] * rows[:, 4 : 4 + N_VOCAB] + least[:, None]


@pytest.mark.usefixtures("many_cores")
@pytest.mark.parametrize("threads", [0, 1, 3])
def test_nll(threads: int) -> None:
    expected = -log_softmax(X)[np.arange(ROWS), TOKENS]
    np.testing.assert_allclose(token_nll(X, TOKENS, threads=threads), expected, rtol=1e-6)


def test_codes() -> None:
    nll, codes = encode_log_probs(X, TOKENS)
    np.testing.assert_allclose(nll, token_nll(X, TOKENS), rtol=1e-6)
    expected = log_softmax(X)
    within = expected > expected.max(1, keepdims=True) - 16
    assert np.abs(decoded(codes) - expected)[within].max() < 16 / 65535


def test_divergence() -> None:
    p, q = log_softmax(BASE), log_softmax(X)
    found = divergence(X, BASE, TOKENS)
    np.testing.assert_allclose(found.kld, (np.exp(p) * (p - q)).sum(1), rtol=1e-5)
    rows = np.arange(ROWS)
    np.testing.assert_allclose(found.nll, -q[rows, TOKENS], rtol=1e-6)
    np.testing.assert_allclose(found.nll_base, -p[rows, TOKENS], rtol=1e-6)
    np.testing.assert_allclose(found.delta_p, np.exp(q[rows, TOKENS]) - np.exp(p[rows, TOKENS]), atol=1e-7)
    np.testing.assert_array_equal(found.same_top, p.argmax(1) == q.argmax(1))
    assert not found.same_top.all()


def test_divergence_from_codes_leaves_out_the_tail() -> None:
    _, codes = encode_log_probs(BASE, TOKENS)
    p, q = decoded(codes), log_softmax(X)
    expected = np.where(p > -16, np.exp(p) * (p - q), 0).sum(1)
    found = divergence_from_codes(X, codes, TOKENS)
    np.testing.assert_allclose(found.kld, expected, atol=2e-6)
    np.testing.assert_array_equal(found.same_top, p.argmax(1) == q.argmax(1))


def test_equal_logits_do_not_diverge() -> None:
    found = divergence(X, X, TOKENS)
    assert not found.kld.any() and not found.delta_p.any() and found.same_top.all()


def test_the_tail_counts_without_codes() -> None:
    base = np.zeros((1, N_VOCAB), np.float32)
    base[0, 0] = 40
    x = base.copy()
    x[0, 1:] -= 1e5
    found = divergence(x, base, np.zeros(1, np.uint32))
    assert found.kld[0] == pytest.approx(300 * np.exp(-40) * 1e5, rel=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    x = X.copy()
    x[3, 7] = bad
    for call in (
        lambda: token_nll(x, TOKENS),
        lambda: encode_log_probs(x, TOKENS),
        lambda: divergence(x, BASE, TOKENS),
        lambda: divergence(BASE, x, TOKENS),
    ):
        with pytest.raises(NotFiniteError, match="verify"):
            call()


def test_parts_join() -> None:
    halves = [divergence(X[part], BASE[part], TOKENS[part]) for part in (slice(0, 7), slice(7, None))]
    for joined, whole in zip(Divergence.joined(halves), divergence(X, BASE, TOKENS), strict=True):
        np.testing.assert_array_equal(joined, whole)
