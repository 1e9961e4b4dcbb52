"""Which predictions of a chunk count: one fewer has a score than there are in the second half."""

from __future__ import annotations

import numpy as np
import pytest

from q4hifi.evaluate.chunks import Chunks
from q4hifi.evaluate.limits import MIN_CONTEXT
from q4hifi.evaluate.scored_tokens import first_counted, n_predictions, n_scored


@pytest.mark.parametrize(
    ("n_ctx", "first", "predictions", "scored"),
    [(4, 2, 2, 1), (5, 2, 3, 2), (16, 8, 8, 7), (512, 256, 256, 255)],
)
def test_the_second_half_counts(n_ctx: int, first: int, predictions: int, scored: int) -> None:
    assert (first_counted(n_ctx), n_predictions(n_ctx), n_scored(n_ctx)) == (first, predictions, scored)


@pytest.mark.parametrize("n_ctx", [MIN_CONTEXT, 7, 32])
def test_scored_are_those_with_a_next_token_in_the_chunk(n_ctx: int) -> None:
    chunks = Chunks(np.arange(2 * n_ctx, dtype=np.uint32).reshape(2, n_ctx), None, 2 * n_ctx)
    second_half = chunks.tokens[1, first_counted(n_ctx) :]
    assert n_predictions(n_ctx) == second_half.size
    assert chunks.scored(1).tolist() == second_half[1:].tolist()
    assert chunks.n_scored == n_scored(n_ctx) == chunks.scored(1).size > 0
