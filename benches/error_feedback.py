"""Measure by how much error feedback (GPTQ, LDLQ) reduces the error of a matrix' outputs.

    python benches/error_feedback.py MODEL-f16.gguf --imatrix FILE --other FILE [--layers 1,12] [--rows 64]

Encodes the first rows of matrices twice, refined without and with error feedback. Prints the ratio of the
output errors eᵀ H e, by matrix and type, where e is the error of a row and H = E[x xᵀ] the Hessian. H is
taken from the importance matrix that the encoder used (line "same"), and from that of another text
(``--other``, line "other"). The last line is the mean ratio on the other text. ``FED_BACK`` in
``python/q4hifi/allocation/measured_plan.py`` is this mean.
"""

from __future__ import annotations

import argparse

import numpy as np
import numpy.typing as npt

import q4hifi
from q4hifi.allocation.candidates import candidates
from q4hifi.codec.model_file import RowRange
from q4hifi.codec.rows import decode, encode
from q4hifi.formats.layout import SPLIT
from q4hifi.formats.tensor_names import EMBEDDINGS, OUTPUT
from q4hifi.imatrix.importance import Importance

ROLES = ("attn_q", "attn_v", "attn_output", "ffn_gate", "ffn_down")


def products(importance: Importance, name: str, n: int) -> npt.NDArray[np.float64]:
    """Return H, float64 [n, n], of a matrix whose columns form a single group."""
    columns = importance.weights(name, n, 1)
    assert columns is not None
    roots = np.sqrt(columns[0].astype(np.float64))
    upper = np.zeros((n, n))
    upper[np.triu_indices(n, 1)] = importance.correlations(str(importance.correlated_name(name)))[0] / 127
    return (upper + upper.T + np.eye(n)) * np.outer(roots, roots)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--imatrix", required=True)
    parser.add_argument("--other", required=True, help="importance matrix of another text")
    parser.add_argument("--layers", default="1", help="layer indices, separated by commas")
    parser.add_argument("--rows", type=int, default=64)
    args = parser.parse_args()
    own, other = (q4hifi.load_importance(file).refining() for file in (args.imatrix, args.other))
    header, elsewhere = "", []
    with q4hifi.open(args.model) as model:
        names = [f"blk.{layer}.{role}.weight" for layer in args.layers.split(",") for role in ROLES]
        for name in filter(own.is_correlated, [*names, OUTPUT, EMBEDDINGS]):
            tensor = model.tensors[name]
            n, some = tensor.row_length, RowRange(tensor, 0, 0, min(args.rows, tensor.n_rows))
            parts, x = model.read_rows(some), model.dequantize_rows(some)
            columns, inputs = own.weights(name, n, 1), own.inputs(name, n)
            known = None if inputs is None else inputs.of(0)
            assert columns is not None
            texts = [products(importance, name, n) for importance in (own, other)]
            formats = [f for f in candidates(n, stock=False, layout=SPLIT) if f.outliers in (0, 8)]
            if header != (header := " ".join(f"{f.type.name:>8}" for f in formats)):
                print(f"{'matrix':<26} {'text':>8} {header}")
            left = []
            for form in formats:
                cost = []
                for inputs in (None, known):
                    made, _ = encode(parts, tensor.format, form, n, columns[0], refine=True, inputs=inputs)
                    error = (decode(made, form, n) - x).astype(np.float64)
                    cost.append([float(np.sum(error @ h * error)) for h in texts])
                left.append([after / before for before, after in zip(*cost, strict=True)])
            for text, shares in zip(("same", "other"), zip(*left, strict=True), strict=True):
                print(f"{name:<26} {text:>8}", *(f"{share:>8.3f}" for share in shares), flush=True)
                assert text != "same" or max(shares) < 1, f"{name}: error feedback does not help"
            elsewhere += [share for _, share in left]
    print(f"on the other text: mean {np.mean(elsewhere):.2f}, {min(elsewhere):.2f} to {max(elsewhere):.2f}")


if __name__ == "__main__":
    main()
