"""Compare importance matrices of q4hifi and of llama-imatrix, and the models quantized with them.

    python benches/compare_imatrix.py LLAMA_IMATRIX MODEL-f16.gguf CALIBRATION TEXT [--chunks 4] [--engine E]

Both programs read the same chunks of CALIBRATION. Prints the relative differences of the mean squares: of
the sum over all tensors, of the sum of the worst tensor, and of the worst single column. Then the model is
quantized with each importance matrix, and the KL divergences of the two models from MODEL on TEXT are
printed, and the time that each program took. q4hifi also measures input correlations and Fisher information.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import q4hifi
from q4hifi.imatrix.sums import ImportanceSums


def matrices(options: argparse.Namespace, folder: Path) -> tuple[Path, Path]:
    """Make both importance matrices."""
    theirs, ours = folder / "theirs.gguf", folder / "ours.gguf"
    size, chunks, threads = options.ctx_size, options.chunks, options.threads
    words = [options.llama_imatrix, "-m", options.model, "-f", options.calibration, "-o", theirs]
    words += ["-c", size, "--chunks", chunks, "-t", threads, "--no-ppl"]
    with timed("llama-imatrix"):
        subprocess.run([str(word) for word in words], check=True, capture_output=True)
    # llama.cpp removes the last line end of a file
    text = options.calibration.read_text().removesuffix("\n")
    with (
        timed("q4hifi"),
        q4hifi.open_model(options.model, engine=options.engine, n_ctx=size, threads=threads) as lm,
    ):
        q4hifi.collect_importance(
            lm, text, n_ctx=size, n_chunks=chunks, score=False, threads=threads, output=ours
        )
    return ours, theirs


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print the seconds, and the CPU seconds of this process and its children."""
    started, before = time.perf_counter(), sum(os.times()[:4])
    yield
    print(f"{what}: {time.perf_counter() - started:.1f} s, CPU {sum(os.times()[:4]) - before:.1f} s")


def compare_values(ours: Path, theirs: Path) -> None:
    one, other = (ImportanceSums.of(q4hifi.load_importance(path)).tensors for path in (ours, theirs))
    assert set(one) == set(other), set(one) ^ set(other)
    means = {name: (one[name].means.astype(float), other[name].means.astype(float)) for name in other}
    totals = {name: abs(mine.sum() / its.sum() - 1) for name, (mine, its) in means.items()}
    columns = {name: np.abs(mine / its - 1).max() for name, (mine, its) in means.items()}
    all_columns = np.concatenate([np.abs(mine / its - 1).ravel() for mine, its in means.values()])
    every = sum(mine.sum() for mine, _ in means.values()) / sum(its.sum() for _, its in means.values())
    print(f"{len(means)} tensors; all values together: {every - 1:+.4%}")
    for what, found in (("sum of a tensor", totals), ("column", columns)):
        worst = max(found, key=lambda name: found[name])
        print(f"worst {what}: {found[worst]:.4%} ({worst})")
    print(f"columns within 1 %: {(all_columns < 0.01).mean():.4%} of {all_columns.size}")


def compare_models(ours: Path, theirs: Path, options: argparse.Namespace, folder: Path) -> None:
    made = []
    for name, matrix in (("q4hifi", ours), ("llama-imatrix", theirs)):
        made.append(folder / f"with-{name}.gguf")
        q4hifi.quantize_file(options.model, made[-1], options.type, imatrix=matrix)
    text = options.text.read_text()
    size, chunks, threads = options.ctx_size, options.eval_chunks, options.threads
    found = q4hifi.compare(options.model, made, text, n_ctx=size, n_chunks=chunks, threads=threads)
    klds = []
    for model in found.models:
        assert model.quality is not None
        kld = model.quality.mean_kld
        klds.append(kld.value)
        print(f"{options.type} {Path(model.model).stem}: mean KLD {kld.value:.6f} ± {kld.error:.6f}")
    print(f"difference: {klds[0] / klds[1] - 1:+.2%}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("llama_imatrix")
    parser.add_argument("model", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("-c", "--ctx-size", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=4, help="of CALIBRATION")
    parser.add_argument("--eval-chunks", type=int, default=4, help="of TEXT")
    parser.add_argument("--type", default="Q4_K_M")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--engine", default="auto", help="that q4hifi uses: auto, q4hifi or llama.cpp")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.model.parent) as folder:
        ours, theirs = matrices(options, Path(folder))
        compare_values(ours, theirs)
        compare_models(ours, theirs, options, Path(folder))


if __name__ == "__main__":
    main()
