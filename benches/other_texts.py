"""Measure what mixed-precision allocation gains on texts of several kinds: a table of docs/quality.md.

    python benches/other_texts.py MODEL-f16.gguf --imatrix imatrix.gguf [--chunks 5] TEXT...

Quantizes MODEL by the recipes of quality.py, and by measured allocations of the same sizes. Compares all of
them with MODEL on each text. A value is the mean KL divergence of the allocation divided by that of the
recipe, on the same tokens: first for all texts together, with its standard error, then for each text.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from quality import SIZES, Row, at_sizes, progress_on, ratio_of_means

import q4hifi
from q4hifi.evaluate.chunks import read_text
from q4hifi.evaluate.logits import Doubles


def main() -> None:
    """Print the table."""
    options = arguments()
    rows = [Row(size, size, {"type": size}) for size in SIZES] + list(at_sizes("measured", {}))
    kld: dict[str, list[Doubles]] = {row.name: [] for row in rows}
    with tempfile.TemporaryDirectory() as scratch:
        paths = [Path(scratch) / f"{row.name}.gguf" for row in rows]
        for row, path in zip(rows, paths, strict=True):
            q4hifi.quantize_file(
                options.model, path, imatrix=options.imatrix, threads=options.threads,
                progress=progress_on(row.name), **row.options,
            )  # fmt: skip
        for file in options.texts:
            found = q4hifi.compare(
                options.model, paths, read_text(file), n_ctx=options.ctx_size, n_chunks=options.chunks,
                threads=options.threads, dataset=file, progress=progress_on(file),
            )  # fmt: skip
            for row, model in zip(rows, found.models, strict=True):
                assert model.quality is not None, model.facts
                kld[row.name].append(model.quality.tokens.kld)
    print("| | all |", " | ".join(Path(file).stem for file in options.texts), "|")
    print("|" + "---|" * (2 + len(options.texts)))
    for row in rows[len(SIZES) :]:
        ours, recipe = kld[row.name], kld[row.against]
        together = ratio_of_means(np.concatenate(ours), np.concatenate(recipe))
        each = [f"{ratio_of_means(a, b).value:.2f}" for a, b in zip(ours, recipe, strict=True)]
        print(f"| {row.name} | {together.value:.3f} ± {together.error:.3f} |", " | ".join(each), "|")


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("texts", metavar="TEXT", nargs="+", help="texts that the imatrix was not made from")
    parser.add_argument("--imatrix", required=True)
    parser.add_argument("-c", "--ctx-size", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=5, help="largest number of chunks of each text")
    parser.add_argument("-t", "--threads", type=int)
    return parser.parse_args()


if __name__ == "__main__":
    main()
