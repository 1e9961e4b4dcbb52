"""Compare the files and the speed of q4hifi and llama-quantize.

    python benches/compare_llama_quantize.py LLAMA_QUANTIZE MODEL [--imatrix FILE] [--threads N] [TYPE ...]

Both write each type, one after the other, into a temporary folder beside the model. Prints whether the files
are identical, the seconds and the peak resident memory of each process, and the ratio of the times. The exit
status is 1 if any file differs.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from q4hifi.plan.recipes import RECIPES

TYPES = [
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q8_0",
    "Q4_K_S",
    "Q4_K_M",
    "Q5_K_S",
    "Q5_K_M",
    "Q6_K",
    "IQ4_NL",
    "IQ4_XS",
    "Q2_K",
    "Q2_K_S",
    "Q3_K_S",
    "Q3_K_M",
    "Q3_K_L",
    "F16",
    "BF16",
]


def run(command: list[str]) -> tuple[float, float]:
    """Run a command, and return its seconds and peak resident MiB. Its output is shown only if it fails."""
    started = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            sys.exit(f"{' '.join(command)} failed:\n{output.read().decode(errors='replace')}")
    return time.monotonic() - started, usage.ru_maxrss / 1024


def main() -> None:
    """Compare and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("llama_quantize")
    parser.add_argument("model", type=Path)
    parser.add_argument("types", nargs="*", metavar="TYPE", help=f"default: {' '.join(TYPES)}")
    parser.add_argument("--imatrix")
    parser.add_argument("--threads", default=str(os.cpu_count()))
    args = parser.parse_intermixed_args()

    imatrix = ["--imatrix", args.imatrix] if args.imatrix else []
    q4hifi = shutil.which("q4hifi") or sys.exit("q4hifi is not installed")
    different = 0
    print(f"{'type':<8} {'file':<10} {'q4hifi':>18} {'llama-quantize':>18} {'times as fast':>14}")
    possible = [kind for kind in TYPES if imatrix or not RECIPES[kind].requires_imatrix]
    for kind in args.types or possible:
        with tempfile.TemporaryDirectory(dir=args.model.parent) as folder:
            ours, theirs = f"{folder}/ours.gguf", f"{folder}/theirs.gguf"
            model = str(args.model)
            seconds, peak = run([q4hifi, "quantize", *imatrix, model, ours, kind, "--threads", args.threads])
            reference, reference_peak = run(
                [args.llama_quantize, *imatrix, model, theirs, kind, args.threads]
            )
            same = filecmp.cmp(ours, theirs, shallow=False)
        different += not same
        print(
            f"{kind:<8} {'identical' if same else 'DIFFERENT':<10} {seconds:>7.1f} s {peak:>4.0f} MiB"
            f" {reference:>7.1f} s {reference_peak:>4.0f} MiB {reference / seconds:>13.2f}x",
            flush=True,
        )
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
