"""Compare the quantization speed of q4hifi and ggml on the same rows.

    python benches/compare_ggml.py [--rounds N] [--rows N] [--row-length N] [--json] [TYPE ...]

ggml is the one in the PyPI wheel ``xllamacpp``, called through ctypes. Both get the same float32 rows and
take turns in one process. Printed are the medians over the rounds and their ratio. The outputs must be the
same byte for byte. Q4_HIFI is compared with q4hifi's own Q4_K. ``Q4HIFI_ISA=avx2`` (or scalar) selects an
instruction set.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from turns import medians

import q4hifi
from q4hifi import _core
from q4hifi.formats.types import TYPES

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import oracle

Floats = npt.NDArray[np.float32]
DEFAULT = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
HIFI_OUTLIERS = (8, 16)


def inputs(rows: int, row_length: int) -> tuple[Floats, Floats]:
    """Return rows like those of trained matrices, and importances over a few orders of magnitude."""
    rng = np.random.default_rng(1)
    x = rng.standard_t(8, (rows, row_length)) * 0.02
    return x.astype(np.float32), np.exp(3 * rng.standard_normal(row_length)).astype(np.float32)


def ggml_threaded(pool: ThreadPoolExecutor, threads: int, kind: int, x: Floats, w: Floats | None) -> None:
    """Run ggml's quantizer on several threads, each with its share of the rows."""
    for _ in pool.map(lambda part: oracle.ggml_quantize(kind, part, w), np.array_split(x, threads)):
        pass


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("types", nargs="*", metavar="TYPE", default=DEFAULT)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--row-length", type=int, default=2048)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_intermixed_args()

    x, importance = inputs(args.rows, args.row_length)
    flat = x.reshape(-1).view(np.uint8)
    every = os.cpu_count() or 1
    millions = x.size / 1e6
    results = []
    if not args.json:
        isa = q4hifi.cpu_features().active
        print(f"kernels: {isa}; million weights per second with 1 thread, then with {every}")
        heads = "".join(f"{head:>9}" for head in ("q4hifi", "ggml", "ratio") * 2)
        print(f"{'type':<10} {'importance':<10} {heads}")
    with ThreadPoolExecutor(every) as pool:
        for name in args.types:
            kind = TYPES[name.upper()].id
            for w in (None, importance):

                def ours(
                    threads: int, kind: int = kind, w: Floats | None = w
                ) -> tuple[npt.NDArray[np.uint8], tuple[float, float]]:
                    return _core.quantize(flat, 0, args.row_length, kind, w, threads)

                assert np.array_equal(ours(1)[0], oracle.ggml_quantize(kind, x, w).reshape(-1)), name
                a, b, c, d = medians(
                    args.rounds,
                    lambda: ours(1),
                    lambda kind=kind, w=w: oracle.ggml_quantize(kind, x, w),
                    lambda: ours(every),
                    lambda kind=kind, w=w: ggml_threaded(pool, every, kind, x, w),
                )
                row = {"type": name, "importance": w is not None, "one": [millions / a, millions / b]}
                row["all"] = [millions / c, millions / d]
                results.append(row)
                if not args.json:
                    print(
                        f"{name:<10} {'yes' if w is not None else 'no':<10} "
                        f"{millions / a:>9.1f}{millions / b:>9.1f}{b / a:>8.2f}x"
                        f"{millions / c:>9.1f}{millions / d:>9.1f}{d / c:>8.2f}x",
                        flush=True,
                    )
    q4_k = TYPES["Q4_K"].id
    for outliers in HIFI_OUTLIERS:
        for w in (None, importance):
            a, b = medians(
                args.rounds,
                lambda n=outliers, w=w: _core.quantize_hifi(flat, 0, args.row_length, n, w, 1),
                lambda w=w: _core.quantize(flat, 0, args.row_length, q4_k, w, 1),
            )
            row = {"type": f"Q4_HIFI-{outliers}", "importance": w is not None}
            results.append({**row, "one": [millions / a, millions / b]})
            if not args.json:
                print(
                    f"{row['type']:<10} {'yes' if w is not None else 'no':<10} "
                    f"{millions / a:>9.1f}{b / a:>17.2f}x of our own Q4_K"
                )
    if args.json:
        print(
            json.dumps({"isa": q4hifi.cpu_features().active, "threads": every, "results": results}, indent=2)
        )


if __name__ == "__main__":
    main()
