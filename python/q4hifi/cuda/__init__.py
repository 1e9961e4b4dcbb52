"""Quantized weights on an NVIDIA GPU: dequantization, and products with activations.

    import cupy, q4hifi, q4hifi.cuda

    weights = q4hifi.cuda.upload(model["blk.0.attn_v.weight"])  # a CudaTensor
    product = weights.matmul(cupy.ones((3, weights.shape[1]), cupy.float16))  # float32 [3, n_out]

The kernels are CUDA C++ (``kernels.cu``). They are compiled for the GPU when they are first used. Only a
driver and CuPy are needed; q4hifi's extras ``cuda12`` and ``cuda13`` install CuPy. This module can be
imported without them. Then :func:`upload` raises :class:`~q4hifi.UnavailableError`, which says what is
missing.
"""

from .tensor import CudaTensor, upload

__all__ = ["CudaTensor", "upload"]
