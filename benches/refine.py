"""Measure how much refinement (--refine) reduces the quantization error, by type and tensor role.

    python benches/refine.py MODEL-f16.gguf [--imatrix FILE] [--rows N] [TYPE ...]

TYPE is IQ4_XS, Q4_K, Q5_K, Q6_K or Q4_HIFI:N with N outliers per block. Errors are squared errors divided by
squared weights, both weighted by importance. N rows of every matrix that llama-quantize would quantize are
used, evenly spread. Times are of one thread.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict

import numpy as np

import q4hifi
from q4hifi.codec.rows import ErrorSums, encode
from q4hifi.formats.layout import Format
from q4hifi.formats.tensor_names import ROLES, is_quantizable, role_of
from q4hifi.formats.types import F32, tensor_type
from q4hifi.imatrix.file import load_importance

DEFAULT = ["IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q4_HIFI:8", "Q4_HIFI:16"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--imatrix")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("types", nargs="*", metavar="TYPE", default=DEFAULT)
    arguments = parser.parse_intermixed_args()
    forms = {text: _format(text) for text in arguments.types}
    importance = load_importance(arguments.imatrix) if arguments.imatrix else None
    errors: dict[tuple[str, str, bool], ErrorSums] = defaultdict(ErrorSums)
    seconds: dict[tuple[str, bool], float] = defaultdict(float)
    with q4hifi.open(arguments.model) as model:
        for name in model:
            tensor = model[name]
            n_in = tensor.shape[-1]
            if not is_quantizable(name, tensor.shape[::-1], "") or n_in % 256:
                continue
            x = tensor.dequantize().reshape(-1, n_in)
            x = np.ascontiguousarray(x[:: -(-len(x) // arguments.rows)])
            w = importance.weights(name, n_in, 1) if importance is not None else None
            for text, form in forms.items():
                for refine in (False, True):
                    started = time.perf_counter()
                    sums = encode(
                        (x.reshape(-1).view(np.uint8),),
                        Format(F32),
                        form,
                        n_in,
                        None if w is None else w[0],
                        refine=refine,
                        threads=1,
                    )[1]
                    seconds[text, refine] += time.perf_counter() - started
                    for role in (role_of(name), "all"):
                        errors[text, role, refine] += sums
    print(f"{'type':10} {'role':12} {'plain':>9} {'refined':>9}  ratio")
    order = [role for role, _ in ROLES] + ["all"]
    keys = {key[:2] for key in errors}
    for text, role in sorted(keys, key=lambda key: (arguments.types.index(key[0]), order.index(key[1]))):
        plain, refined = (errors[text, role, refine].relative for refine in (False, True))
        times = f"  {seconds[text, True] / seconds[text, False]:.1f}x the time" if role == "all" else ""
        print(f"{text:10} {role:12} {plain:9.2e} {refined:9.2e}  {refined / plain:.4f}{times}")


def _format(text: str) -> Format:
    """Return the format that ``TYPE`` or ``TYPE:N`` names."""
    name, _, outliers = text.partition(":")
    return Format(tensor_type(name), int(outliers or 0))


if __name__ == "__main__":
    main()
