"""Compare the logits of q4hifi and of llama.cpp on the same models and text.

    python benches/compare_logits.py TEXT MODEL.gguf... [--exact MODEL-f32.gguf] [-n 256]

llama.cpp is the one in the wheel ``xllamacpp``. For every model it prints: the largest difference relative
to the range of the logits ("far"), the mean Kullback-Leibler divergence from llama.cpp's distributions
without the first token, the divergence at the first token, and how often both have the same most probable
token ("same").

For quantized weights, both engines round activations to eight bits. How much that changes can be seen in
two ways: by ``--exact``, the same weights decoded to F16 or F32 (``q4hifi dequantize``), and by comparing
llama.cpp with itself, a batch with token by token. In many models the activations of the first token are a
thousand times larger than the others, so that rounding changes its predictions a lot.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import oracle
import q4hifi
from llama_oracle import Floats, distance, divergences, llama_logits


def tokens_of(model: Path, text: str, n: int) -> list[int]:
    """Return the first ``n`` tokens of the text by llama.cpp's tokenizer."""
    with oracle.loaded(model) as handle:
        vocabulary = oracle.library().llama_model_get_vocab(handle)
        return oracle.tokens_of(vocabulary, text[: 16 * n])[:n]


def row(name: str, reference: Floats, other: Floats) -> None:
    same = (reference.argmax(-1) == other.argmax(-1)).mean()
    far, kld = distance(other, reference), divergences(reference, other)
    print(f"  {name:40} {far:9.2e} {kld[1:].mean():10.2e} {kld[0]:10.2e} {same:7.1%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--exact", type=Path, help="the decoded weights; for a single model")
    parser.add_argument("-n", type=int, default=256, help="number of tokens, at most 2048")
    parser.add_argument("-t", "--threads", type=int, default=2)
    options = parser.parse_args()
    text = options.text.read_text()
    print(f"  {'':40} {'far':>9} {'KLD':>10} {'at first':>10} {'same':>7}")
    for path in options.models:
        print(path.name)
        tokens = tokens_of(path, text, options.n)
        ours = q4hifi.Model(path, threads=options.threads).logits(tokens)
        theirs = llama_logits(path, tokens, threads=options.threads)
        row("llama.cpp -> q4hifi", theirs, ours)
        single = llama_logits(path, tokens, threads=options.threads, pieces=[1] * (len(tokens) - 1))
        row("llama.cpp -> llama.cpp, token by token", theirs, single)
        if options.exact:
            exact = q4hifi.Model(options.exact, threads=options.threads).logits(tokens)
            row("exact -> q4hifi", exact, ours)
            row("exact -> llama.cpp", exact, theirs)
            assert np.isfinite(exact).all()


if __name__ == "__main__":
    main()
