"""q4hifi.cuda on a GPU: `pytest -m gpu`. The cases that test_cuda.py runs emulated, and larger ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import q4hifi
import q4hifi.cuda
from cuda_cases import DOT_KINDS, KINDS, SHAPES, activations, assert_product, quantized, rounded
from q4hifi import BadOptionError, UnavailableError
from q4hifi.cuda import device, kernels

try:
    cupy: Any = device.cupy()
except UnavailableError as cause:
    pytest.skip(str(cause), allow_module_level=True)

pytestmark = pytest.mark.gpu

LARGE = ((1024, 3072), (4099, 4096), (513, 28672))


@pytest.fixture(autouse=True)
def memory_of_its_own() -> Iterator[None]:
    """No pool: each array is an allocation of the driver's, whose end compute-sanitizer knows."""
    with cupy.cuda.using_allocator(None):
        yield


def on_gpu(x: npt.NDArray[Any]) -> Any:
    return cupy.asarray(x)


@pytest.mark.parametrize("kind", KINDS)
def test_dequantized_weights_are_those_of_the_codec(kind: str) -> None:
    for shape in (*SHAPES, *LARGE, (3, 5, 256), (0, 256)):
        weights = quantized(kind, shape)
        uploaded = q4hifi.cuda.upload(weights)
        expected = weights.dequantize()
        for dtype in (np.float32, np.float16):
            got = uploaded.dequantize(dtype).get()
            assert got.dtype == dtype and np.array_equal(got, expected.astype(dtype)), shape


@pytest.mark.parametrize("kind", DOT_KINDS)
def test_products_by_few_columns(kind: str) -> None:
    for shape in (*SHAPES, *LARGE):
        weights = quantized(kind, shape)
        uploaded, decoded = q4hifi.cuda.upload(weights), weights.dequantize()
        for columns in kernels.COLUMNS:
            x = activations((columns, shape[1]), np.float16 if columns % 2 else np.float32)
            assert_product(uploaded.matvec(on_gpu(x)).get(), rounded(x), decoded, 1e-5)


@pytest.mark.parametrize("columns", [9, 128, 131, 512])
@pytest.mark.parametrize("kind", KINDS)
def test_products_by_many_columns(kind: str, columns: int) -> None:
    for shape in (*SHAPES, LARGE[0]):
        weights = quantized(kind, shape)
        x = activations((columns, shape[1]), np.float16)
        got = q4hifi.cuda.upload(weights).matmul(on_gpu(x)).get()
        assert_product(got, x, weights.dequantize(), 1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("columns", [2, 9])
def test_views_that_are_not_aligned(columns: int, dtype: npt.DTypeLike) -> None:
    uploaded = q4hifi.cuda.upload(quantized("Q4_HIFI 8", (70, 512)))
    view = on_gpu(activations((columns * 512 + 1,), dtype))[1:].reshape(columns, 512)
    assert view.data.ptr % 16 != 0
    assert cupy.array_equal(uploaded.matmul(view), uploaded.matmul(view.copy()))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_shows(value: float) -> None:
    uploaded = q4hifi.cuda.upload(quantized("Q4_HIFI 8", (4, 512)))
    x = activations((2, 512))
    x[1, 300] = value
    got = uploaded.matvec(on_gpu(x)).get()
    assert np.isfinite(got[0]).all() and not np.isfinite(got[1]).any()


def test_work_goes_onto_the_current_stream() -> None:
    """The activations arrive on the stream behind a long copy: a kernel elsewhere would read zeros."""
    weights = quantized("Q4_K", (64, 4096))
    uploaded, x = q4hifi.cuda.upload(weights), on_gpu(activations((1, 4096)))
    expected = uploaded.matvec(x)
    large = cupy.zeros(1 << 28, np.uint8)
    late = cupy.zeros_like(x)
    cupy.cuda.Device().synchronize()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        for _ in range(20):
            large[: 1 << 27] = large[1 << 27 :]
        late[...] = x
        got = uploaded.matvec(late)
        stream.synchronize()
    assert cupy.array_equal(got, expected)


def test_activations_on_another_gpu_are_refused() -> None:
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("there is one GPU")
    uploaded = q4hifi.cuda.upload(quantized("Q4_K", (4, 256)))
    with cupy.cuda.Device(1):
        x = on_gpu(activations((1, 256)))
    with pytest.raises(BadOptionError, match="on GPU 1, the weights on GPU 0"):
        uploaded.matvec(x)


def test_torch_gives_and_takes() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    weights = quantized("Q4_HIFI 8", (64, 512))
    uploaded = q4hifi.cuda.upload(weights)
    for columns in (1, 40):
        x = torch.randn(columns, 512, device="cuda", dtype=torch.float16)
        got = uploaded.matmul(x)
        assert isinstance(got, torch.Tensor) and got.is_cuda
        assert_product(got.cpu().numpy(), x.cpu().numpy(), weights.dequantize(), 5e-3)
    with torch.cuda.stream(torch.cuda.Stream()):
        x = torch.randn(4, 512, device="cuda")
        got = (uploaded.matmul(x * 2) / 2).cpu().numpy()
        assert_product(got, x.cpu().numpy(), weights.dequantize(), 5e-3)
    with pytest.raises(BadOptionError, match="CPU's memory"):
        uploaded.matmul(torch.zeros(1, 512))
    with pytest.raises(BadOptionError):
        uploaded.matmul(torch.zeros(1, 512, device="cuda", dtype=torch.bfloat16))


def test_the_array_interface_alone_will_do() -> None:
    class Interface:
        def __init__(self, array: Any) -> None:
            self.array = array

        @property
        def __cuda_array_interface__(self) -> Any:
            return self.array.__cuda_array_interface__

    uploaded = q4hifi.cuda.upload(quantized("Q4_K", (64, 512)))
    x = on_gpu(activations((2, 512)))
    assert cupy.array_equal(uploaded.matvec(Interface(x)), uploaded.matvec(x))
