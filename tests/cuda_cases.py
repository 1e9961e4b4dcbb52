"""What the kernels are tried on, emulated and on a GPU alike, and what is asked of their results."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

import q4hifi
from q4hifi import QuantizedTensor
from q4hifi.codec import rows
from q4hifi.formats.layout import FORK, Format
from q4hifi.formats.types import Q4_HIFI

Floats = npt.NDArray[np.float32]

OUTLIERS = (0, 8, 10, 12, 16, 32)
KINDS = (
    *("Q4_K", "Q5_K", "Q6_K", "Q8_0"),
    *(f"Q4_HIFI {n}" for n in OUTLIERS),
    *(f"Q4_HIFI {n} fork" for n in (8, 32)),
)
DOT_KINDS = tuple(kind for kind in KINDS if kind != "Q8_0")

SHAPES = ((1, 256), (7, 1280), (3, 4352), (130, 512))
"""Odd numbers of rows; one block and one and a bit of what a warp reads at once; four warps per row."""


def quantized(kind: str, shape: tuple[int, ...], seed: int = 1) -> QuantizedTensor:
    """A tensor of weights with heavy tails; ``kind`` is a type, or Q4_HIFI with outliers and layout."""
    name, *outliers = kind.removesuffix(" fork").split()
    weights = (np.random.default_rng(seed).standard_t(3, shape) * 0.02).astype(np.float32)
    tensor = q4hifi.quantize(weights, name, outliers=int(outliers[0]) if outliers else 0)
    if not kind.endswith("fork"):
        return tensor
    parts = rows.relayout(tensor.parts, tensor.format, FORK, shape[-1])
    return QuantizedTensor.from_parts(parts, Format(Q4_HIFI, tensor.outliers, FORK), shape)


def activations(shape: tuple[int, ...], dtype: npt.DTypeLike = np.float32, seed: int = 2) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def q8_1(x: npt.NDArray[np.floating]) -> tuple[npt.NDArray[np.int8], Floats]:
    """The numbers of activations [..., n], and their factors d, d Σ q [..., n / 32, 2]."""
    blocks = x.astype(np.float32).reshape(*x.shape[:-1], -1, 32)
    magnitude = np.abs(blocks).max(axis=-1, keepdims=True)
    inverse = np.divide(np.float32(127), magnitude, out=np.zeros_like(magnitude), where=magnitude > 0)
    numbers = np.rint(blocks * inverse)
    d = magnitude / np.float32(127)
    factors = np.concatenate([d, d * numbers.sum(axis=-1, keepdims=True)], axis=-1)
    return numbers.astype(np.int8).reshape(x.shape), factors


def rounded(x: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Activations as their Q8_1 blocks stand for them."""
    numbers, factors = q8_1(x)
    blocks = numbers.astype(np.float64).reshape(*factors.shape[:-1], 32) * factors[..., :1]
    return blocks.reshape(x.shape)


def assert_product(
    got: Floats, x: npt.NDArray[np.floating], weights: npt.NDArray[np.floating], within: float
) -> None:
    """Compare with x · weightsᵀ; errors are relative to the lengths of the two vectors."""
    w = weights.astype(np.float64)
    expected = x.astype(np.float64) @ w.T
    lengths = np.linalg.norm(x.astype(np.float64), axis=-1)[..., None] * np.linalg.norm(w, axis=-1)
    assert got.shape == expected.shape and got.dtype == np.float32
    worst = np.max(np.abs(got - expected) / lengths)
    assert worst <= within, f"an error of {worst:.2e}"
