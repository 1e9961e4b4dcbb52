"""`QuantizedTensor.matmul` against the decoded weights; the kernels' own tests are in Rust."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest

import q4hifi
from q4hifi import BadOptionError, QuantizedTensor
from q4hifi.codec import rows
from q4hifi.formats.layout import FORK
from q4hifi.formats.types import CODEC_TYPES, Q4_HIFI

Floats = npt.NDArray[np.float32]
N_IN, N_OUT = 512, 70


def matrix(seed: int, shape: tuple[int, ...] = (N_OUT, N_IN)) -> Floats:
    rng = np.random.default_rng(seed)
    return (rng.standard_t(5, shape) * 0.02).astype(np.float32)


def assert_near(product: Floats, x: Floats, w: Floats) -> None:
    """As near as eight bits of the activations allow: ten sigma of their rounding."""
    expected = x.astype(np.float64) @ w.astype(np.float64).T
    step = np.abs(x).max(axis=-1, keepdims=True) / 127
    sigma = step / np.sqrt(12) * np.linalg.norm(w, axis=-1)
    assert np.all(np.abs(product - expected) <= 10 * sigma + 1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("columns", [1, 3, 8, 40])
@pytest.mark.parametrize("kind", [*CODEC_TYPES, "Q4_HIFI"])
def test_a_product_is_that_of_the_decoded_weights(kind: str, columns: int) -> None:
    tensor = q4hifi.quantize(matrix(1), kind, outliers=8 if kind == "Q4_HIFI" else 0)
    x = np.random.default_rng(2).standard_normal((columns, N_IN)).astype(np.float32)
    product = tensor.matmul(x)
    assert product.shape == (columns, N_OUT) and product.dtype == np.float32
    assert_near(product, x, tensor.dequantize())


@pytest.mark.parametrize("columns", [1, 16])
@pytest.mark.parametrize("outliers", [0, 3, 8, 32])
def test_outliers_count_in_both_layouts(outliers: int, columns: int) -> None:
    split = q4hifi.quantize(matrix(3), "Q4_HIFI", outliers=outliers)
    fork = QuantizedTensor.from_parts(
        rows.relayout(split.parts, split.format, FORK, N_IN),
        q4hifi.Format(Q4_HIFI, layout=FORK),
        split.shape,
    )
    x = np.random.default_rng(4).standard_normal((columns, N_IN)).astype(np.float32)
    assert_near(split.matmul(x), x, split.dequantize())
    assert_near(fork.matmul(x), x, fork.dequantize())


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_activations_of_any_shape_and_float_type(dtype: type[np.floating]) -> None:
    tensor = q4hifi.quantize(matrix(5), "Q4_K")
    x = np.random.default_rng(6).standard_normal((2, 3, N_IN)).astype(dtype)
    product = tensor.matmul(x)
    assert product.shape == (2, 3, N_OUT)
    assert np.array_equal(product.reshape(6, -1), tensor.matmul(x.reshape(6, -1)))
    assert tensor.matmul(x[0, 0]).shape == (N_OUT,)
    assert np.array_equal(tensor.matmul(x[0, ::2]), tensor.matmul(x[0, ::2].copy()))
    assert tensor.matmul(x[:0]).shape == (0, 3, N_OUT)


@pytest.mark.usefixtures("many_cores")
@pytest.mark.parametrize("columns", [1, 24])
def test_threads_do_not_matter(columns: int) -> None:
    tensor = q4hifi.quantize(matrix(7, (300, N_IN)), "Q5_K")
    x = np.random.default_rng(8).standard_normal((columns, N_IN)).astype(np.float32)
    assert np.array_equal(tensor.matmul(x, threads=1), tensor.matmul(x, threads=3))


@pytest.mark.parametrize(
    ("shape", "x", "message"),
    [
        ((2, 4, 256), np.zeros((1, 256), np.float32), "is no matrix"),
        ((256,), np.zeros((1, 256), np.float32), "is no matrix"),
        ((4, 256), np.zeros((1, 255), np.float32), "do not fit rows of 256"),
        ((4, 256), np.float32(1), "do not fit rows of 256"),
        ((4, 256), np.zeros((1, 256), np.int32), "int32 cannot be multiplied"),
    ],
)
def test_what_does_not_fit_is_refused(
    shape: tuple[int, ...], x: npt.NDArray[np.float32], message: str
) -> None:
    tensor = q4hifi.quantize(matrix(9, shape), "Q4_K")
    with pytest.raises(BadOptionError, match=message):
        tensor.matmul(x)


@pytest.mark.parametrize("isa", q4hifi.cpu_features().available)
def test_every_instruction_set(isa: str) -> None:
    """Those that are not in use need a process of their own."""
    script = """if True:
        import numpy as np, q4hifi
        w = (np.random.default_rng(1).standard_t(5, (70, 512)) * 0.02).astype(np.float32)
        for outliers in (0, 8):
            tensor = q4hifi.quantize(w, "Q4_HIFI", outliers=outliers)
            for columns in (1, 9):
                x = np.random.default_rng(2).standard_normal((columns, 512)).astype(np.float32)
                expected = x @ tensor.dequantize().T
                assert np.abs(tensor.matmul(x) - expected).max() < 0.02 * np.abs(expected).max()
        print(q4hifi.cpu_features().active)
    """

    run = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "Q4HIFI_ISA": isa},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == isa
