"""The knapsack: against trying everything, and its own proof where that is out of reach."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from q4hifi.allocation.knapsack import Item, Solution, solve

CANDIDATE = st.tuples(st.integers(0, 40), st.one_of(st.integers(0, 30).map(float), st.floats(0, 10)))
ITEMS = st.lists(st.lists(CANDIDATE, min_size=1, max_size=4), max_size=6)


def best(items: list[list[Item]], budget: int) -> float | None:
    """The least loss of all choices within the budget."""
    losses = [
        sum(loss for _, loss in choice)
        for choice in itertools.product(*items)
        if sum(cost for cost, _ in choice) <= budget
    ]
    return min(losses, default=None)


def check(found: Solution, items: list[list[Item]], budget: int) -> None:
    """Check that an allocation is a choice within the budget, and says what it costs."""
    taken = [item[number] for item, number in zip(items, found.chosen, strict=True)]
    assert found.cost == sum(cost for cost, _ in taken) <= budget
    assert found.loss == pytest.approx(sum(loss for _, loss in taken))
    assert found.bound <= found.loss
    assert 0 <= found.gap <= 1


@settings(max_examples=500, deadline=None)
@given(ITEMS, st.integers(0, 150))
def test_nothing_within_the_budget_is_better(items: list[list[Item]], budget: int) -> None:
    expected, found = best(items, budget), solve(items, budget)
    if expected is None or found is None:
        assert expected is None and found is None
        return
    check(found, items, budget)
    assert found.loss == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert found.gap == 0


def model_like(n: int, *, seed: int) -> list[list[Item]]:
    """Items like the tensors of a model: a few shapes, errors that fall by 4 a bit, or nearly so."""
    rng = np.random.default_rng(seed)
    bits = np.array([2.625, 3.4375, 4.25, 4.5, 4.875, 5.25, 5.5, 6, 6.5625, 7.5, 8.5])
    items = []
    for i in range(n):
        weights = (2048 * 2048, 2048 * 512, 2048 * 8192)[i % 3]
        errors = np.exp(rng.normal(0, 1)) * 4.0 ** -(bits + rng.normal(0, 0.15, bits.size))
        items.append([(round(weights * b / 8), float(e)) for b, e in zip(bits, errors, strict=True)])
    return items


@pytest.mark.parametrize("n", [1, 60, 1000])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.35, 0.9, 1.0])
def test_large_cases_come_with_a_small_gap(n: int, share: float) -> None:
    items = model_like(n, seed=n)
    least, most = (sum(pick(item)[0] for item in items) for pick in (min, max))
    budget = round(least + share * (most - least))
    found = solve(items, budget)
    assert found is not None
    check(found, items, budget)
    assert found.gap <= 1e-4
    if share == 1:
        assert found.loss == pytest.approx(sum(min(loss for _, loss in item) for item in items))


def test_many_equal_items_share_what_there_is() -> None:
    found = solve([[(1, 4.0), (2, 1.0)]] * 500, 730)
    assert found is not None
    assert (found.cost, found.loss, found.gap) == (730, 270 * 4 + 230 * 1, 0)


def test_no_items_cost_nothing() -> None:
    assert solve([], 0) == Solution((), 0, 0.0, 0.0)


def test_too_small_a_budget_has_no_allocation() -> None:
    assert solve([[(3, 1.0)], [(4, 1.0), (5, 0.0)]], 6) is None


@pytest.mark.parametrize("budget", [10**9, 2**63, 10**30])
def test_a_budget_beyond_all_items_takes_the_best(budget: int) -> None:
    items: list[list[Item]] = [[(3, 5.0), (8, 1.0)], [(2, 4.0), (9, 0.5), (9, 2.0)]]
    found = solve(items, budget)
    assert found is not None
    assert (found.chosen, found.loss, found.gap) == ((1, 1), 1.5, 0.0)
