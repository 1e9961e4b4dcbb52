"""Quantized weights on an NVIDIA GPU: dequantized, and multiplied by activations.

    import cupy, q4hifi, q4hifi.cuda

    weights = q4hifi.cuda.upload(model["blk.0.attn_v.weight"])  # a CudaTensor
    product = weights.matmul(cupy.ones((3, weights.shape[1]), cupy.float16))  # float32 [3, n_out]

The kernels are CUDA C++ (``kernels.cu``), compiled for the card when they are first used, so only a driver
and CuPy are needed, which q4hifi's extras ``cuda12`` and ``cuda13`` install. This module can be imported
without either; :func:`upload` then raises :class:`~q4hifi.UnavailableError` and says what is missing.
"""

from .tensor import CudaTensor, upload

__all__ = ["CudaTensor", "upload"]
