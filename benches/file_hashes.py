"""Print hashes of the files that every recipe writes, to compare two versions of the code.

    python benches/file_hashes.py MODEL-f16.gguf [--imatrix FILE] > before.txt   # then with the other version

Each line has the SHA-256 of a file and the options that made it. Needs no compiler and no network.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import q4hifi

RECIPES = (
    *("Q4_HIFI", "Q2_K", "Q2_K_S", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M"),
    *("Q6_K", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "IQ4_XS", "F16", "BF16", "F32", "COPY"),
)
MORE: tuple[tuple[str, dict[str, Any]], ...] = (
    ("Q4_HIFI", {"coverage": "scale"}),
    ("Q4_HIFI", {"layout": "fork"}),
    ("Q4_HIFI", {"like": "Q4_K_M"}),
    ("Q4_HIFI", {"like": "Q4_K_M", "stock": True}),
    ("Q4_HIFI", {"like": "Q4_K_S", "stock": True, "refine": False}),
    ("Q4_K_M", {"refine": True}),
    ("Q4_K_M", {"pure": True}),
    ("Q5_K_S", {"output_tensor_type": "Q8_0"}),
)


def main() -> None:
    """Write each file to a scratch folder, and print its hash."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--imatrix", type=Path)
    arguments = parser.parse_args()
    imatrices = [None] if arguments.imatrix is None else [None, arguments.imatrix]
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "out.gguf"
        for imatrix in imatrices:
            for recipe, options in (*((recipe, {}) for recipe in RECIPES), *MORE):
                words = " ".join(
                    [recipe, *(f"{k}={v}" for k, v in options.items()), "imatrix" * bool(imatrix)]
                )
                try:
                    q4hifi.quantize_file(
                        arguments.model, out, recipe, imatrix=imatrix, overwrite=True, **options
                    )
                except q4hifi.Q4HifiError as error:
                    print("refused", words, str(error).partition(": ")[2], flush=True)
                    continue
                print(hashlib.sha256(out.read_bytes()).hexdigest(), words, flush=True)


if __name__ == "__main__":
    sys.exit(main())
