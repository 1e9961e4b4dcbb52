"""Quantize a mixture of experts through llama.cpp, and compare what each step gains.

    python benches/mixture.py --calibration TEXT --text TEXT [--model F16.gguf] [--chunks 100] [--compared 60]

Makes a mixture (qwen3moe) of the example model, a dense qwen3: each of 8 experts has a random half of the
hidden units of its layer, with 10 % noise, and a random router takes 2 of them. Then it measures an
importance matrix with llama.cpp and quantizes the mixture to the size of Q4_K_M: by the recipe, refined, and
with the best types. The table shows the KL divergence from the mixture on a text that was not calibrated on,
and its ratio to the recipe's.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader, GGUFWriter

import q4hifi
from q4hifi.evaluate.chunks import read_text

EXAMPLE = Path(__file__).parents[1] / "examples" / "tiny-qwen3-f16.gguf"
EXPERTS, USED, NOISE, ROUTER = 8, 2, 0.1, 0.3
RECIPE = "Q4_K_M"


def write_mixture(dense: Path, path: Path) -> None:
    """Write a mixture made of the dense qwen3 model ``dense``."""
    reader, rng = GGUFReader(dense), np.random.default_rng(1)
    writer = GGUFWriter(path, "qwen3moe")
    for key, field in reader.fields.items():
        name = key.replace("qwen3.", "qwen3moe.")
        if not key.startswith(("GGUF.", "general.architecture")):
            kind = field.types[0]
            writer.add_key_value(
                name, field.contents(), kind, field.types[-1] if len(field.types) > 1 else None
            )
    tensors = {t.name: np.array(t.data) for t in reader.tensors}
    n_ff = tensors["blk.0.ffn_gate.weight"].shape[0]
    for key, value in (("count", EXPERTS), ("used_count", USED), ("feed_forward_length", n_ff // 2)):
        writer.add_uint32(f"qwen3moe.expert_{key}", value)

    def noisy(weights: npt.NDArray[Any]) -> npt.NDArray[np.float16]:
        factors = 1 + NOISE * rng.standard_normal(weights.shape)
        return (weights.astype(np.float32) * factors).astype(np.float16)

    for name, weights in tensors.items():
        if ".ffn_gate." in name:
            layer = name.removesuffix("ffn_gate.weight")
            up, down = (tensors[f"{layer}ffn_{part}.weight"] for part in ("up", "down"))
            halves = [rng.permutation(n_ff)[: n_ff // 2] for _ in range(EXPERTS)]
            router = ROUTER * rng.standard_normal((EXPERTS, weights.shape[1]))
            writer.add_tensor(f"{layer}ffn_gate_inp.weight", router.astype(np.float32))
            for part, stack in (
                ("gate", [weights[half] for half in halves]),
                ("up", [up[half] for half in halves]),
                ("down", [2 * down[:, half] for half in halves]),
            ):
                writer.add_tensor(f"{layer}ffn_{part}_exps.weight", noisy(np.stack(stack)))
        elif ".ffn_up." not in name and ".ffn_down." not in name:
            writer.add_tensor(name, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", type=Path, default=EXAMPLE, help="dense qwen3 model, with a text's tokenizer"
    )
    parser.add_argument("--calibration", required=True, help="text for the importance matrix")
    parser.add_argument("--text", required=True, help="another text, to compare on")
    parser.add_argument("--chunks", type=int, default=100, help="chunks of 256 tokens to calibrate on")
    parser.add_argument("--compared", type=int, default=60, help="chunks of 256 tokens to compare on")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mixture, imatrix = folder / "mixture.gguf", folder / "imatrix.gguf"
        write_mixture(args.model, mixture)
        text = read_text(args.calibration)
        for experts in (True, False):
            started, cpu = time.perf_counter(), time.process_time()
            with q4hifi.LlamaModel(mixture, n_ctx=256, expert_correlations=experts) as model:
                target = folder / f"imatrix-{experts}.gguf" if experts else imatrix
                q4hifi.collect_importance(model, text, n_ctx=256, n_chunks=args.chunks, output=target)
            seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
            print(f"imatrix, experts' own correlations {experts}: {seconds:.0f} s, CPU {cpu:.0f} s")
        best: dict[str, Any] = {"like": RECIPE, "stock": True}
        runs: dict[str, dict[str, Any]] = {
            "recipe, llama.cpp's bytes": {"recipe": RECIPE},
            "recipe, refined": {"recipe": RECIPE, "refine": True},
            "recipe, refined, --expert-correlations": {
                "recipe": RECIPE, "refine": True, "imatrix": folder / "imatrix-True.gguf"
            },
            "--like --stock": best,
            "--like --stock --calibrate": best | {"calibrate": args.calibration},
            "the same, --expert-correlations": best
            | {"calibrate": args.calibration, "imatrix": folder / "imatrix-True.gguf"},
        }  # fmt: skip
        files = {}
        for title, options in runs.items():
            files[title] = folder / f"{len(files)}.gguf"
            recipe = options.pop("recipe", None)
            given = () if recipe is None else (recipe,)
            q4hifi.quantize_file(mixture, files[title], *given, **({"imatrix": imatrix} | options))
        found = q4hifi.compare(
            mixture, list(files.values()), read_text(args.text), n_ctx=256, n_chunks=args.compared
        )
        klds = {model.model: model.quality.mean_kld for model in found.models if model.quality is not None}
        base = klds[str(next(iter(files.values())))].value
        for title, file in files.items():
            kld = klds[str(file)]
            size = file.stat().st_size
            figures = f"KLD {kld.value:.5f} ±{kld.error:.5f}, ratio {kld.value / base:.3f}"
            print(f"{title:40} {size:9} bytes, {figures}")


if __name__ == "__main__":
    main()
