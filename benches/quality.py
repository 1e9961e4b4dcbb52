"""Measure the quality of all recipes for their size: the tables of docs/quality.md, JSON and a plot.

    python benches/quality.py MODEL-f16.gguf --imatrix imatrix.gguf -f TEXT [--calibrate TEXT] [-o FOLDER]

Quantizes MODEL by fixed recipes, and by mixed-precision allocation ("measured coverage") at their sizes.
Compares all of them with MODEL on TEXT. In further rows, each part of Q4_HIFI and of the allocation is left
out once (ablation). The quantized models are deleted unless --keep is given.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import q4hifi
from q4hifi.cli.plot import plot_comparison
from q4hifi.codec.model_file import RowRange
from q4hifi.codec.rows import encode
from q4hifi.evaluate.chunks import read_text
from q4hifi.evaluate.estimates import Estimate, mean
from q4hifi.evaluate.logits import Doubles
from q4hifi.formats.layout import Format
from q4hifi.formats.types import TYPES
from q4hifi.imatrix.sums import ImportanceSums

SIZES = ("Q4_K_S", "Q4_K_M", "Q5_K_S")
"""Recipes whose sizes are the budgets of the allocations."""

ABLATED = "Q4_K_M"
"""The recipe whose size is the budget of the ablations."""

PLOTTED = ("recipes", "measured", "calibrated")
"""Parts of the table that the plot shows. Rows of stock types are left out: they nearly coincide."""

MIB = 2**20


@dataclass(frozen=True)
class Row:
    """A model to make: its name, the options of quantize_file, and the row that it is compared with.

    ``part`` is the part of the table. ``afterwards`` changes the file after quantization. ``unknown`` is the
    field of :class:`ImportanceSums` that is removed from the importance matrix.
    """

    name: str
    against: str
    options: dict[str, Any]
    part: str = "recipes"
    afterwards: Callable[[Path, Path, str], None] | None = None
    unknown: str = ""


def rows(calibrated: str | None) -> Iterator[Row]:
    """Yield the rows of the table."""
    for kind in (*SIZES, "IQ4_XS"):
        yield Row(kind, "Q4_K_M", {"type": kind})
    yield Row("Q4_HIFI scale", "Q4_K_S", {"coverage": "scale"})
    yield Row("Q4_HIFI measured", "Q4_K_M", {"coverage": "measured"})
    yield from at_sizes("measured", {})
    if calibrated:
        yield from at_sizes("calibrated", {"sensitivities": calibrated})
    scale = {"coverage": "scale", "refine": False}
    yield Row("scale, largest weights, no refit", "Q4_K_S", scale, "outliers", largest)
    yield Row("scale, largest errors, no refit", "Q4_K_S", scale, "outliers", most_wrong)
    yield Row("scale, chosen and refitted", "Q4_K_S", scale, "outliers")
    at = {"like": ABLATED, "refine": False}
    yield Row(f"{ABLATED}, refined", ABLATED, {"type": ABLATED, "refine": True}, "refinement")
    yield Row(f"measured, stock, at {ABLATED}, not refined", ABLATED, {**at, "stock": True}, "refinement")
    yield Row(f"measured, at {ABLATED}, not refined", ABLATED, at, "refinement")
    at = {"like": ABLATED}
    yield Row(f"measured, at {ABLATED}, no Fisher information", ABLATED, at, "fisher", unknown="fisher")
    name = f"measured, at {ABLATED}, no error feedback"
    yield Row(name, ABLATED, at, "correlations", unknown="products")
    name = f"measured, at {ABLATED}, output without importance"
    yield Row(name, ABLATED, at, "correlations", unknown="refining")


def at_sizes(part: str, options: dict[str, Any]) -> Iterator[Row]:
    """Yield rows of allocations at the sizes of recipes, with all types and with stock types only."""
    for size in SIZES:
        for what, stock in ((part, False), (f"{part}, stock", True)):
            yield Row(f"{what}, at {size}", size, {**options, "like": size, "stock": stock}, part)


# ---- Q4_HIFI with parts of its encoder left out --------------------------------------------------

Floats = npt.NDArray[np.float32]
Score = Callable[[Floats, Floats, Floats], Floats]
"""(weights, plain Q4_K values, importances) -> scores, all [blocks, 256]. The highest become outliers."""


def largest(source: Path, path: Path, imatrix: str) -> None:
    """Make outliers of the largest |weight| x importance. The base is plain Q4_K, fitted to all weights."""
    rewrite_outliers(source, path, imatrix, lambda x, base, w: np.abs(x) * w)


def most_wrong(source: Path, path: Path, imatrix: str) -> None:
    """Make outliers of the weights with the largest error in plain Q4_K, fitted to all weights."""
    rewrite_outliers(source, path, imatrix, lambda x, base, w: w * (x - base) ** 2)


def rewrite_outliers(source: Path, path: Path, imatrix: str, score: Score) -> None:
    """Replace base and outliers of each Q4_HIFI tensor in the file ``path``."""
    importance = q4hifi.load_importance(imatrix)
    base_format = Format(TYPES["Q4_K"])
    with q4hifi.open(source) as original, q4hifi.open(path) as model, path.open("r+b") as file:
        for tensor in model.tensors.values():
            if not tensor.outliers:
                continue
            n, whole = tensor.row_length, RowRange(original.tensors[tensor.name], 0, 0, tensor.n_rows)
            w = importance.weights(tensor.name, n, 1)
            columns = None if w is None else w[0]
            parts = original.read_rows(whole)
            (base,), _ = encode(parts, whole.tensor.format, base_format, n, columns)
            x = original.dequantize_rows(whole)
            decoded = q4hifi.QuantizedTensor.from_parts((base,), base_format, x.shape).dequantize()
            weights = np.broadcast_to(np.ones(n, np.float32) if columns is None else columns, x.shape)
            blocks = [a.reshape(-1, 256) for a in (x, decoded, weights)]
            kept = np.argpartition(-score(*blocks), tensor.outliers, axis=1)[:, : tensor.outliers]
            kept.sort(axis=1)
            residual = np.take_along_axis(blocks[0] - blocks[1], kept, 1).astype(np.float16)
            for part, data in zip(tensor.parts, (base, kept.astype(np.uint8), residual), strict=True):
                file.seek(part.offset)
                file.write(data.tobytes())


# ---- making and comparing ------------------------------------------------------------------------


def main() -> None:
    options = arguments()
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    calibrated = None
    if options.calibrate:
        calibrated = f"{options.imatrix}.sensitivity.json"
        text = read_text(options.calibrate)
        q4hifi.calibrate(
            options.model, text, calibrated, imatrix=options.imatrix, n_chunks=options.calibrate_chunks,
            threads=options.threads, progress=progress_on("calibrating"),
        )  # fmt: skip
    table = [row for row in rows(calibrated) if not options.parts or row.part in options.parts]
    text = read_text(options.file)
    found: dict[str, q4hifi.ComparedModel] = {}
    reports: dict[str, q4hifi.QuantizeReport] = {}
    comparison: q4hifi.Comparison | None = None
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        known = {"": Path(options.imatrix)}
        for unknown in {row.unknown for row in table if row.unknown}:
            known[unknown] = Path(scratch) / f"{unknown}.gguf"
            whole = ImportanceSums.of(q4hifi.load_importance(options.imatrix))
            replace(whole, **{unknown: {}}).save(known[unknown])
        for start in range(0, len(table), options.at_once):
            batch, paths = table[start : start + options.at_once], []
            for row in batch:
                path = (folder if options.keep else Path(scratch)) / f"{row.name}.gguf"
                reports[row.name] = q4hifi.quantize_file(
                    options.model, path, imatrix=known[row.unknown],
                    threads=options.threads, overwrite=True, progress=progress_on(row.name), **row.options,
                )  # fmt: skip
                if row.afterwards is not None:
                    row.afterwards(Path(options.model), path, options.imatrix)
                paths.append(path)
            comparison = q4hifi.compare(
                options.model, paths, text, n_ctx=options.ctx_size, n_chunks=options.chunks,
                threads=options.threads, dataset=options.file, progress=progress_on("comparing"),
            )  # fmt: skip
            found |= {row.name: model for row, model in zip(batch, comparison.models, strict=True)}
            for path in () if options.keep else paths:
                path.unlink()
    assert comparison is not None
    print(file=sys.stderr)
    lines = list(markdown(comparison, table, found))
    print("\n".join(lines))
    (folder / "quality.md").write_text("\n".join(lines) + "\n")
    data = {
        "n_ctx": comparison.n_ctx,
        "n_chunks": comparison.n_chunks,
        "dataset": comparison.dataset,
        "reference": comparison.reference.as_dict(),
        "models": {
            row.name: {
                "options": row.options,
                "of_its_size": against(found, row).as_dict(),
                **found[row.name].as_dict(),
                "plan": reports[row.name].plan.as_dict(),
                "quantize_seconds": reports[row.name].seconds,
            }
            for row in table
        },
    }
    (folder / "quality.json").write_text(json.dumps(data, indent=1))
    shown = [row for row in table if row.part in PLOTTED and not row.options.get("stock")]
    plotted = tuple(found[row.name] for row in shown)
    plot_comparison(replace(comparison, models=plotted), folder / "quality.svg", overwrite=True)


def markdown(
    comparison: q4hifi.Comparison, table: list[Row], found: dict[str, q4hifi.ComparedModel]
) -> Iterator[str]:
    """Yield the lines of the table."""
    yield (
        f"{comparison.n_chunks} chunks of {comparison.n_ctx} tokens; perplexity of the reference "
        f"{comparison.reference.perplexity.ppl.value:.3f}."
    )
    yield ""
    yield "| model | MiB | bits/w | mean KLD | KLD ratio | PPL ratio | same top, % |"
    yield "|---|---|---|---|---|---|---|"
    part = table[0].part
    for row in table:
        if row.part != part:
            part = row.part
            yield f"| *{part}* | | | | | | |"
        model = found[row.name]
        quality = model.quality
        assert quality is not None  # only the reference has none
        ratio = against(found, row)
        yield (
            f"| {row.name} | {model.facts.file_bytes / MIB:.2f} | {model.facts.bits_per_weight:.3f} "
            f"| {quality.mean_kld.value:.5f} ± {quality.mean_kld.error:.5f} "
            f"| {ratio.value:.3f} ± {ratio.error:.3f} to {row.against} "
            f"| {quality.ppl_ratio.value:.4f} ± {quality.ppl_ratio.error:.4f} "
            f"| {100 * quality.same_top.value:.2f} |"
        )


def against(found: dict[str, q4hifi.ComparedModel], row: Row) -> Estimate:
    """Return the mean KLD divided by that of the row it is compared with."""
    mine, other = (found[name].quality for name in (row.name, row.against))
    assert mine is not None and other is not None
    return ratio_of_means(mine.tokens.kld, other.tokens.kld)


def ratio_of_means(a: Doubles, b: Doubles) -> Estimate:
    """Return mean(a) / mean(b) of values at the same tokens.

    Variation over the tokens that both share does not add to the error.
    """
    ratio = float(a.mean() / b.mean())
    return Estimate(ratio, mean(a - ratio * b).error / float(b.mean()))


def progress_on(what: str) -> Callable[[int, int, str], None]:
    """Return a progress function that overwrites one line on standard error."""

    def progress(done: int, total: int, name: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{what}: {done / max(1, total):4.0%} {name:.40}", end="", file=sys.stderr)

    return progress


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--imatrix", required=True)
    parser.add_argument("-f", "--file", required=True, help="text that the imatrix was not made from")
    parser.add_argument(
        "--calibrate", metavar="TEXT", help="measure the sensitivities of the matrices on TEXT"
    )
    parser.add_argument("--calibrate-chunks", type=int, default=4)
    parser.add_argument(
        "--parts", nargs="*", metavar="PART", help="only these parts of the table; they must include recipes"
    )
    parser.add_argument("-o", "--output", default="quality", help="folder for the results")
    parser.add_argument("-c", "--ctx-size", type=int, default=512)
    parser.add_argument("--chunks", type=int)
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument(
        "--at-once", type=int, default=4, help="models in memory at a time, besides the reference"
    )
    parser.add_argument("--keep", action="store_true", help="keep the quantized models in the folder")
    return parser.parse_args()


if __name__ == "__main__":
    main()
