"""Record what llama.cpp's tools say of the example model, over tests/golden/text.txt.

python tests/golden/make_llama_evaluation.py PATH/TO/llama-perplexity PATH/TO/llama-imatrix

Perplexity of the F16 model and of one with the weights of its Q4_K_M in F16, the divergence of the
two, and the importance matrix. Both are in F16 because two builds of llama.cpp agree to five digits
then; on quantized weights they round activations each in its way. Writes llama_evaluation.json.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import q4hifi
from q4hifi.imatrix.statistics import tensor_statistics
from q4hifi.imatrix.sums import ImportanceSums

HERE = Path(__file__).parent
EXAMPLE = HERE.parents[1] / "examples" / "tiny-qwen3-f16.gguf"
TEXT = HERE / "text.txt"
N_CTX, N_CHUNKS = 64, 6


def run(program: str, *arguments: object) -> str:
    words = [program, "-t", "2", "-c", str(N_CTX), "--chunks", str(N_CHUNKS), *map(str, arguments)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    return done.stdout + done.stderr


def perplexity(output: str) -> dict[str, object]:
    running = re.findall(r"\[\d+\]([\d.]+),", output)
    final = re.search(r"Final estimate: PPL = ([\d.]+) \+/- ([\d.]+)", output)
    assert final is not None, output
    return {"running": [float(value) for value in running], "ppl": [float(value) for value in final.groups()]}


def divergence(output: str) -> dict[str, list[float]]:
    """Label -> the number, and its uncertainty if there is one."""
    lines = re.findall(r"^ *(\S.*?) *: +(-?[\d.]+)%?(?: ± +([\d.]+))?(?: %)?$", output, re.MULTILINE)
    return {" ".join(label.split()): [float(v) for v in values if v] for label, *values in lines}


def importance(path: Path) -> dict[str, list[float]]:
    """Tensor -> sum and largest of the mean squares of its columns."""
    sums = ImportanceSums.of(q4hifi.load_importance(path))
    return {t.name: [t.total, t.maximum] for t in tensor_statistics(sums)}


def main() -> None:
    llama_perplexity, llama_imatrix = sys.argv[1:]
    with tempfile.TemporaryDirectory() as scratch:
        names = ("q4_k_m.gguf", "coarse.gguf", "base.kld", "imatrix.gguf")
        small, coarse, base, matrix = (Path(scratch) / name for name in names)
        q4hifi.quantize_file(EXAMPLE, small, "Q4_K_M")
        q4hifi.dequantize_file(small, coarse, "F16")
        f16 = run(llama_perplexity, "-m", EXAMPLE, "-f", TEXT, "--kl-divergence-base", base)
        own = run(llama_perplexity, "-m", coarse, "-f", TEXT)
        compared = run(llama_perplexity, "-m", coarse, "--kl-divergence-base", base, "--kl-divergence")
        run(llama_imatrix, "-m", EXAMPLE, "-f", TEXT, "-o", matrix, "--no-ppl")
        answers = {
            "n_ctx": N_CTX,
            "n_chunks": N_CHUNKS,
            "F16": perplexity(f16),
            "coarse": perplexity(own),
            "divergence": divergence(compared),
            "importance": importance(matrix),
        }
    (HERE / "llama_evaluation.json").write_text(json.dumps(answers, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
