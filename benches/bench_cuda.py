"""Measure the speed of q4hifi.cuda on a GPU, in gigabytes per second and relative to a copy in memory.

    python benches/bench_cuda.py [--rounds N] [--model NAME ...] [--json]

For each shape of a model's matrices and each type, these are timed: products with 1, 8 and 512 columns; the
product with 512 columns by dequantizing and cuBLAS; dequantizing to float16. Bytes are those that must be
read and written. Several copies of the matrix, together larger than the cache, are used in turns, so that
the weights come from memory. Before it is timed, every product is compared with that of the dequantized
weights. A time is the minimum over several rounds; each round is a CUDA graph of many launches.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

import q4hifi
import q4hifi.cuda
from q4hifi import QuantizedTensor
from q4hifi.cuda import CudaTensor, device

MODELS = {  # n_out, n_in
    "Qwen3-0.6B": ((1024, 1024), (2048, 1024), (1024, 2048), (3072, 1024), (1024, 3072), (151936, 1024)),
    "Qwen3-8B": ((1024, 4096), (4096, 4096), (12288, 4096), (4096, 12288), (151936, 4096)),
    "Devstral-123B": ((1024, 12288), (12288, 12288), (28672, 12288), (12288, 28672), (131072, 12288)),
}
TYPES = (("Q4_K", 0), ("Q5_K", 0), ("Q6_K", 0), ("Q4_HIFI", 8), ("Q4_HIFI", 16))
COLUMNS = (1, 8, 512)
COLD = 512 << 20
"""Bytes of weights that are read before the same weights are read again: ten times an H100's L2 cache."""
ROUND_BYTES = 4 << 30
"""About the bytes that a round reads and writes, which takes some milliseconds."""


def seconds(launch: Callable[[int], Any], launches: int, rounds: int) -> float:
    """Return the seconds of one launch: the minimum over ``rounds`` graphs of ``launches`` launches.

    ``launch`` is called with the index of the launch.
    """
    cupy = device.cupy()
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        launch(0)  # compiles the kernel and fills the memory pool before the capture
        stream.begin_capture()
        for i in range(launches):
            launch(i)
        graph = stream.end_capture()
        times = []
        for _ in range(rounds + 2):
            start, end = cupy.cuda.Event(), cupy.cuda.Event()
            start.record(stream)
            graph.launch(stream)
            end.record(stream)
            end.synchronize()
            times.append(cupy.cuda.get_elapsed_time(start, end) / 1e3)
    return min(times[2:]) / launches


def rows_of(kind: str, outliers: int, shape: tuple[int, int]) -> QuantizedTensor:
    """Return a quantized matrix of that shape: the same 512 rows, repeated."""
    weights = np.random.default_rng(1).standard_t(4, (512, shape[1])).astype(np.float32) * 0.02
    few = q4hifi.quantize(weights, kind, outliers=outliers)
    times = -(-shape[0] // 512)
    parts = [np.tile(part.reshape(512, -1), (times, 1))[: shape[0]].reshape(-1) for part in few.parts]
    return QuantizedTensor.from_parts(tuple(parts), few.format, shape)


def check(name: str, tensor: CudaTensor, columns: int) -> None:
    """Compare a product with that of the dequantized weights, which the GPU tests check."""
    cupy = device.cupy()
    x = cupy.random.standard_normal((columns, tensor.shape[1]), np.float32).astype(np.float16)
    weights = tensor.dequantize(np.float32)[:4096]
    got = tensor.matmul(x)[:, : len(weights)]
    expected = x.astype(np.float32) @ weights.T
    error = float(cupy.linalg.norm(got - expected) / cupy.linalg.norm(expected))
    if not error < 0.02:
        sys.exit(f"{name} {tensor.shape}, {columns} columns: relative error {error:.3g}")


def copy_bandwidth(rounds: int) -> float:
    """Return the bytes per second that copies within the GPU's memory read and write."""
    cupy = device.cupy()
    source, target = (cupy.empty((1 << 30,), np.uint8) for _ in range(2))
    copy = seconds(lambda _: cupy.copyto(target, source), 4, rounds)
    return 2 * source.nbytes / copy


def measure(kind: str, outliers: int, shape: tuple[int, int], rounds: int) -> dict[str, tuple[float, int]]:
    """Time all operations with one matrix: name of the operation -> seconds and bytes."""
    cupy = device.cupy()
    name = f"{kind}-{outliers}" if outliers else kind
    host = rows_of(kind, outliers, shape)
    tensors = [q4hifi.cuda.upload(host) for _ in range(max(1, min(64, COLD // host.nbytes)))]
    results = {}
    for columns in COLUMNS:
        check(name, tensors[0], columns)
        x = cupy.random.standard_normal((columns, shape[1]), np.float32).astype(np.float16)
        nbytes = host.nbytes + x.nbytes + 4 * columns * shape[0]
        launches = max(8, min(512, ROUND_BYTES // (nbytes * max(1, columns // 8))))
        took = seconds(lambda i: tensors[i % len(tensors)].matmul(x), launches, rounds)  # noqa: B023
        results[f"{columns} column{'s' * (columns > 1)}"] = took, nbytes
    took = seconds(
        lambda i: cupy.matmul(x, tensors[i % len(tensors)].dequantize().T),
        launches,
        rounds,
    )
    results[f"{columns}, cuBLAS"] = took, nbytes
    nbytes = host.nbytes + 2 * shape[0] * shape[1]
    took = seconds(
        lambda i: tensors[i % len(tensors)].dequantize(), max(2, min(128, ROUND_BYTES // nbytes)), rounds
    )
    results["to F16"] = took, nbytes
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--model", action="append", choices=MODELS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    cupy = device.cupy()
    gpu = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    copy = copy_bandwidth(options.rounds)
    if not options.json:
        print(f"{gpu}; a copy reads and writes {copy / 1e9:.0f} GB/s")
        print(
            f"{'matrix':>14} {'type':>10} {'MiB':>6} {'':>12} {'µs':>9} {'GB/s':>6} {'of a copy':>9}"
            f" {'of Q4_K':>7}"
        )
    for model in options.model or MODELS:
        if not options.json:
            print(model)
        for shape in MODELS[model]:
            plain: dict[str, float] = {}
            for kind, outliers in TYPES:
                for what, (took, nbytes) in measure(kind, outliers, shape, options.rounds).items():
                    plain.setdefault(what, took)
                    row = {
                        "model": model,
                        "matrix": f"{shape[0]}x{shape[1]}",
                        "type": f"{kind}-{outliers}" if outliers else kind,
                        "mib": nbytes / 2**20,
                        "what": what,
                        "microseconds": took * 1e6,
                        "gigabytes_per_second": nbytes / took / 1e9,
                        "share_of_copy": nbytes / took / copy,
                        "time_of_q4_k": took / plain[what],
                    }
                    if options.json:
                        print(json.dumps(row | {"gpu": gpu, "copy": copy / 1e9}))
                    else:
                        print(
                            "{matrix:>14} {type:>10} {mib:6.0f} {what:>12} {microseconds:9.1f}"
                            " {gigabytes_per_second:6.0f} {share_of_copy:9.1%} {time_of_q4_k:6.2f}x".format(
                                **row
                            )
                        )


if __name__ == "__main__":
    main()
