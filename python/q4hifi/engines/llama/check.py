"""The process that :mod:`.self_test` starts: ``python -m q4hifi.engines.llama.check LIBRARY FOLDER``.

It ends with status 0 if llama.cpp shows the inputs of a model's matrices as they must be.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...formats.gguf_constants import GGUFValueType
from ...formats.layout import StoredTensor
from ...formats.types import F32
from ...gguf_io.metadata import Metadata
from ...gguf_io.writer import GgufWriter
from .abi import struct_offsets
from .library import load_library
from .model import LlamaModel

N_EMBD, N_FF, N_VOCAB, N_TOKENS = 64, 96, 40, 32
EPSILON = 1e-5
TOLERANCE = 1e-3
"""Accepted difference of a column's mean square, as a share of it."""

Floats = npt.NDArray[np.float32]


def main(library: Path, folder: Path) -> None:
    """Run the check with a library. A file is written into ``folder``."""
    random = np.random.default_rng(0)
    shapes = {
        "token_embd.weight": (N_VOCAB, N_EMBD),
        "output_norm.weight": (N_EMBD,),
        "output.weight": (N_VOCAB, N_EMBD),
        "blk.0.attn_norm.weight": (N_EMBD,),
        "blk.0.ffn_norm.weight": (N_EMBD,),
        **{f"blk.0.attn_{role}.weight": (N_EMBD, N_EMBD) for role in ("q", "k", "v", "output")},
        **{f"blk.0.ffn_{role}.weight": (N_FF, N_EMBD) for role in ("gate", "up")},
        "blk.0.ffn_down.weight": (N_EMBD, N_FF),
    }
    tensors: dict[str, Floats] = {
        name: random.standard_normal(shape, np.float32) / np.float32(8) for name, shape in shapes.items()
    }
    path = folder / "check.gguf"
    stored = [StoredTensor(name, values.shape[::-1], F32) for name, values in tensors.items()]
    with GgufWriter(path, _metadata(), stored) as writer:
        for name, values in tensors.items():
            writer.write_at(name, 0, values)
        writer.commit()
    tokens = random.integers(0, N_VOCAB, N_TOKENS).astype(np.int32)
    offsets = struct_offsets(load_library(library))
    with LlamaModel(path, threads=1, n_ctx=N_TOKENS, library=library, _offsets=offsets) as model:
        sums = model.input_sums()
        model.sequence().evaluate(tokens, "none", sums=sums)
        matrices = {name for name, shape in shapes.items() if len(shape) > 1}
        if set(sums.all()) != matrices - {"token_embd.weight"}:
            raise SystemExit(f"the inputs seen are those of {sorted(sums.all())}")
        if sums.same_inputs().keys() != {f"blk.0.{role}.weight" for role in ("attn_k", "attn_v", "ffn_up")}:
            raise SystemExit(f"the inputs shared are {sums.same_inputs()}")
        squares, counts = sums.all()["blk.0.attn_q.weight"]
    rows = tensors["token_embd.weight"][tokens]
    rows = rows / np.sqrt((rows**2).mean(-1, keepdims=True) + EPSILON) * tensors["blk.0.attn_norm.weight"]
    if counts.tolist() != [N_TOKENS] or not np.allclose(squares[0], (rows**2).sum(0), rtol=TOLERANCE):
        raise SystemExit("the inputs of blk.0.attn_q.weight are not those of the model")


def _metadata() -> Metadata:
    keys: dict[str, int] = {
        "block_count": 1,
        "context_length": N_TOKENS,
        "embedding_length": N_EMBD,
        "feed_forward_length": N_FF,
        "attention.head_count": 2,
        "vocab_size": N_VOCAB,
    }
    pairs = Metadata().with_value("general.architecture", "llama", GGUFValueType.STRING)
    for key, value in keys.items():
        pairs = pairs.with_value(f"llama.{key}", value, GGUFValueType.UINT32)
    pairs = pairs.with_value("llama.attention.layer_norm_rms_epsilon", EPSILON, GGUFValueType.FLOAT32)
    return pairs.with_value("tokenizer.ggml.model", "none", GGUFValueType.STRING)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
