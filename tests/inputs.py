"""Kinds of weights and of importance that the codec is tested on.

Each is a function of a generator and a row length n: weights are float32 [ROWS, n], importance is
float32 [n] or None. Rows of one kind differ in what matters to it, such as their magnitude.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Generator = np.random.Generator

ROWS = 8
LARGEST = np.finfo(np.float32).max


def normal(rng: Generator, n: int) -> Floats:
    return rng.standard_normal((ROWS, n), np.float32).clip(-4, 4)


def student(rng: Generator, n: int) -> Floats:
    return rng.standard_t(2, (ROWS, n)).clip(-1e4, 1e4).astype(np.float32)


def constant(rng: Generator, n: int) -> Floats:
    values = np.array([1, -1, 0.3, -7e-3, 5e4, -1e-7, 1e-30, 15], np.float32)
    return np.repeat(values[:, None], n, axis=1)


def zero(rng: Generator, n: int) -> Floats:
    return np.zeros((ROWS, n), np.float32) * rng.choice([1, -1], (ROWS, n)).astype(np.float32)


def powers(low: int, high: int) -> Callable[[Generator, int], Floats]:
    """Normal rows around 2^low, ..., 2^high."""

    def rows(rng: Generator, n: int) -> Floats:
        exponents = np.linspace(low, high, ROWS).round().astype(np.int32)[:, None]
        return np.ldexp(normal(rng, n), exponents)

    return rows


def ties_symmetric(rng: Generator, n: int) -> Floats:
    """Halves of the step of a grid -half..half, with -half itself in every group of 16."""
    half = np.array([8, 16, 32, 127, 4, 8, 4, 16])[:, None]
    x = rng.integers(-2 * half, 2 * half - 1, (ROWS, n)) / 2
    x[:, ::16] = -half
    return (x * 2.0 ** np.arange(-4, ROWS - 4)[:, None]).astype(np.float32)


def ties_affine(rng: Generator, n: int) -> Floats:
    """Halves of the step of a grid 0..levels, with both ends in every group of 16; some rows shifted."""
    levels = np.array([15, 31, 3, 3, 15, 31, 15, 3])[:, None]
    x = rng.integers(0, 2 * levels + 1, (ROWS, n)) / 2
    x[:, ::16], x[:, 1::16] = 0, levels
    return (x - levels // 2 * (np.arange(ROWS)[:, None] // 2 % 2)).astype(np.float32)


def ties_table(rng: Generator, n: int) -> Floats:
    """Values of IQ4_NL's table and what lies midway between two, the lowest itself in every group of 32."""
    values = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])
    x = rng.choice(np.concatenate([values, (values[1:] + values[:-1]) / 2]), (ROWS, n))
    x[:, ::32] = -127
    scales = np.array([1, -1, 2.0**-3, -(2.0**-9), 0.3, -0.7, 1e-3, 1e-20])[:, None]
    return (x * scales).astype(np.float32)


def signs(rng: Generator, n: int) -> Floats:
    """Equal magnitudes, so that which extreme comes first decides."""
    return rng.choice([1, -1], (ROWS, n)).astype(np.float32)


def positive(rng: Generator, n: int) -> Floats:
    return np.abs(normal(rng, n))


def negative(rng: Generator, n: int) -> Floats:
    return -np.abs(normal(rng, n)) - 1


def spike(rng: Generator, n: int) -> Floats:
    """One weight in each row stands out of nothing, or of noise."""
    x = normal(rng, n) * np.array([0, 0, 0, 0, 1e-3, 1e-3, 1e-2, 1], np.float32)[:, None]
    values = np.array([3, -3, 6e4, -1e-40, 1, -1, -300, 6e4], np.float32)
    x[np.arange(ROWS), rng.integers(0, n, ROWS)] = values
    return x


def sparse(rng: Generator, n: int) -> Floats:
    return normal(rng, n) * (rng.random((ROWS, n)) < np.linspace(0.01, 0.3, ROWS)[:, None])


def mixed(rng: Generator, n: int) -> Floats:
    """Every group of 16 has a magnitude of its own."""
    magnitudes = 10.0 ** rng.integers(-12, 4, (ROWS, n // 16 + 1))
    return (normal(rng, n) * np.repeat(magnitudes, 16, axis=1)[:, :n]).astype(np.float32)


def f16_exact(rng: Generator, n: int) -> Floats:
    return (normal(rng, n) * 0.05).astype(np.float16).astype(np.float32)


def spread(low: int, high: int) -> Callable[[Generator, int], Floats]:
    """Magnitudes from 10^low to 10^high in every block."""

    def rows(rng: Generator, n: int) -> Floats:
        return (signs(rng, n) * 10.0 ** rng.uniform(low, high, (ROWS, n))).astype(np.float32)

    return rows


def largest(rng: Generator, n: int) -> Floats:
    """The largest float32, with both signs or one."""
    return signs(rng, n) * np.where(np.arange(ROWS)[:, None] % 2, LARGEST, LARGEST / 7)


def largest_positive(rng: Generator, n: int) -> Floats:
    return np.abs(largest(rng, n))


def any_bits(rng: Generator, n: int) -> Floats:
    """Every finite bit pattern is as probable."""
    x = rng.integers(0, 2**32, (ROWS, n), np.uint32).view(np.float32)
    return np.where(np.isfinite(x), x, np.float32(0))


INPUTS: dict[str, Callable[[Generator, int], Floats]] = {
    "normal": normal,
    "student": student,
    "constant": constant,
    "zero": zero,
    "denormal": powers(-149, -126),
    # inverse scales overflow below about 2^-128, and scales are subnormal in f16 below 2^-14
    "almost_denormal": powers(-126, -112),
    "tiny": powers(-110, -12),
    "small": powers(-30, -10),
    "ties_symmetric": ties_symmetric,
    "ties_affine": ties_affine,
    "ties_table": ties_table,
    "signs": signs,
    "positive": positive,
    "negative": negative,
    "spike": spike,
    "sparse": sparse,
    "mixed": mixed,
    "f16_exact": f16_exact,
    "spread": spread(-45, 4),
}
"""Weights that every type can hold."""

HUGE: dict[str, Callable[[Generator, int], Floats]] = {
    "large": powers(10, 40),
    "huge": powers(60, 125),
    "largest": largest,
    "largest_positive": largest_positive,
    "spread_huge": spread(-45, 38),
    "any_bits": any_bits,
}
"""Finite weights, most of which need scales beyond f16."""

IMPORTANCE: dict[str, Callable[[Generator, int], Floats | None]] = {
    "none": lambda rng, n: None,
    "random": lambda rng, n: rng.random(n, np.float32),
    "sparse": lambda rng, n: rng.random(n, np.float32) * (rng.random(n) < 0.2),
    "zero": lambda rng, n: np.zeros(n, np.float32),
    "heavy": lambda rng, n: np.exp(rng.standard_normal(n) * 12).clip(0, 1e30).astype(np.float32),
}
