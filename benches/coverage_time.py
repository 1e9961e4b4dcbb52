"""Measure how much longer mixed-precision allocation ("measured coverage") takes than a fixed recipe.

    python benches/coverage_time.py MODEL-f16.gguf --imatrix FILE [--rounds N] [RECIPE ...]

Each round runs three commands: quantize the model by the recipe; plan an allocation of the same size;
quantize by such an allocation. Files are written to a temporary folder beside the model. Prints the minimum
seconds over the rounds, including the start of the command, and the ratio of the third command to the
first.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def seconds(*arguments: str | Path) -> float:
    """Run a q4hifi command, and return its seconds."""
    start = time.monotonic()
    command = [sys.executable, "-m", "q4hifi", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - start


def one_round(model: Path, imatrix: str, recipe: str, folder: Path) -> list[float]:
    """Return the seconds of the three commands: recipe, plan, quantize by allocation."""
    fixed, measured = folder / "fixed.gguf", folder / "measured.gguf"
    given = ["--imatrix", imatrix]
    like = [*given, "--like", recipe]
    times = [
        seconds("quantize", model, fixed, recipe, *given, "--overwrite"),
        seconds("plan", model, *like),
        seconds("quantize", model, measured, *like, "--overwrite"),
    ]
    sizes = fixed.stat().st_size, measured.stat().st_size
    assert sizes[1] <= sizes[0], f"measured coverage takes {sizes[1]} bytes, {recipe} {sizes[0]}"
    return times


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
