"""What measured coverage takes beside the recipe of the same size: planning, and the whole.

python benches/coverage_time.py MODEL-f16.gguf --imatrix FILE [--rounds N] [RECIPE ...]

Each round quantizes the model by the recipe and by measured coverage at its size, in turn, into a temporary
folder beside it. Prints the least seconds of the rounds and their ratios.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import q4hifi


def one_round(model: Path, imatrix: str, recipe: str, folder: Path) -> list[float]:
    """Seconds of the recipe, of a plan of its size, and of planning and quantizing by it."""
    fixed, measured = folder / "fixed.gguf", folder / "measured.gguf"
    times = [time.monotonic()]
    q4hifi.quantize_file(model, fixed, recipe, imatrix=imatrix, overwrite=True)
    times.append(time.monotonic())
    q4hifi.plan_file(model, imatrix=imatrix, like=recipe)
    times.append(time.monotonic())
    q4hifi.quantize_file(model, measured, imatrix=imatrix, like=recipe, overwrite=True)
    times.append(time.monotonic())
    sizes = fixed.stat().st_size, measured.stat().st_size
    assert sizes[1] <= sizes[0], f"measured coverage takes {sizes[1]} bytes, {recipe} {sizes[0]}"
    return [after - before for before, after in pairwise(times)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--imatrix", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", default=["Q4_K_M"])
    args = parser.parse_intermixed_args()

    print(f"{'at the size of':<14} {'recipe':>9} {'plan':>9} {'measured':>9} {'ratio':>6}")
    for recipe in args.recipes:
        with tempfile.TemporaryDirectory(dir=args.model.parent) as folder:
            rounds = [one_round(args.model, args.imatrix, recipe, Path(folder)) for _ in range(args.rounds)]
        base, plan, whole = map(min, zip(*rounds, strict=True))
        print(f"{recipe:<14} {base:>7.1f} s {plan:>7.1f} s {whole:>7.1f} s {whole / base:>5.2f}x", flush=True)


if __name__ == "__main__":
    main()
