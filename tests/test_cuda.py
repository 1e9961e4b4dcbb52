"""q4hifi.cuda without a GPU: kernels run on the host, behind an emulation of CUDA and a stand-in for CuPy.

Every launch is made twice, the second time with all threads and blocks in the opposite order, and must give
the same bytes. The same cases run on a GPU in test_cuda_gpu.py.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import q4hifi
from cuda_cases import (
    DOT_KINDS,
    KINDS,
    SHAPES,
    activations,
    assert_product,
    q8_1,
    quantized,
    rounded,
)
from cuda_emulation import host, nvrtc, stand_in_cupy
from q4hifi import BadOptionError, Format, UnavailableError
from q4hifi.cuda import device, kernels, tensor
from q4hifi.formats.layout import FORK
from q4hifi.formats.types import Q4_HIFI, TYPES

emulated = pytest.mark.skipif(host.COMPILER is None, reason="no g++ to compile the kernels for the host with")
compiled = pytest.mark.skipif(nvrtc.library() is None, reason=f"none of {nvrtc.PACKAGES} is installed")


def test_the_kernels_are_checked_in_one_way_at_least() -> None:
    assert host.COMPILER or nvrtc.library(), "install g++, or pip install nvidia-cuda-nvrtc-cu12"


@pytest.fixture
def xp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """CuPy's stand-in."""
    monkeypatch.setitem(sys.modules, "cupy", stand_in_cupy)
    forget_cupy()
    yield stand_in_cupy
    forget_cupy()


def forget_cupy() -> None:
    device.cupy.cache_clear()
    device._function.cache_clear()


def both_ways(function: Any) -> Any:
    """What ``function`` returns, the same with threads in either order."""
    results = []
    for host.backwards in (True, False):
        results.append(np.asarray(function()))
    assert results[0].tobytes() == results[1].tobytes(), "the result depends on the order of threads"
    return results[0]


# --- kernels ---------------------------------------------------------------------------------------------


@emulated
@pytest.mark.parametrize("kind", KINDS)
def test_dequantized_weights_are_those_of_the_codec(xp: Any, kind: str) -> None:
    for shape in (*SHAPES, (3, 5, 256), (0, 256)):
        weights = quantized(kind, shape)
        uploaded = q4hifi.cuda.upload(weights)
        assert uploaded.nbytes == weights.nbytes and uploaded.shape == shape
        expected = weights.dequantize()
        for dtype in (np.float32, np.float16):
            got = both_ways(lambda: uploaded.dequantize(dtype))  # noqa: B023
            assert got.dtype == dtype and np.array_equal(got, expected.astype(dtype))


@emulated
@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K", "Q8_0"])
def test_any_bytes_are_dequantized_as_by_the_codec(xp: Any, kind: str) -> None:
    """Among random bytes are scales that are infinite, NaN or subnormal."""
    shape = (400, 256)
    data = np.random.default_rng(3).integers(0, 256, (400, TYPES[kind].row_bytes(256)), np.uint8)
    weights = q4hifi.QuantizedTensor(data, TYPES[kind], shape)
    got = np.asarray(q4hifi.cuda.upload(weights).dequantize(np.float32))
    assert np.array_equal(got, weights.dequantize(), equal_nan=True)


