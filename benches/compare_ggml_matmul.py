"""Compare the speed of matrix products of q4hifi and ggml.

    python benches/compare_ggml_matmul.py [--rounds N] [--threads N] [--shape ROWSxLENGTH] [--json] [TYPE ...]

ggml is the one in the PyPI wheel ``xllamacpp``: ``mul_mat`` of its CPU backend. It runs with the weights in
the file's layout, and in the interleaved layouts into which llama.cpp converts them when it loads a model;
the fastest counts. Both get the same blocks and float32 activations, and take turns in one process. Both
products are compared with that of the decoded weights. Q4_HIFI is compared with q4hifi's own Q4_K.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
from ctypes import c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from turns import medians

import q4hifi
from q4hifi.formats.types import TYPES

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import oracle

Floats = npt.NDArray[np.float32]
DEFAULT = ["Q4_K", "Q5_K", "Q6_K", "Q8_0", "F16"]
COLUMNS = (1, 16, 256)
HIFI_OUTLIERS = (8, 16)

F32 = 0
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "ggml_backend_cpu_init": (c_void_p, []),
    "ggml_backend_cpu_set_n_threads": (None, [c_void_p, c_int]),
    "ggml_backend_cpu_reg": (c_void_p, []),
    "ggml_backend_reg_dev_get": (c_void_p, [c_void_p, c_size_t]),
    "ggml_backend_reg_get_proc_address": (c_void_p, [c_void_p, c_char_p]),
    "ggml_backend_cpu_buffer_type": (c_void_p, []),
    "ggml_backend_buft_name": (c_char_p, [c_void_p]),
    "ggml_backend_alloc_ctx_tensors_from_buft": (c_void_p, [c_void_p, c_void_p]),
    "ggml_backend_buffer_set_usage": (None, [c_void_p, c_int]),
    "ggml_backend_buffer_free": (None, [c_void_p]),
    "ggml_backend_tensor_set": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
    "ggml_backend_tensor_get": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
    "ggml_backend_graph_compute": (c_int, [c_void_p, c_void_p]),
    "ggml_backend_dev_supports_op": (c_bool, [c_void_p, c_void_p]),
    "ggml_backend_free": (None, [c_void_p]),
    "ggml_new_tensor_2d": (c_void_p, [c_void_p, c_int, c_int64, c_int64]),
    "ggml_mul_mat": (c_void_p, [c_void_p, c_void_p, c_void_p]),
    "ggml_new_graph": (c_void_p, [c_void_p]),
    "ggml_build_forward_expand": (None, [c_void_p, c_void_p]),
    "ggml_free": (None, [c_void_p]),
}


class _InitParams(ctypes.Structure):
    _fields_ = [("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool)]


def ggml() -> ctypes.CDLL:
    """Return the wheel's library, with the argument types of the graph functions set."""
    lib = oracle.library()
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    lib.ggml_init.restype, lib.ggml_init.argtypes = c_void_p, [_InitParams]
    return lib


def buffer_types(lib: ctypes.CDLL) -> dict[str, int]:
    """Return the CPU backend's buffer types for weights by name: the plain one, and those that interleave."""
    registry = lib.ggml_backend_cpu_reg()
    found = [lib.ggml_backend_cpu_buffer_type()]
    address = lib.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
    if address:
        extra = ctypes.CFUNCTYPE(ctypes.POINTER(c_void_p), c_void_p)(address)
        listed = extra(lib.ggml_backend_reg_dev_get(registry, 0))
        for kind in listed:
            if not kind:
                break
            found.append(kind)
    return {lib.ggml_backend_buft_name(kind).decode(): kind for kind in found}


