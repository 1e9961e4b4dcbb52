"""Which of its candidates each item takes, so that the loss is least within a budget: pure arithmetic.

A multiple-choice knapsack: n items with up to k candidates each, of a cost and a loss; one candidate an
item is taken, all costs together stay within the budget, and the sum of the losses is to be least.

1. *Relaxed.* With a price p on each unit of cost, every item alone takes what has the least
   ``loss + p cost``; whatever the price, Σ min(loss + p cost) - p budget is a lower bound of the loss.
   The best price is found by stepping along the items' convex hulls, the steeper step first, until the
   budget is spent: there it stands between two steps.
2. *A first choice.* The same steps, leaving out those that no longer fit.
3. *Exact.* What a candidate has above its item's least ``loss + p cost`` it adds to the bound. So only
   candidates with less than first choice - bound matter, few, and what remains is enumerated item by
   item. A partial choice goes where its bound is too large, and where another has no more cost and no
   more loss. If more than :data:`MOST_STATES` remain, the worst are dropped, and the bound is lowered to
   what they could have reached: then the answer may not be the best, but ``gap`` says by how much at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

MOST_STATES = 4096
"""Partial choices that are kept at a time: what bounds time and memory."""

Candidate = tuple[int, float]
"""Cost (not negative) and loss (not negative, finite)."""

Ints = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Allocation:
    """A choice: the number of the candidate that each item takes, its cost and loss in all.

    No choice within the budget has a loss below ``bound``.
    """

    chosen: tuple[int, ...]
    cost: int
    loss: float
    bound: float

    @property
    def gap(self) -> float:
        """How far the loss is from the bound, as a share of the loss; 0 is proven to be the best."""
        return (self.loss - self.bound) / self.loss if self.loss > self.bound else 0.0


def allocate(items: Sequence[Sequence[Candidate]], budget: int) -> Allocation | None:
    """Choose a candidate for every item within ``budget``; None where even the cheapest do not fit."""
    if sum(min(cost for cost, _ in item) for item in items) > budget:
        return None
    problem = _Problem(items, budget)
    first = problem.stepwise()
    limit = problem.loss_of(first)
    bound = problem.bound()
    better, dropped = problem.enumerated(limit - bound)
    chosen = first if better is None or problem.loss_of(better) > limit else better
    loss = problem.loss_of(chosen)
    return Allocation(
        chosen=tuple(map(int, chosen)),
        cost=problem.cost_of(chosen),
        loss=loss,
        bound=min(loss, bound + dropped),
    )


class _Problem:
    """Costs and losses as arrays [n, k], rows filled up with candidates that nobody takes."""

    def __init__(self, items: Sequence[Sequence[Candidate]], budget: int) -> None:
        self.budget = budget
        shape = (len(items), max(map(len, items), default=1))
        self.cost, self.loss = np.zeros(shape, np.int64), np.full(shape, np.inf)
        for i, item in enumerate(items):
            self.cost[i, : len(item)], self.loss[i, : len(item)] = zip(*item, strict=True)
        self.rows = np.arange(len(items))
        self.price = 0.0

    def cost_of(self, chosen: Ints) -> int:
        return int(self.cost[self.rows, chosen].sum())

    def loss_of(self, chosen: Ints) -> float:
        return float(self.loss[self.rows, chosen].sum())

    def bound(self) -> float:
        priced = self.loss + self.price * self.cost
        return float(priced.min(axis=1, initial=np.inf).sum()) - self.price * self.budget

    def stepwise(self) -> Ints:
        """Step from the cheapest candidates on, and note the price at which the budget is spent."""
        chosen = np.zeros(len(self.rows), np.int64)
        steps: list[tuple[float, int, int]] = []
        for i in range(len(self.rows)):
            hull = _hull(self.cost[i], self.loss[i])
            chosen[i] = hull[0]
            for a, b in pairwise(hull):
                gain = (self.loss[i, a] - self.loss[i, b]) / (self.cost[i, b] - self.cost[i, a])
                steps.append((float(gain), i, b))
        cost, stopped = self.cost_of(chosen), set[int]()
        for gain, i, b in sorted(steps, key=lambda step: -step[0]):
            more = int(self.cost[i, b] - self.cost[i, chosen[i]])
            if i not in stopped and cost + more <= self.budget:
                chosen[i], cost = b, cost + more
            else:
                self.price = max(self.price, gain)  # steps come from the steepest on: the first counts
                stopped.add(i)
        return chosen

    def enumerated(self, slack: float) -> tuple[Ints | None, float]:
        """Return the best choice within ``slack`` of the relaxed bound, if there is any.

        And how far above that bound whatever was dropped unseen is at least; infinite if nothing was.
        """
        priced = self.loss + self.price * self.cost
        above = priced - priced.min(axis=1, initial=np.inf, keepdims=True)
        limit = slack * (1 + 1e-9) + 1e-12 * float(np.abs(priced.min(axis=1, initial=np.inf)).sum())
        kept = [np.flatnonzero(row <= limit) for row in above]
        least = np.array([self.cost[i, k].min() for i, k in enumerate(kept)], np.int64)
        most = np.array([self.cost[i, k].max() for i, k in enumerate(kept)], np.int64)
        # costs of the items that follow, at least and at most
        least_after = least.sum() - np.cumsum(least)
        most_after = most.sum() - np.cumsum(most)
        cost, over = np.zeros(1, np.int64), np.zeros(1)
        path: list[tuple[Ints, Ints]] = []
        dropped = np.inf
        for i, k in enumerate(kept):
            parent = np.repeat(np.arange(cost.size), k.size)
            option = np.tile(k, cost.size)
            cost, over = cost[parent] + self.cost[i, option], over[parent] + above[i, option]
            unspent = np.maximum(0, self.budget - cost - most_after[i])
            reach = over + self.price * unspent
            keep = np.flatnonzero((cost + least_after[i] <= self.budget) & (reach <= limit))
            keep = keep[_undominated(cost[keep], over[keep] - self.price * cost[keep])]
            if keep.size > MOST_STATES:
                keep = keep[np.argsort(reach[keep], kind="stable")]
                dropped = min(dropped, float(reach[keep[MOST_STATES]]))
                keep = keep[:MOST_STATES]
            if not keep.size:
                return None, dropped
            cost, over = cost[keep], over[keep]
            path.append((parent[keep], option[keep]))
        at = int(np.argmin(over - self.price * cost))
        chosen = np.zeros(len(self.rows), np.int64)
        for i in reversed(self.rows):
            parent, option = path[i]
            chosen[i], at = option[at], int(parent[at])
        return chosen, dropped


def _hull(cost: Ints, loss: Doubles) -> list[int]:
    """Candidates on the lower convex hull, from the cheapest to the one with the least loss."""
    hull: list[int] = []
    for c in np.lexsort((loss, cost)).tolist():
        if np.isinf(loss[c]) or (hull and loss[c] >= loss[hull[-1]]):
            continue
        if hull and cost[c] == cost[hull[-1]]:
            continue
        while len(hull) > 1:
            a, b = hull[-2:]
            flatter = (loss[a] - loss[b]) * (cost[c] - cost[a]) <= (loss[a] - loss[c]) * (cost[b] - cost[a])
            if not flatter:
                break
            hull.pop()
        hull.append(c)
    return hull


def _undominated(cost: Ints, loss: Doubles) -> Ints:
    """Numbers of the states that no other has at most the cost and at most the loss of."""
    order = np.lexsort((loss, cost))
    best = np.minimum.accumulate(loss[order])
    first = np.ones(order.size, np.bool_)
    first[1:] = best[1:] < best[:-1]
    return order[first]
