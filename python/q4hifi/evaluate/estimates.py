"""Values measured on a sample, each with the uncertainty that llama-perplexity prints beside it."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, inf, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

Sample = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its standard error, in the same unit; the error is 0 where it cannot be told."""

    value: float
    error: float = 0.0

    def scaled(self, factor: float) -> Estimate:
        """Return it in another unit."""
        return Estimate(self.value * factor, self.error * factor)

    def exp(self) -> Estimate:
        """Return the exponential of it, the error carried over to first order; infinite beyond floats."""
        try:
            value = exp(self.value)
        except OverflowError:
            return Estimate(inf, inf)
        return Estimate(value, value * self.error)

    def as_dict(self) -> dict[str, float]:
        """Return it as plain JSON types."""
        return {"value": self.value, "error": self.error}


def mean(x: Sample) -> Estimate:
    """Return the mean and its standard error."""
    if x.size == 0:
        return Estimate(0.0)
    return Estimate(float(x.mean()), sqrt(float(x.var()) / (x.size - 1)) if x.size > 1 else 0.0)


def covariance(x: Sample, y: Sample) -> float:
    """Return the covariance of the means of two samples taken together."""
    if x.size < 2:
        return 0.0
    return float((x * y).mean() - x.mean() * y.mean()) / (x.size - 1)


def difference(x: Sample, y: Sample) -> Estimate:
    """Return mean(x) - mean(y), two samples taken together; what they share does not count as error."""
    return Estimate(mean(x).value - mean(y).value, mean(x - y).error)


def root_mean_square(x: Sample) -> Estimate:
    """Return sqrt(mean(x²)), the error carried over to first order."""
    square = mean(x * x)
    root = sqrt(square.value)
    return Estimate(root, 0.5 * square.error / root if root else 0.0)


def share(hits: npt.NDArray[np.bool_]) -> Estimate:
    """Return which share of a sample is true, from 0 to 1."""
    if hits.size == 0:
        return Estimate(0.0)
    p = float(hits.mean())
    return Estimate(p, sqrt(p * (1 - p) / (hits.size - 1)) if hits.size > 1 else 0.0)


def quantile(x: Sample, fraction: float) -> Estimate:
    """Return the value that ``fraction`` of the sample lies below, by linear interpolation.

    Its error is half the distance between the values one standard deviation of the rank up and
    down, which holds for every distribution.
    """
    ordered = np.sort(x)
    # f32, as in llama-perplexity: the place decides the last digits
    place = float(np.float32(fraction) * np.float32(x.size - 1))
    spread = sqrt(x.size * fraction * (1 - fraction))
    low, value, high = (_at(ordered, p) for p in (place - spread, place, place + spread))
    return Estimate(value, (high - low) / 2)


def _at(ordered: Sample, place: float) -> float:
    place = min(max(place, 0.0), ordered.size - 1.0)
    below = int(place)
    above = min(below + 1, ordered.size - 1)
    part = place - below
    return float((1 - part) * ordered[below] + part * ordered[above])
