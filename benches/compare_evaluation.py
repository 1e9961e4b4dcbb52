"""Compare the logits and perplexities of q4hifi and of llama.cpp on the same model files and text.

    python benches/compare_evaluation.py MODEL-f16.gguf TEXT [-c 512] [--chunks 8] [--types TYPE...]

llama.cpp is the one in the wheel ``xllamacpp``. Both engines read the model as it is (COPY) and quantized to
each type, in chunks as llama-perplexity does. For each file, the perplexities are printed, and how much the
logits differ: the Kullback-Leibler divergence (mean, median), the largest difference of a logit relative to
the range of the logits ("far"), and how often both have the same most probable token ("same").

For quantized weights, both engines round activations to eight bits, but not in the same order. The exact
reference is therefore the file's weights decoded to ``--exact``, for which q4hifi does not round activations.
Each engine is compared with it. llama.cpp is also compared with itself: the first chunk is read token by
token, which uses other kernels. llama.cpp cannot load Q4_HIFI and runs its decoded weights. An asterisk marks
a value over its limit.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import q4hifi
from llama_oracle import Floats, Read, distance, llama_reader
from q4hifi.evaluate.chunks import Chunks
from q4hifi.evaluate.logits import Divergence, divergence

COPY = "COPY"
"""Name for the model as it is."""

TYPES = [COPY, "Q8_0", "Q6_K", "Q4_K_M", "Q4_HIFI"]

PPL_LIMIT = {True: 0.05, False: 0.3}
"""Largest difference of perplexities, in percent. True is for files that are not quantized."""

FAR_LIMIT, KLD_LIMIT = 1e-3, 2e-3
"""Largest "far" of a file that is not quantized, and largest mean KLD of any file."""

FURTHER = 1.1
"""Our KLD from the exact reference may be at most this many times llama.cpp's."""


class Gap:
    """Collects how much predictions differ from a reference, over several chunks."""

    def __init__(self) -> None:
        self.parts: list[Divergence] = []
        self.far = 0.0

    def add(self, reference: Floats, other: Floats, tokens: np.ndarray) -> None:
        self.parts.append(divergence(other, reference, tokens))
        self.far = max(self.far, distance(other, reference))

    @property
    def all(self) -> Divergence:
        return Divergence.joined(self.parts)

    @property
    def kld(self) -> float:
        return float(self.all.kld.mean())


def reader_of(model: q4hifi.Model) -> Read:
    """Return a function that reads tokens with q4hifi, with the arguments of llama.cpp's reader."""

    def read(tokens: np.ndarray, first: int) -> Floats:
        logits = model.sequence().evaluate(tokens, range(first, len(tokens)))
        assert logits is not None
        return logits

    return read


def files(source: Path, types: list[str], exact: str, folder: Path) -> Iterator[tuple[str, Path, Path]]:
    """Yield name, file and file of decoded weights for each type. The files are deleted after use."""
    for name in types:
        made, decoded = folder / f"{name}.gguf", folder / f"{name}-{exact}.gguf"
        if name != COPY:
            q4hifi.quantize_file(source, made, name)
        file = source if name == COPY else made
        q4hifi.dequantize_file(file, decoded, exact)
        yield name, file, decoded
        made.unlink(missing_ok=True)
        decoded.unlink()


def compare(name: str, file: Path, decoded: Path, options: argparse.Namespace) -> None:
    threads, n_ctx = options.threads, options.ctx_size
    model = q4hifi.Model(file, threads=threads)
    ours, exactly = reader_of(model), reader_of(q4hifi.Model(decoded, threads=threads))
    chunks = Chunks.of(model, options.text.read_text(), n_ctx=n_ctx, n_chunks=options.chunks)
    quantized, decodes = name != COPY, name == "Q4_HIFI"
    both, our_gap, their_gap, own_gap = Gap(), Gap(), Gap(), Gap()
    with ExitStack() as stack:
        theirs = stack.enter_context(llama_reader(decoded if decodes else file, n_ctx + 8, threads=threads))
        for chunk in range(len(chunks)):
            if sys.stderr.isatty():
                print(f"{name}: chunk {chunk + 1} of {len(chunks)}", end="\r", file=sys.stderr, flush=True)
            tokens, first, came = chunks.input(chunk)[:-1], chunks.first, chunks.scored(chunk)
            found, reference, exact = (read(tokens, first) for read in (ours, theirs, exactly))
            both.add(reference, found, came)
            our_gap.add(exact, found, came)
            their_gap.add(exact, reference, came)
            if chunk == 0:
                single = theirs(tokens, first, [1] * (len(tokens) - 1))
                own_gap.add(reference, single, came)
    ppl, their_ppl, exact_ppl = (
        float(np.exp(nll.mean())) for nll in (both.all.nll, both.all.nll_base, our_gap.all.nll_base)
    )
    difference = 100 * (ppl / their_ppl - 1)
    mark = " *" * (abs(difference) > PPL_LIMIT[not quantized])
    print(
        f"\n{name}, {file.stat().st_size / 2**20:.2f} MiB: perplexity {ppl:.4f}, llama.cpp {their_ppl:.4f}"
        f" ({difference:+.3f} %{mark}), exact {exact_ppl:.4f}"
    )
    print(f"  {'':40} {'mean KLD':>10}  {'median':>9} {'far':>10}  {'same':>7}")
    for label, gap, most, furthest in (
        ("llama.cpp -> q4hifi", both, KLD_LIMIT, np.inf if quantized else FAR_LIMIT),
        ("exact -> q4hifi", our_gap, np.inf if decodes else FURTHER * their_gap.kld, np.inf),
        ("exact -> llama.cpp", their_gap, np.inf, np.inf),
        ("llama.cpp -> llama.cpp, token by token", own_gap, np.inf, np.inf),
    ):
        kld_mark, far_mark = "*" * (gap.kld > most), "*" * (gap.far > furthest)
        print(
            f"  {label:40} {gap.kld:10.2e}{kld_mark:1} {np.median(gap.all.kld):10.2e}"
            f" {gap.far:10.2e}{far_mark:1} {gap.all.same_top.mean():8.2%}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("-c", "--ctx-size", type=int, default=512, help="tokens per chunk, at most 2048")
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--types", nargs="*", default=TYPES, help="COPY is the model as it is")
    parser.add_argument("--exact", choices=("F32", "F16"), default="F32")
    parser.add_argument("-t", "--threads", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.model.parent) as folder:
        for name, file, decoded in files(options.model, options.types, options.exact, Path(folder)):
            compare(name, file, decoded, options)


if __name__ == "__main__":
    main()
