"""Values measured on a sample, with the standard errors that llama-perplexity prints."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import exp, inf, sqrt
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

Sample = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its standard error, in the same unit. The error is 0 if the sample is too small for one."""

    value: float
    error: float = 0.0

    def scaled(self, factor: float) -> Estimate:
        """Return the estimate in another unit: value and error times ``factor``."""
        return Estimate(self.value * factor, self.error * factor)

    def exp(self) -> Estimate:
        """Return exp(value), with the error propagated to first order. Both are infinite if it overflows."""
        try:
            value = exp(self.value)
        except OverflowError:
            return Estimate(inf, inf)
        return Estimate(value, value * self.error)

    def as_dict(self) -> dict[str, float]:
        """Return the estimate as plain JSON types."""
        return {"value": self.value, "error": self.error}


def mean(x: Sample) -> Estimate:
    """Return the mean and its standard error."""
    if x.size == 0:
        return Estimate(0.0)
    return Estimate(float(x.mean()), sqrt(float(x.var()) / (x.size - 1)) if x.size > 1 else 0.0)


def covariance(x: Sample, y: Sample) -> float:
    """Return the covariance of the means of two paired samples."""
    if x.size < 2:
        return 0.0
    return float((x * y).mean() - x.mean() * y.mean()) / (x.size - 1)


def difference(x: Sample, y: Sample) -> Estimate:
    """Return mean(x) - mean(y) of two paired samples. Variation that both share does not add to the error."""
    return Estimate(mean(x).value - mean(y).value, mean(x - y).error)


def root_mean_square(x: Sample) -> Estimate:
    """Return sqrt(mean(x²)), with the error propagated to first order."""
    square = mean(x * x)
    root = sqrt(square.value)
    return Estimate(root, 0.5 * square.error / root if root else 0.0)


def mean_per_squared_root(figures: Iterable[tuple[float, float]]) -> float:
    """Return the factor that turns a squared mean root of divergences into their mean.

    Each of ``figures`` has the mean of a sample of divergences, and the mean of their square roots.
    Divergences have a long tail: at one token in a hundred a matrix may cause more divergence than at all
    others together. So a mean over some hundred tokens depends on whether such a token is among them. The
    mean of the square roots does not. Its square is smaller than the mean, by a factor that is nearly the
    same for all matrices. The result is the median of that factor; 1 if there is none.
    """
    return median([mean / root**2 for mean, root in figures if root] or [1.0])


def share(hits: npt.NDArray[np.bool_]) -> Estimate:
    """Return the share of a sample that is true, 0 to 1."""
    if hits.size == 0:
        return Estimate(0.0)
    p = float(hits.mean())
    return Estimate(p, sqrt(p * (1 - p) / (hits.size - 1)) if hits.size > 1 else 0.0)


def quantile(x: Sample, fraction: float) -> Estimate:
    """Return the quantile of a sample (``fraction`` 0 to 1), by linear interpolation.

    The rank of a quantile has a binomial distribution, whatever the sample's distribution. The error is half
    the distance between the values one standard deviation of the rank below and above.
    """
    ordered = np.sort(x)
    # float32 as in llama-perplexity, because the rank decides the last digits
    rank = float(np.float32(fraction) * np.float32(x.size - 1))
    spread = sqrt(x.size * fraction * (1 - fraction))
    low, value, high = (_at(ordered, r) for r in (rank - spread, rank, rank + spread))
    return Estimate(value, (high - low) / 2)


def _at(ordered: Sample, rank: float) -> float:
    """Return the value at a rank, interpolated between its neighbours; ranks outside are clamped."""
    rank = min(max(rank, 0.0), ordered.size - 1.0)
    below = int(rank)
    above = min(below + 1, ordered.size - 1)
    part = rank - below
    return float((1 - part) * ordered[below] + part * ordered[above])
