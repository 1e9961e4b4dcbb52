"""Compute file sizes and expected decoding speeds of models that are too large to run here.

    python benches/large_models.py [--write FOLDER]

Nothing is measured. Sizes follow exactly from the tensor shapes. The decoding speed of a single user is
limited by the bytes of weights that a token reads, and is estimated from them. The shapes are written to
FOLDER, in the format that ``q4hifi plan`` reads.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import q4hifi

GIB = 2**30


@dataclass(frozen=True)
class Shape:
    """The shape of a dense model, as its makers publish it."""

    architecture: str
    layers: int
    width: int
    ffn: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool
    head_size: int = 128

    def as_dict(self) -> dict[str, Any]:
        """Return the shape in the format that :func:`q4hifi.plan_shapes` reads."""
        q, kv = self.heads * self.head_size, self.kv_heads * self.head_size
        layer = {
            "attn_norm": [self.width],
            "attn_q": [self.width, q],
            "attn_k": [self.width, kv],
            "attn_v": [self.width, kv],
            "attn_output": [q, self.width],
            "ffn_norm": [self.width],
            "ffn_gate": [self.width, self.ffn],
            "ffn_up": [self.width, self.ffn],
            "ffn_down": [self.ffn, self.width],
        }
        tensors = {"token_embd.weight": [self.width, self.vocabulary], "output_norm.weight": [self.width]}
        if not self.tied:
            tensors["output.weight"] = [self.width, self.vocabulary]
        for i in range(self.layers):
            tensors |= {f"blk.{i}.{part}.weight": shape for part, shape in layer.items()}
        return {
            "architecture": self.architecture,
            "block_count": self.layers,
            "head_count": self.heads,
            "head_count_kv": self.kv_heads,
            "tensors": tensors,
        }


MODELS = {
    "Qwen3-0.6B": Shape("qwen3", 28, 1024, 3072, 16, 8, 151936, True),
    "Qwen3-1.7B": Shape("qwen3", 28, 2048, 6144, 16, 8, 151936, True),
    "Qwen3-4B": Shape("qwen3", 36, 2560, 9728, 32, 8, 151936, True),
    "Qwen3-8B": Shape("qwen3", 36, 4096, 12288, 32, 8, 151936, False),
    "Qwen3-32B": Shape("qwen3", 64, 5120, 25600, 64, 8, 151936, False),
    "Devstral-2-123B": Shape("llama", 88, 12288, 28672, 96, 8, 131072, False),
}

RECIPES: dict[str, dict[str, Any]] = {
    "IQ4_XS": {"type": "IQ4_XS"},
    "Q4_K_S": {"type": "Q4_K_S"},
    "Q4_K_M": {"type": "Q4_K_M"},
    "Q5_K_S": {"type": "Q5_K_S"},
    "Q6_K": {"type": "Q6_K"},
    "Q4_HIFI": {"coverage": "scale"},
    "Q4_HIFI, fork layout": {"coverage": "scale", "layout": "fork"},
    "Q4_HIFI, --minimal": {"minimal": True},
    "Q4_HIFI, half of ffn_down": {"ffn_down_coverage": 0.5},
    "Q4_HIFI, half of ffn_down, fork layout": {"ffn_down_coverage": 0.5, "layout": "fork"},
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write", metavar="FOLDER", help="write the shapes there")
    options = parser.parse_args()
    print("| model | recipe | GiB | bits/w | of Q4_K_S's size | decoding, of Q4_K_S's |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.write or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name, shape in MODELS.items():
            file = folder / f"{name}.json"
            file.write_text(json.dumps(shape.as_dict()))
            small = q4hifi.plan_shapes(file, "Q4_K_S")
            seen = set()
            for recipe, choices in RECIPES.items():
                try:
                    plan = q4hifi.plan_shapes(file, has_imatrix=True, **choices)
                except q4hifi.BadOptionError:
                    continue  # minimal is only for the largest models
                if (key := (plan.recipe, plan.layout, plan.tensor_bytes)) in seen:
                    continue
                seen.add(key)
                print(
                    f"| {name} | {recipe} | {plan.tensor_bytes / GIB:.2f} | {plan.bits_per_weight:.3f} "
                    f"| {plan.tensor_bytes / small.tensor_bytes:.3f} "
                    f"| {small.token_bytes / plan.token_bytes:.3f} |"
                )
                name = ""


if __name__ == "__main__":
    main()
