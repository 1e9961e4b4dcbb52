"""Compare the speed of the tokenizers of q4hifi and llama.cpp on the same texts.

    python benches/compare_tokens.py TEXT MODEL.gguf... [--megabytes 10]

llama.cpp is the one in the wheel ``xllamacpp``. TEXT is repeated up to the given size. The other texts of
that size are single words, which are hard for a tokenizer. After the models, a small SentencePiece
vocabulary of the tests is used. Times are processor seconds. The ratio is q4hifi's time divided by
llama.cpp's. The tokens must be the same.
"""

from __future__ import annotations

import argparse
import base64
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from test_tokenizer import SCORES, both, sentence_piece_pairs
from vocabularies import write_vocabulary


def texts(text: bytes, n: int) -> Iterator[tuple[str, bytes]]:
    """Yield names and texts of ``n`` bytes."""
    chosen = random.Random(1)
    yield "the text", (text * (n // len(text) + 1))[:n]
    yield "one letter", b"a" * n
    yield "blanks", b" " * n
    yield "line ends", b"\n" * n
    yield "one word", bytes(chosen.choices(b"abcdefghijklmnopqrstuvwxyz", k=n))
    yield "base64", base64.b64encode(chosen.randbytes(n * 3 // 4))


def timed(encode: Callable[[bytes], Any], data: bytes) -> tuple[float, Any]:
    start = time.process_time()
    tokens = encode(data)
    return time.process_time() - start, tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--megabytes", type=float, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pairs = sentence_piece_pairs(SCORES["by_rank"])
        small = write_vocabulary(Path(folder) / "sentence-piece.gguf", pairs)
        for model in (*options.models, small):
            print(f"{model.name}\n  {'':24} {'q4hifi':>8} {'llama.cpp':>9} {'ratio':>6} {'tokens':>10}")
            with both(model) as (ours, theirs):
                ours.encode("the first call prepares tables")
                for name, data in texts(options.text.read_bytes(), int(options.megabytes * 1e6)):
                    our_time, tokens = timed(ours.encode_array, data)
                    their_time, expected = timed(theirs.encode, data)
                    same = "" if np.array_equal(tokens, expected) else "  NOT THE SAME"
                    ratio = our_time / their_time
                    n = len(tokens)
                    print(
                        f"  {name:24} {our_time:8.2f} {their_time:9.2f} {ratio:6.2f} {n:10}{same}", flush=True
                    )


if __name__ == "__main__":
    main()