class GgmlProduct:
    """A graph that multiplies one matrix, whose weights are in a buffer of one type."""

    def __init__(
        self, lib: ctypes.CDLL, buffer_type: int, tensor: q4hifi.QuantizedTensor, x: Floats, threads: int
    ) -> None:
        self.lib, (n_out, n_in) = lib, tensor.shape
        self.out = np.empty((len(x), n_out), np.float32)
        self.contexts = [lib.ggml_init(_InitParams(1 << 22, None, True)) for _ in range(2)]
        weights, rest = self.contexts
        w = lib.ggml_new_tensor_2d(weights, tensor.type.id, n_in, n_out)
        activations = lib.ggml_new_tensor_2d(rest, F32, n_in, len(x))
        self.product = lib.ggml_mul_mat(rest, w, activations)
        self.graph = lib.ggml_new_graph(rest)
        lib.ggml_build_forward_expand(self.graph, self.product)
        plain = lib.ggml_backend_cpu_buffer_type()
        self.buffers = [
            lib.ggml_backend_alloc_ctx_tensors_from_buft(weights, buffer_type),
            lib.ggml_backend_alloc_ctx_tensors_from_buft(rest, plain),
        ]
        device = lib.ggml_backend_reg_dev_get(lib.ggml_backend_cpu_reg(), 0)
        self.supported = lib.ggml_backend_dev_supports_op(device, self.product)
        self.backend = lib.ggml_backend_cpu_init()
        lib.ggml_backend_cpu_set_n_threads(self.backend, threads)
        if not self.supported:  # the buffer type cannot store the tensor type
            return
        lib.ggml_backend_tensor_set(w, tensor.data.ctypes.data, 0, tensor.data.nbytes)
        lib.ggml_backend_tensor_set(activations, x.ctypes.data, 0, x.nbytes)

    def __call__(self) -> None:
        """Compute the product."""
        assert self.lib.ggml_backend_graph_compute(self.backend, self.graph) == 0

    def result(self) -> Floats:
        """Compute and return the product, float32 [columns, rows]."""
        self()
        self.lib.ggml_backend_tensor_get(self.product, self.out.ctypes.data, 0, self.out.nbytes)
        return self.out

    def close(self) -> None:
        """Free the memory."""
        self.lib.ggml_backend_free(self.backend)
        for buffer in self.buffers:
            self.lib.ggml_backend_buffer_free(buffer)
        for context in self.contexts:
            self.lib.ggml_free(context)


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("types", nargs="*", metavar="TYPE", default=DEFAULT)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--shape", default="1536x8960", help="rows x row length")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_intermixed_args()

    lib = ggml()
    kinds = buffer_types(lib)
    n_out, n_in = map(int, args.shape.split("x"))
    rng = np.random.default_rng(1)
    w = (rng.standard_t(8, (n_out, n_in)) * 0.02).astype(np.float32)
    activations = rng.standard_normal((max(COLUMNS), n_in)).astype(np.float32)
    results = []

    def report(name: str, columns: int, ours: float, theirs: float, what: str) -> None:
        billions = n_out * n_in * columns / 1e9
        row = {"type": name, "columns": columns, "q4hifi": billions / ours, "other": billions / theirs}
        results.append({**row, "what": what})
        if not args.json:
            rates = f"{billions / ours:>9.1f}{billions / theirs:>9.1f}"
            print(f"{name:<11}{columns:>7} {rates}{theirs / ours:>8.2f}x  {what}", flush=True)

    if not args.json:
        isa = q4hifi.cpu_features().active
        print(f"kernels: {isa}; {args.shape}, {args.threads} threads; billion multiply-adds per second")
        print(f"{'type':<11}{'columns':>7} {'q4hifi':>9}{'other':>9}{'ratio':>9}  other is")
    for name in args.types:
        tensor = q4hifi.quantize(w, TYPES[name.upper()])
        decoded = tensor.dequantize()
        for columns in COLUMNS:
            x = np.ascontiguousarray(activations[:columns])
            expected = x @ decoded.T
            every = {
                kind: GgmlProduct(lib, number, tensor, x, args.threads) for kind, number in kinds.items()
            }
            products = {kind: product for kind, product in every.items() if product.supported}
            for product in (tensor.matmul(x), *(p.result() for p in products.values())):
                assert np.abs(product - expected).max() < 0.03 * np.abs(expected).max(), name
            ours, *theirs = medians(
                args.rounds, lambda t=tensor, x=x: t.matmul(x, threads=args.threads), *products.values()
            )
            best = min(range(len(theirs)), key=theirs.__getitem__)
            report(name, columns, ours, theirs[best], f"ggml, {list(products)[best]}")
            for product in every.values():
                product.close()
    q4_k = q4hifi.quantize(w, "Q4_K")
    for outliers in HIFI_OUTLIERS:
        tensor = q4hifi.quantize(w, "Q4_HIFI", outliers=outliers)
        for columns in COLUMNS:
            x = np.ascontiguousarray(activations[:columns])
            a, b = medians(
                args.rounds,
                lambda t=tensor, x=x: t.matmul(x, threads=args.threads),
                lambda x=x: q4_k.matmul(x, threads=args.threads),
            )
            report(f"Q4_HIFI-{outliers}", columns, a, b, "our own Q4_K")
    if args.json:
        isa = q4hifi.cpu_features().active
        print(json.dumps({"isa": isa, "threads": args.threads, "results": results}, indent=2))


if __name__ == "__main__":
    main()
