"""Which predictions of a chunk count: the first half only gives context, as in llama-perplexity.

The model predicts the next token after each token of the second half. These predictions are counted in two
ways:

- A *score* is the probability of the token that comes next. After the last token of a chunk none comes, so
  its prediction has no score. Perplexity, and the files of log-probabilities, have scores only
  (:func:`n_scored`).
- Calibration and the Fisher information need no next token. They use all predictions of the second half
  (:func:`n_predictions`).
"""

from __future__ import annotations


def first_counted(n_ctx: int) -> int:
    """Return the index of the first token of a chunk of ``n_ctx`` tokens whose prediction counts."""
    return n_ctx // 2


def n_predictions(n_ctx: int) -> int:
    """Return the number of predictions that count in a chunk of ``n_ctx`` tokens."""
    return n_ctx - first_counted(n_ctx)


def n_scored(n_ctx: int) -> int:
    """Return the number of those predictions that have a score."""
    return n_predictions(n_ctx) - 1
