"""CuPy, from which memory, streams and the compiler come: the only module that imports it."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

from ..errors import BadOptionError, UnavailableError
from . import kernels
from .kernels import Launch

Array = Any
"""A CuPy array. CuPy is optional, so its types cannot be named."""

MIN_CAPABILITY = 75
"""The first with the tensor cores' instruction; dp4a is older."""

CUDA_DEVICES = (2, 13)
"""DLPack's device types for a GPU's memory and for managed memory."""


@cache
def cupy() -> Any:
    """Return the module. Raises :class:`UnavailableError` where it or a GPU is missing, and says what."""
    try:
        import cupy
    except ImportError as cause:
        raise UnavailableError(
            "q4hifi.cuda needs CuPy: pip install cupy-cuda12x, or cupy-cuda13x, by the CUDA version that"
            f" nvidia-smi prints ({cause})"
        ) from cause
    try:
        devices = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as cause:
        raise UnavailableError(f"q4hifi.cuda needs an NVIDIA GPU and its driver: {cause}") from cause
    if devices == 0:
        raise UnavailableError("q4hifi.cuda needs an NVIDIA GPU; the driver lists none")
    return cupy


def check_capability() -> None:
    """Raise :class:`UnavailableError` where the current GPU is older than the kernels' instructions."""
    found = int(cupy().cuda.Device().compute_capability)
    if found < MIN_CAPABILITY:
        raise UnavailableError(
            f"q4hifi.cuda needs a GPU of compute capability {MIN_CAPABILITY / 10} or later, Turing or newer;"
            f" the current one has {found / 10}"
        )


def launch(plan: Launch, *arguments: object) -> None:
    """Put a kernel onto CuPy's current stream. Numbers are numpy scalars of the kernel's types."""
    if plan.grid:
        _function(plan.kernel)((plan.grid,), plan.block, arguments)


@cache
def _function(kernel: str) -> Any:
    """The kernel, compiled for the current device when it is first launched; CuPy keeps it on disk."""
    module = cupy().RawModule(code=kernels.source(), options=("-std=c++17",), name_expressions=(kernel,))
    return module.get_function(kernel)


def borrow(x: Any, device: int) -> Array:
    """View an array on GPU ``device`` as CuPy's, without a copy; the current stream waits for it.

    Raises :class:`BadOptionError` where it is no array or lies elsewhere.
    """
    xp = cupy()
    if isinstance(x, xp.ndarray):
        view = x
    elif hasattr(x, "__dlpack__") and hasattr(x, "__dlpack_device__"):
        kind, _ = x.__dlpack_device__()
        if kind not in CUDA_DEVICES:
            raise BadOptionError(
                "activations lie in the CPU's memory; bring them to the GPU: cupy.asarray(x), x.cuda()"
            )
        try:
            view = xp.from_dlpack(x)
        except (BufferError, RuntimeError, TypeError, ValueError) as cause:
            raise BadOptionError(f"activations cannot be shared: {cause}") from cause
    elif hasattr(x, "__cuda_array_interface__"):
        view = xp.asarray(x)
    else:
        raise BadOptionError(
            f"activations of type {type(x).__name__}; pass an array on the GPU that has DLPack or"
            " __cuda_array_interface__"
        )
    if view.device.id != device:
        raise BadOptionError(f"activations lie on GPU {view.device.id}, the weights on GPU {device}")
    return view


def hand_back(out: Array, like: Any) -> Any:
    """Return a CuPy array as an array of the library that ``like`` is from, if that can take it.

    The library's current stream waits for the current one, so what it does next with ``like`` or with the
    result comes after the kernels.
    """
    if isinstance(like, cupy().ndarray):
        return out
    library = sys.modules.get(type(like).__module__.partition(".")[0])
    from_dlpack = getattr(library, "from_dlpack", None)
    return out if from_dlpack is None else from_dlpack(out)
