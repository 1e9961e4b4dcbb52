"""Memory, streams and kernel launches through CuPy. Only this module imports CuPy."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

from ..errors import BadOptionError, UnavailableError
from . import kernels
from .kernels import Launch

Array = Any
"""A CuPy array. CuPy is optional, so type checkers do not know its types."""

MIN_CAPABILITY = 75
"""Compute capability times 10. Turing (7.5) is the first with the tensor core instruction that is used."""

CUDA_DEVICES = (2, 13)
"""DLPack's device types for GPU memory and for managed memory."""


@cache
def cupy() -> Any:
    """Import and return CuPy. Raises :class:`UnavailableError` if CuPy, a driver or a GPU is missing."""
    try:
        import cupy
    except ImportError as cause:
        raise UnavailableError(
            "q4hifi.cuda needs CuPy: pip install cupy-cuda12x or cupy-cuda13x, to match the CUDA version that"
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
    """Raise :class:`UnavailableError` if the current GPU is too old for the kernels."""
    found = int(cupy().cuda.Device().compute_capability)
    if found < MIN_CAPABILITY:
        raise UnavailableError(
            f"q4hifi.cuda needs a GPU of compute capability {MIN_CAPABILITY / 10} or later, Turing or newer;"
            f" the current one has {found / 10}"
        )


def launch(plan: Launch, *arguments: object) -> None:
    """Launch a kernel on CuPy's current stream. Scalar arguments are numpy scalars of the kernel's types."""
    if plan.grid:
        _function(plan.kernel)((plan.grid,), plan.block, arguments)


@cache
def _function(kernel: str) -> Any:
    """Return a kernel. CuPy compiles it for the current GPU at its first launch, and caches it on disk."""
    module = cupy().RawModule(code=kernels.source(), options=("-std=c++17",), name_expressions=(kernel,))
    return module.get_function(kernel)


def borrow(x: Any, device: int) -> Array:
    """Return an array on GPU ``device`` as a CuPy array, without a copy. The current stream waits for it.

    ``x`` is of any library with DLPack or ``__cuda_array_interface__``. Raises :class:`BadOptionError` if
    it is not an array or is on another device.
    """
    xp = cupy()
    if isinstance(x, xp.ndarray):
        view = x
    elif hasattr(x, "__dlpack__") and hasattr(x, "__dlpack_device__"):
        kind, _ = x.__dlpack_device__()
        if kind not in CUDA_DEVICES:
            raise BadOptionError(
                "the activations are in CPU memory; copy them to the GPU: cupy.asarray(x), x.cuda()"
            )
        try:
            view = xp.from_dlpack(x)
        except (BufferError, RuntimeError, TypeError, ValueError) as cause:
            raise BadOptionError(f"the activations cannot be shared: {cause}") from cause
    elif hasattr(x, "__cuda_array_interface__"):
        view = xp.asarray(x)
    else:
        raise BadOptionError(
            f"the activations have the type {type(x).__name__}; pass an array on the GPU that has DLPack or"
            " __cuda_array_interface__"
        )
    if view.device.id != device:
        raise BadOptionError(f"the activations are on GPU {view.device.id}, the weights on GPU {device}")
    return view


def hand_back(out: Array, like: Any) -> Any:
    """Convert a CuPy array, without a copy, to an array of the library of ``like``, if it has DLPack.

    The current stream of that library waits for CuPy's current stream. So whatever the library does next with
    ``like`` or the result happens after the kernels.
    """
    if isinstance(like, cupy().ndarray):
        return out
    library = sys.modules.get(type(like).__module__.partition(".")[0])
    from_dlpack = getattr(library, "from_dlpack", None)
    return out if from_dlpack is None else from_dlpack(out)
