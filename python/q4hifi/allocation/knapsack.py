"""A multiple-choice knapsack: one item of every class, with the least loss within a budget. Pure arithmetic.

There are n classes with up to k items each. An item has a cost and a loss. One item of each class is taken,
the sum of the costs must not exceed the budget, and the sum of the losses is to be least.

1. *Relaxed.* Let every unit of cost have a price p. Then each class alone takes its item with the least
   ``loss + p cost``. For every price, Σ min(loss + p cost) - p budget is a lower bound of the loss. The best
   price is found along the convex hulls of the classes: begin with the cheapest items, and take the steps
   with the most loss saved per cost first, until the budget is spent. The price is that of the first step
   that does not fit.
2. *A first choice.* The same steps, without those that do not fit.
3. *Exact.* An item whose ``loss + p cost`` is above the least of its class adds the difference to the bound.
   So only items with a difference below (loss of the first choice - bound) can be in a better choice. These
   are few, and they are enumerated class by class. A partial choice is dropped if its bound is too large, or
   if another one has neither more cost nor more loss. If more than :data:`MOST_STATES` remain, the worst are
   dropped, and the bound is lowered to what they could have reached. Then the answer may not be the best, and
   ``gap`` says how far from it it is at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

MOST_STATES = 4096
"""The number of partial choices that are kept, which bounds time and memory."""

Item = tuple[int, float]
"""Cost (not negative) and loss (not negative, finite)."""

Ints = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Solution:
    """The index of the item that is taken of each class, and their cost and loss in all.

    No choice within the budget has a loss below ``bound``.
    """

    chosen: tuple[int, ...]
    cost: int
    loss: float
    bound: float

    @property
    def gap(self) -> float:
        """The distance of the loss from its bound, divided by the loss; 0 if no choice is better."""
        return (self.loss - self.bound) / self.loss if self.loss > self.bound else 0.0


def solve(classes: Sequence[Sequence[Item]], budget: int) -> Solution | None:
    """Choose an item of every class; None if even the cheapest items exceed the budget."""
    if sum(min(cost for cost, _ in items) for items in classes) > budget:
        return None
    most = sum(max(cost for cost, _ in items) for items in classes)
    problem = _Problem(classes, min(budget, most))
    first = problem.stepwise()
    limit = problem.loss_of(first)
    bound = problem.bound()
    better, dropped = problem.enumerated(limit - bound)
    chosen = first if better is None or problem.loss_of(better) > limit else better
    loss = problem.loss_of(chosen)
    return Solution(
        chosen=tuple(map(int, chosen)),
        cost=problem.cost_of(chosen),
        loss=loss,
        bound=min(loss, bound + dropped),
    )


class _Problem:
    """Costs and losses as arrays [n, k]. Items of infinite loss, which are never taken, fill the rows."""

    def __init__(self, classes: Sequence[Sequence[Item]], budget: int) -> None:
        self.budget = budget
        shape = (len(classes), max(map(len, classes), default=1))
        self.cost, self.loss = np.zeros(shape, np.int64), np.full(shape, np.inf)
        for i, items in enumerate(classes):
            self.cost[i, : len(items)], self.loss[i, : len(items)] = zip(*items, strict=True)
        self.rows = np.arange(len(classes))
        self.price = 0.0

    def cost_of(self, chosen: Ints) -> int:
        return int(self.cost[self.rows, chosen].sum())

    def loss_of(self, chosen: Ints) -> float:
        return float(self.loss[self.rows, chosen].sum())

    def bound(self) -> float:
        priced = self.loss + self.price * self.cost
        return float(priced.min(axis=1, initial=np.inf).sum()) - self.price * self.budget

    def stepwise(self) -> Ints:
        """Take steps from the cheapest items on, and keep the price at which the budget is spent."""
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
                self.price = max(self.price, gain)  # steps are in order of gain: the first counts
                stopped.add(i)
        return chosen

    def enumerated(self, slack: float) -> tuple[Ints | None, float]:
        """Return the best choice within ``slack`` of the relaxed bound, None if there is none.

        The second value is how far above that bound the dropped partial choices are at least; infinite if
        none was dropped.
        """
        priced = self.loss + self.price * self.cost
        above = priced - priced.min(axis=1, initial=np.inf, keepdims=True)
        limit = slack * (1 + 1e-9) + 1e-12 * float(np.abs(priced.min(axis=1, initial=np.inf)).sum())
        kept = [np.flatnonzero(row <= limit) for row in above]
        least = np.array([self.cost[i, k].min() for i, k in enumerate(kept)], np.int64)
        most = np.array([self.cost[i, k].max() for i, k in enumerate(kept)], np.int64)
        # the least and the most cost of the classes that follow
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
    """The items on the lower convex hull, from the cheapest to the one with the least loss."""
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
    """The indices of the states for which no other state has at most their cost and at most their loss."""
    order = np.lexsort((loss, cost))
    best = np.minimum.accumulate(loss[order])
    first = np.ones(order.size, np.bool_)
    first[1:] = best[1:] < best[:-1]
    return order[first]
