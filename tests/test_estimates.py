"""Means, quantiles and their errors: against llama-perplexity's formulas and against many samples."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest

from q4hifi.evaluate.estimates import Estimate, difference, mean, quantile, root_mean_square, share

RNG = np.random.default_rng(0)


def test_the_error_of_a_mean_is_how_much_means_of_samples_differ() -> None:
    samples = RNG.exponential(2.0, (2000, 400))
    found = mean(samples[0])
    assert found.value == pytest.approx(samples[0].mean())
    assert found.error == pytest.approx(samples.mean(1).std(), rel=0.2)


def test_what_two_samples_share_is_no_error_of_their_difference() -> None:
    shared = RNG.standard_normal((1000, 300)) * 10
    x, y = shared + RNG.standard_normal(shared.shape), shared + 1
    found = difference(x[0], y[0])
    assert found.error == pytest.approx((x.mean(1) - y.mean(1)).std(), rel=0.2)
    assert difference(x[0], x[0]) == Estimate(0.0, 0.0)


@pytest.mark.parametrize("fraction", [0.5, 0.9, 0.999])
def test_a_quantile_and_its_error(fraction: float) -> None:
    samples = RNG.lognormal(0, 1, (1000, 3001)).astype(np.float32)
    values = np.quantile(samples, fraction, axis=1)
    errors = [quantile(x, fraction).error for x in samples]
    assert quantile(samples[0], fraction).value == pytest.approx(values[0], rel=1e-3)
    assert np.mean(errors) == pytest.approx(values.std(), rel=0.25)


def test_a_quantile_of_few_values_stays_among_them() -> None:
    x = np.array([1.0, 2.0, 4.0])
    assert quantile(x, 0.5).value == 2
    assert quantile(x, 0.999).value == pytest.approx(4, abs=0.01)
    assert quantile(x[:1], 0.5) == Estimate(1.0, 0.0)


def test_root_mean_square_and_share() -> None:
    samples = RNG.standard_normal((2000, 500))
    found = root_mean_square(samples[0])
    assert found.error == pytest.approx(np.sqrt((samples**2).mean(1)).std(), rel=0.2)
    assert root_mean_square(np.zeros(5)) == Estimate(0.0, 0.0)
    hits = RNG.random((2000, 500)) < 0.9
    assert share(hits[0]).error == pytest.approx(hits.mean(1).std(), rel=0.25)
    assert share(np.ones(4, bool)) == Estimate(1.0, 0.0)


def test_exp_is_infinite_beyond_floats() -> None:
    """As a damaged model's perplexity may be; it must not end in OverflowError."""
    assert Estimate(800.0, 0.1).exp() == Estimate(inf, inf)
    assert Estimate(-800.0, 0.1).exp() == Estimate(0.0, 0.0)


def test_exp_and_scaled_carry_the_error() -> None:
    assert Estimate(0.0, 0.1).exp() == Estimate(1.0, 0.1)
    assert Estimate(2.0, 0.1).scaled(100).as_dict() == {"value": 200.0, "error": 10.0}
