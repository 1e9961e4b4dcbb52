"""What cancelling takes off errors as they are felt, beside the share of importances that directions tell.

python benches/cancel.py MODEL-f16.gguf --imatrix FILE [--layers 1,12] [--rows 64]

Encodes the first rows of matrices, refined, without and with the directions of their inputs. Prints for each
matrix the share, and by type what is left of Σ R e² + |Uᵀ e|² (``src/refine/cancel.rs``); last, over all, the
mean of what is taken off divided by the share, which is ``CANCELS`` in ``python/q4hifi/coverage.py``.
"""

from __future__ import annotations

import argparse

import numpy as np

import q4hifi
from q4hifi.coverage import REFINED
from q4hifi.layout import SPLIT, Format
from q4hifi.model_file import RowRange
from q4hifi.rows import decode, encode
from q4hifi.tensor_errors import told_share
from q4hifi.types import Q4_HIFI, TYPES

ROLES = ("attn_q", "attn_v", "attn_output", "ffn_gate", "ffn_down")
LEAST_REST = 1e-3
"""As in ``src/refine/cancel.rs``."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--imatrix", required=True)
    parser.add_argument("--layers", default="1", help="by number, separated by commas")
    parser.add_argument("--rows", type=int, default=64)
    args = parser.parse_args()
    importance = q4hifi.load_importance(args.imatrix)
    formats = [Format(Q4_HIFI, 8, SPLIT) if name == "Q4_HIFI" else Format(TYPES[name]) for name in REFINED]
    print(f"{'matrix':<26} {'share':>6}", *(f"{f.type.name:>8}" for f in formats))
    taken = []
    with q4hifi.open(args.model) as model:
        for name in (f"blk.{layer}.{role}.weight" for layer in args.layers.split(",") for role in ROLES):
            tensor = model.tensors[name]
            n, some = tensor.row_length, RowRange(tensor, 0, 0, min(args.rows, tensor.n_rows))
            parts, x = model.read_rows(some), model.dequantize_rows(some)
            columns, directions = importance.weights(name, n, 1), importance.directions(name, n)
            assert columns is not None and directions is not None, f"{args.imatrix} has no sketch of {name}"
            rest = np.maximum(columns[0] - np.square(directions).sum(-1), LEAST_REST * columns[0])
            share, left = told_share(tensor, importance), []
            for form in formats:
                cost = []
                for known in (None, directions):
                    made, _ = encode(parts, tensor.format, form, n, columns[0], refine=True, directions=known)
                    error = (decode(made, form, n) - x).astype(np.float64)
                    cost.append((rest * error**2).sum() + np.square(error @ directions).sum())
                assert cost[1] < cost[0], f"{name} in {form.type}: errors do not cancel"
                left.append(cost[1] / cost[0])
            taken.append((1 - np.mean(left)) / share)
            print(f"{name:<26} {share:>6.3f}", *(f"{v:>8.3f}" for v in left), flush=True)
    print(f"taken off, of the share: {np.mean(taken):.2f}, from {min(taken):.2f} to {max(taken):.2f}")


if __name__ == "__main__":
    main()
