"""Compare the speed of q4hifi and llama.cpp when they run the same models.

    python benches/compare_llama.py MODEL.gguf [OTHER.gguf ...] [-p 512] [-n 32] [-r 5] [-t THREADS] [--json]

In each round, both engines read a prompt of ``-p`` random tokens and then ``-n`` tokens one by one, for
every file in turn. All models stay loaded. The ratio is q4hifi's tokens per second divided by llama.cpp's:
the median over the rounds, with the smallest and the largest in brackets. Files that llama.cpp cannot load,
such as Q4_HIFI, are run by q4hifi alone. The last column compares every file with the first file, both run
by q4hifi, so that for example a Q4_HIFI file can be compared with a Q4_K_S file.

llama.cpp is the one in the PyPI wheel ``xllamacpp``. LLAMA_LIBRARY names the libllama.so of another build,
preferably one made for this CPU. At the end, each file is loaded in a new process. Printed are the seconds to
load it, and the resident memory after the prompt relative to the size of the file and the key-value cache.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ctypes import c_bool, c_int32, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

import q4hifi

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import oracle

Run = Callable[[list[list[int]]], float]
"""Evaluates pieces of a text one after another, and returns the seconds."""


def ours(path: Path, threads: int, n_ctx: int) -> Run:
    model = q4hifi.Model(path, threads=threads, n_ctx=n_ctx)

    def run(pieces: list[list[int]]) -> float:
        sequence = model.sequence()
        started = time.perf_counter()
        for piece in pieces:
            logits = sequence.evaluate(piece)
        seconds = time.perf_counter() - started
        assert logits is not None and np.isfinite(logits).all()
        return seconds

    return run


@contextmanager
def llama(path: Path, threads: int, n_ctx: int) -> Iterator[Run]:
    lib = oracle.library()
    lib.llama_get_memory.restype, lib.llama_get_memory.argtypes = c_void_p, [c_void_p]
    lib.llama_memory_clear.restype, lib.llama_memory_clear.argtypes = None, [c_void_p, c_bool]
    with oracle.loaded(path) as model:
        params = lib.llama_context_default_params()
        params.first = n_ctx
        context = lib.llama_init_from_model(model, params)
        oracle.checked(context, bool(context), "no context for the model")
        lib.llama_set_n_threads(context, threads, threads)
        n_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))

        def run(pieces: list[list[int]]) -> float:
            lib.llama_memory_clear(lib.llama_get_memory(context), True)
            started = time.perf_counter()
            for piece in pieces:
                array = (c_int32 * len(piece))(*piece)
                status = lib.llama_decode(context, lib.llama_batch_get_one(array, len(piece)))
                oracle.checked(status, status == 0, f"{path} does not run (status {status})")
                logits = np.ctypeslib.as_array(lib.llama_get_logits_ith(context, -1), (n_vocab,))
            seconds = time.perf_counter() - started
            assert np.isfinite(logits).all()
            return seconds

        try:
            yield run
        finally:
            lib.llama_free(context)


FOOTPRINT = """
import json, sys, time, q4hifi
path, n, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
started = time.perf_counter()
model = q4hifi.Model(path, threads=threads, n_ctx=n)
seconds = time.perf_counter() - started
model.sequence().evaluate([0] * n)
status = open("/proc/self/status").read().splitlines()
resident = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))
arch = model.metadata["general.architecture"]
get = lambda key, default=0: int(model.metadata.get(f"{arch}.{key}", default))
heads = get("attention.head_count")
head = get("attention.key_length", get("embedding_length") // heads)
cache = 2 * 2 * n * head * get("attention.head_count_kv", heads) * get("block_count")
print(json.dumps({"load_seconds": seconds, "resident": resident, "cache": cache}))
"""


def footprint(path: Path, n: int, threads: int) -> dict[str, float]:
    """Return the seconds to load, and the memory after a prompt of ``n`` tokens: bytes and share (Linux)."""
    command = [sys.executable, "-c", FOOTPRINT, str(path), str(n), str(threads)]
    found: dict[str, float] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return found | {"resident_share": found["resident"] / (path.stat().st_size + found["cache"])}


def compare(paths: list[Path], options: argparse.Namespace) -> list[dict[str, Any]]:
    tokens = np.random.default_rng(0).integers(0, 1000, max(options.p, options.n)).tolist()
    tests = {f"pp{options.p}": [tokens[: options.p]], f"tg{options.n}": [[t] for t in tokens[: options.n]]}
    n_ctx = len(tokens) + 8
    with ExitStack() as stack:
        runs: dict[tuple[Path, str], Run] = {}
        for path in paths:
            runs[path, "q4hifi"] = ours(path, options.threads, n_ctx)
            if oracle.llama_loads(path):
                runs[path, "llama.cpp"] = stack.enter_context(llama(path, options.threads, n_ctx))
        results = []
        for test, pieces in tests.items():
            count = sum(map(len, pieces))
            speeds: dict[tuple[Path, str], list[float]] = {key: [] for key in runs}
            for warm in range(options.rounds + 1):
                for key, run in runs.items():
                    speed = count / run(pieces)
                    if warm:
                        speeds[key].append(speed)
            for path in paths:
                mine, theirs = speeds[path, "q4hifi"], speeds.get((path, "llama.cpp"))
                results.append(
                    {
                        "model": path.name,
                        "test": test,
                        "q4hifi": mine,
                        "llama.cpp": theirs,
                        "to_llama": theirs and [a / b for a, b in zip(mine, theirs, strict=True)],
                        "to_first": [a / b for a, b in zip(mine, speeds[paths[0], "q4hifi"], strict=True)],
                    }
                )
    return results


def ratio(values: list[float] | None) -> str:
    if not values:
        return "-"
    return f"{statistics.median(values):.2f}x [{min(values):.2f}, {max(values):.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("-p", type=int, default=512, help="tokens of the prompt")
    parser.add_argument("-n", type=int, default=32, help="tokens one by one")
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = compare(options.models, options)
    memory = {path.name: footprint(path, options.p, options.threads) for path in options.models}
    if options.json:
        print(json.dumps({"speed": results, "memory": memory}))
        return
    print(f"{'model':32} {'test':6} {'t/s':>7} {'llama.cpp':>9}  {'ratio':22} of the first, by q4hifi")
    for r in results:
        mine = statistics.median(r["q4hifi"])
        theirs = f"{statistics.median(r['llama.cpp']):.1f}" if r["llama.cpp"] else "-"
        ratios = f"{ratio(r['to_llama']):22} {ratio(r['to_first'])}"
        print(f"{r['model']:32} {r['test']:6} {mine:7.1f} {theirs:>9}  {ratios}")
    for name, m in memory.items():
        print(
            f"{name}: loads in {m['load_seconds']:.2f} s, "
            f"resident {m['resident'] / 2**20:.0f} MiB = {m['resident_share']:.2f} of file and cache"
        )


if __name__ == "__main__":
    main()