@emulated
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_activations_become_q8_1(xp: Any, dtype: npt.DTypeLike) -> None:
    x = activations((5, 288), dtype)
    x[1, :32] = 0
    x[2] = np.round(x[2] * 4) * 0.5  # ties
    x[3, 0] = np.finfo(dtype).max / 32
    numbers, factors = xp.empty(x.shape, np.int8), xp.empty((5, 9, 2), np.float32)
    launch = kernels.quantize_q8_1(x.size, x.dtype.name)
    both_ways(lambda: device.launch(launch, xp.asarray(x), np.uint64(x.size // 32), numbers, factors))
    for got, expected in zip((numbers, factors), q8_1(x), strict=True):
        assert np.array_equal(got, expected)


@emulated
@pytest.mark.parametrize("columns", kernels.COLUMNS)
@pytest.mark.parametrize("kind", DOT_KINDS)
def test_products_by_few_columns(xp: Any, kind: str, columns: int) -> None:
    """Every kernel on one block; the two larger shapes take turns, so that a kind meets each four times."""
    larger = SHAPES[1 + (DOT_KINDS.index(kind) + columns) % 2]
    for shape in (SHAPES[0], larger):
        weights = quantized(kind, shape)
        uploaded = q4hifi.cuda.upload(weights)
        x = activations((columns, shape[1]), np.float16 if columns % 2 else np.float32)
        got = both_ways(lambda: uploaded.matvec(xp.asarray(x)))  # noqa: B023
        assert_product(got, rounded(x), weights.dequantize(), 1e-6)
        assert_product(got, x, weights.dequantize(), 5e-3)


@emulated
@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K"])
def test_products_of_whole_numbers_are_exact(xp: Any, kind: str) -> None:
    """Scales of 1 and activations that eight bits hold: every sum is an integer below 2²⁴."""
    rng = np.random.default_rng(4)
    data = rng.integers(0, 256, (9, TYPES[kind].row_bytes(512)), np.uint8)
    blocks = data.reshape(-1, TYPES[kind].block_bytes)
    one = np.array([1], np.float16).view(np.uint8)
    for place in (208,) if kind == "Q6_K" else (0, 2):
        blocks[:, place : place + 2] = one
    weights = q4hifi.QuantizedTensor(data, TYPES[kind], (9, 512))
    x = rng.integers(-2, 3, (3, 512)).astype(np.float32)
    x.reshape(-1, 32)[:, 0] = 127  # so that d is 1
    got = both_ways(lambda: q4hifi.cuda.upload(weights).matvec(xp.asarray(x)))
    assert np.array_equal(got, x.astype(np.float64) @ weights.dequantize().astype(np.float64).T)


@emulated
@pytest.mark.parametrize("columns", [9, 131])
@pytest.mark.parametrize("kind", KINDS)
def test_products_by_many_columns(xp: Any, kind: str, columns: int) -> None:
    shape = (133, 512) if columns == 9 else (3, 256)
    weights = quantized(kind, shape)
    x = activations((columns, shape[1]), np.float16)
    got = both_ways(lambda: q4hifi.cuda.upload(weights).matmul(xp.asarray(x)))
    halves = weights.dequantize().astype(np.float16)
    assert_product(got, x, halves, 1e-4 if "Q4_HIFI" in kind else 1e-6)


@emulated
def test_a_row_that_ends_within_a_tile(xp: Any) -> None:
    weights, x = quantized("Q8_0", (5, 96)), activations((2, 96), np.float16)
    got = both_ways(lambda: q4hifi.cuda.upload(weights).matmul(xp.asarray(x)))
    assert_product(got, x, weights.dequantize().astype(np.float16), 1e-6)


@emulated
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_shows(xp: Any, value: float) -> None:
    uploaded = q4hifi.cuda.upload(quantized("Q4_HIFI 8", (4, 512)))
    x = activations((2, 512))
    x[1, 300] = value
    got = uploaded.matvec(xp.asarray(x))
    assert np.isfinite(got[0]).all() and not np.isfinite(got[1]).any()


@compiled
@pytest.mark.parametrize("arch", ["sm_75", "sm_80"])
def test_every_kernel_becomes_machine_code(arch: str) -> None:
    """Without a warning, and with the registers and the shared memory that it asks for.

    The source has one form for GPUs before 8.0, and one for all others.
    """
    code, names = nvrtc.compile(kernels.source(), arch, kernels.every_kernel())
    assert all(name.encode() in code for name in names.values())
    assert len(set(names.values())) == len(names)


# --- from Python -----------------------------------------------------------------------------------------


@emulated
def test_activations_of_any_shape(xp: Any) -> None:
    weights = quantized("Q4_HIFI 8", (6, 512))
    uploaded = q4hifi.cuda.upload(weights)
    for shape in ((512,), (2, 3, 512), (3, 4, 512), (0, 512), (2, 0, 512)):
        x = activations(shape)
        got = uploaded.matmul(xp.asarray(x))
        assert got.shape == (*shape[:-1], 6)
        if got.size:
            assert_product(np.asarray(got), x, weights.dequantize(), 5e-3)
    assert uploaded.matvec(xp.asarray(activations((512,)))).shape == (6,)


@emulated
@pytest.mark.parametrize("columns", [2, 9])
def test_views_that_are_not_aligned(xp: Any, columns: int) -> None:
    uploaded = q4hifi.cuda.upload(quantized("Q4_K", (6, 512)))
    flat = xp.asarray(activations((columns * 512 + 1,), np.float16))
    view = flat[1:].reshape(columns, 512)
    assert view.data.ptr % 4 == 2
    assert np.array_equal(uploaded.matmul(view), uploaded.matmul(xp.asarray(np.asarray(view))))


class Foreign:
    """An array of another library: DLPack alone, or the array interface alone."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __repr__(self) -> str:
        return "Foreign"


class WithDlpack(Foreign):
    where = (2, 0)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.where

    def __dlpack__(self) -> np.ndarray:
        return self.array


class OnTheCpu(WithDlpack):
    where = (1, 0)


class Unshareable(WithDlpack):
    def __dlpack__(self) -> np.ndarray:
        raise BufferError("it requires grad")


class WithInterface(Foreign):
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self.array.__array_interface__


@emulated
def test_other_libraries_arrays_come_and_go_without_a_copy(xp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded = q4hifi.cuda.upload(quantized("Q4_K", (6, 512)))
    x = activations((2, 512))
    expected = uploaded.matvec(xp.asarray(x))
    for foreign in (WithDlpack(x), WithInterface(x)):
        assert device.borrow(foreign, 0).ctypes.data == x.ctypes.data
        got = uploaded.matvec(foreign)
        assert type(got) is xp.ndarray and np.array_equal(got, expected)
    library = SimpleNamespace(from_dlpack=WithDlpack)
    monkeypatch.setitem(sys.modules, WithDlpack.__module__.partition(".")[0], library)
    got = uploaded.matvec(WithDlpack(x))
    assert type(got) is WithDlpack and np.array_equal(got.array, expected)


@emulated
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (activations((1, 512)), "in CPU memory"),
        (OnTheCpu(activations((1, 512))), "in CPU memory"),
        (Unshareable(activations((1, 512))), "cannot be shared: it requires grad"),
        ([1.0], "have the type list"),
        (WithDlpack(activations((1, 512), np.float64)), "float64 cannot be multiplied"),
        (WithDlpack(activations((1, 256))), "do not fit rows of 512"),
        (WithDlpack(np.zeros((), np.float32)), "do not fit rows of 512"),
        (WithDlpack(activations((512, 2)).T), "not contiguous"),
        (WithDlpack(activations((9, 512))), "1 to 8 columns"),
        (WithDlpack(activations((1, 1, 512))), "1 to 8 columns"),
    ],
)
def test_activations_that_do_not_fit_are_refused(xp: Any, x: Any, message: str) -> None:
    uploaded = q4hifi.cuda.upload(quantized("Q4_K", (6, 512)))
    with pytest.raises(BadOptionError, match=message):
        uploaded.matvec(x)


@emulated
def test_what_else_is_refused(xp: Any) -> None:
    with pytest.raises(BadOptionError, match=r"Q4_0 is not supported on CUDA; .* Q4_K, Q5_K"):
        q4hifi.cuda.upload(quantized("Q4_0", (6, 512)))
    uploaded = q4hifi.cuda.upload(quantized("Q8_0", (6, 512)))
    x = xp.asarray(activations((1, 512)))
    with pytest.raises(BadOptionError, match="use matmul"):
        uploaded.matvec(x)
    with pytest.raises(BadOptionError, match="decoded to int8"):
        uploaded.dequantize(np.int8)
    stack = q4hifi.cuda.upload(quantized("Q4_K", (2, 6, 512)))
    with pytest.raises(BadOptionError, match="is not a matrix"):
        stack.matmul(x)
    elsewhere = tensor.CudaTensor((6, 512), uploaded.format, 1, uploaded.data)
    with pytest.raises(BadOptionError, match="on GPU 0, the weights on GPU 1"):
        elsewhere.matmul(x)


def test_a_gpu_that_is_too_old_is_refused(xp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xp.cuda.Device, "compute_capability", "70")
    with pytest.raises(UnavailableError, match=r"7\.5 or later, .* has 7\.0"):
        q4hifi.cuda.upload(quantized("Q4_K", (6, 512)))


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = quantized("Q4_K", (6, 512))
    forget_cupy()
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(UnavailableError, match="pip install cupy-cuda12x"):
        q4hifi.cuda.upload(weights)

    def fail() -> int:
        raise RuntimeError("no CUDA-capable device is detected")

    def driver(count: Any) -> Any:
        runtime = SimpleNamespace(getDeviceCount=count, CUDARuntimeError=RuntimeError)
        return SimpleNamespace(cuda=SimpleNamespace(runtime=runtime))

    monkeypatch.setitem(sys.modules, "cupy", driver(fail))
    with pytest.raises(UnavailableError, match="NVIDIA GPU and its driver: no CUDA-capable device"):
        q4hifi.cuda.upload(weights)
    monkeypatch.setitem(sys.modules, "cupy", driver(lambda: 0))
    with pytest.raises(UnavailableError, match="lists none"):
        q4hifi.cuda.upload(weights)


# --- launches --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 7, 1024, 12288, 151936])
@pytest.mark.parametrize("row_length", [256, 1024, 3072, 28672])
def test_every_row_has_a_warp_and_no_warp_is_idle(rows: int, row_length: int) -> None:
    launch = kernels.matvec(Format(TYPES["Q4_K"]), rows, row_length, 1)
    lanes, sharing, groups = launch.block
    assert lanes == 32 and sharing * groups == kernels.constant("MATVEC_WARPS")
    a_block = groups * kernels.constant("MATVEC_ROWS")
    assert (launch.grid - 1) * a_block < rows <= launch.grid * a_block
    assert sharing == 1 or sharing * 1024 <= row_length, "a warp reads 1024 weights at once"


@pytest.mark.parametrize(
    ("rows", "row_length", "sharing"),
    [(64, 4096, 4), (16384, 4096, 2), (32768, 4096, 1), (32768, 6144, 2), (32768, 12288, 4), (64, 3072, 2)],
)
def test_warps_share_rows_where_these_are_few_or_long(rows: int, row_length: int, sharing: int) -> None:
    assert kernels.matvec(Format(TYPES["Q4_K"]), rows, row_length, 1).block[1] == sharing


def test_every_launch_names_a_kernel() -> None:
    forms = [Format(TYPES[name]) for name in kernels.TYPES if name != "Q4_HIFI"]
    forms += [Format(Q4_HIFI, n) for n in range(33)] + [Format(Q4_HIFI, 8, FORK)]
    launches = [kernels.dequantize(form, 256, dtype) for form in forms for dtype in kernels.FLOATS]
    launches += [kernels.quantize_q8_1(256, dtype) for dtype in kernels.FLOATS]
    dots = [form for form in forms if form.type.name in kernels.DOT]
    launches += [kernels.matvec(form, 1, 256, columns) for form in dots for columns in kernels.COLUMNS]
    launches += [kernels.matmul(form, 1, 9) for form in forms]
    assert {launch.kernel for launch in launches} == set(kernels.every_kernel())


def test_the_two_tables_of_constants_are_one() -> None:
    constants = [kernels.constant(name) for name in ("K", "Q8", "SHARES")]
    assert constants == [kernels.BLOCK, kernels.Q8, kernels.SHARES]


def test_the_source_is_one_piece() -> None:
    source = kernels.source()
    assert "#include" not in source and "#pragma once" not in source
    names = sorted(path.name for path in kernels.FOLDER.iterdir() if path.suffix in {".cu", ".cuh"})
    assert all(source.count(f'#line 1 "{name}"') == 1 for name in names)
