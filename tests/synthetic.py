"""Small models and importance matrices made for tests by the gguf package, and model files taken apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFValueType

from q4hifi.formats.layout import StoredTensor
from q4hifi.formats.types import TYPES
from q4hifi.gguf_io.header import data_offsets, header_bytes
from q4hifi.gguf_io.reader import GgufFile, Metadata

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "tiny-qwen3-f16.gguf"

Floats = npt.NDArray[np.float32]
Pair = tuple[str, Any, GGUFValueType]


def random_weights(*shape: int, seed: int = 0) -> Floats:
    """Return heavy-tailed float32 weights, as trained ones are; every one is exact in F16 and BF16."""
    weights = np.random.default_rng(seed).standard_t(4, shape).astype(np.float32) * 0.05
    return np.ldexp(np.round(np.ldexp(weights, 10)), -10).clip(-0.25, 0.25).astype(np.float32)


def write_model(
    path: Path,
    tensors: Mapping[str, npt.NDArray[Any]],
    *,
    kind: str = "F16",
    architecture: str = "llama",
    n_layer: int = 1,
    pairs: Iterable[Pair] = (),
    kept: Callable[[str], bool] = lambda name: False,
    **options: Any,
) -> Path:
    """Write a model: matrices as ``kind``, vectors and the ``kept`` tensors as F32."""
    writer = gguf.GGUFWriter(path, architecture, **options)
    writer.add_block_count(n_layer)
    for key, value, value_type in pairs:
        writer.add_key_value(key, value, value_type)
    for name, data in tensors.items():
        stored = GGMLQuantizationType[kind if data.ndim > 1 and not kept(name) else "F32"]
        encoded = gguf.quants.quantize(data.astype(np.float32), stored)
        raw = None if encoded.dtype in (np.float32, np.float16) else stored
        writer.add_tensor(name, encoded, raw_dtype=raw)
    finish(writer)
    return path


def write_small_model(path: Path, **options: Any) -> Path:
    """Write a model of two layers and 0.3 M weights, with tensors that differ in every recipe."""
    shapes = {"attn_q": (64, 256), "attn_v": (64, 256), "ffn_down": (96, 512), "attn_norm": (256,)}
    tensors = {"token_embd.weight": random_weights(300, 256, seed=9)}
    for layer in range(2):
        for part, shape in shapes.items():
            tensors[f"blk.{layer}.{part}.weight"] = random_weights(*shape, seed=layer)
    return write_model(path, tensors, n_layer=2, **options)


def write_imatrix(
    path: Path,
    entries: Mapping[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]],
    *,
    dataset: str = "calibration.txt",
    chunks: int = 7,
) -> Path:
    """Write an importance matrix: name -> sums [n_matrices, n_in], counts [n_matrices]."""
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", [dataset])
    writer.add_uint32("imatrix.chunk_count", chunks)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, (sums, counts) in entries.items():
        writer.add_tensor(f"{name}.in_sum2", np.atleast_2d(sums).astype(np.float32))
        writer.add_tensor(f"{name}.counts", np.asarray(counts, np.float32).reshape(-1, 1))
    finish(writer)
    return path


def write_stored(
    path: Path,
    stored: Mapping[str, tuple[str, tuple[int, ...]]],
    *,
    pairs: Iterable[Pair] = (),
    data: Mapping[str, bytes] | None = None,
) -> Path:
    """Write tensors, name -> type and shape with the row length last, of ``data`` or else of zeros.

    Only places of outliers (I8) are not zero, but in order.
    """
    tensors = [StoredTensor(name, shape[::-1], TYPES[kind]) for name, (kind, shape) in stored.items()]
    *offsets, size = data_offsets(tensors, 32)
    content = bytearray(size)
    for tensor, offset in zip(tensors, offsets, strict=True):
        given = (data or {}).get(tensor.name)
        if given is not None:
            assert len(given) == tensor.nbytes
            content[offset : offset + tensor.nbytes] = given
        elif tensor.type.name == "I8" and tensor.nbytes:
            n = tensor.shape[0]
            content[offset : offset + tensor.nbytes] = bytes(range(n)) * (tensor.nbytes // n)
    metadata = Metadata()
    for key, value, kind_of_value in pairs:
        metadata = metadata.with_value(key, value, kind_of_value)
    path.write_bytes(header_bytes(metadata, tensors, 32) + content)
    return path


def write_first_layers(path: Path, n_layer: int = 2) -> Path:
    """Write the example model without its later layers, for tests to which its size does not matter."""
    with GgufFile.open(EXAMPLE) as model:
        tensors = [
            tensor
            for name, tensor in model.tensors.items()
            if not name.startswith("blk.") or int(name.split(".")[1]) < n_layer
        ]
        metadata = model.metadata.with_value("qwen3.block_count", n_layer, GGUFValueType.UINT32)
        data = (model.read(tensor).tobytes() for tensor in tensors)
        padded_data = (one.ljust(-(-len(one) // 32) * 32, b"\0") for one in data)
        path.write_bytes(header_bytes(metadata, tensors, 32) + b"".join(padded_data))
    return path


def random_sums(n_matrices: int, n_in: int, counts: Iterable[int], *, seed: int) -> Floats:
    """Return sums of squares over ``counts`` tokens, a few columns much larger than the rest."""
    means = np.random.default_rng(seed).lognormal(0, 2, (n_matrices, n_in))
    return (means * np.array(list(counts))[:, np.newaxis]).astype(np.float32)


def finish(writer: gguf.GGUFWriter) -> None:
    """Write the file of the gguf package's writer."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Stored(NamedTuple):
    """A tensor as it stands in a file; ``shape`` has the row length first. Two are equal if all is."""

    type_name: str
    type_id: int
    shape: tuple[int, ...]
    data: bytes

    def weights(self) -> Floats:
        """Return its weights as the gguf package decodes them: float32, row length last."""
        rows = np.frombuffer(self.data, np.uint8).reshape(*self.shape[:0:-1], -1)
        return gguf.quants.dequantize(rows, GGMLQuantizationType(self.type_id)).astype(np.float32, copy=False)


def read_tensors(path: Path) -> dict[str, Stored]:
    """Return the stored tensors of one file, or of a model by one of its shards, in their order.

    Read by q4hifi's own reader, which test_gguf_io.py holds against the gguf package's slower one.
    """
    with GgufFile.open(path) as model:
        return {
            name: Stored(t.type.name, t.type.id, t.shape, model.read(t).tobytes())
            for name, t in model.tensors.items()
        }


def read_pairs(path: Path) -> dict[str, bytes]:
    """Return the metadata of a model, key -> its pair as it stands in the file."""
    with GgufFile.open(path) as model:
        return {key: model.metadata.raw(key) for key in model.metadata}


def names_in(folder: Path) -> set[str]:
    """Return the names of all files in ``folder``."""
    return {path.name for path in folder.iterdir()}


def patch(path: Path, offset: int, data: bytes) -> None:
    """Overwrite bytes of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def write_runnable(
    path: Path,
    architecture: str,
    *,
    n_layer: int = 3,
    n_embd: int = 256,
    n_ff: int = 512,
    heads: tuple[int, int] = (8, 2),
    head_size: int = 32,
    n_vocab: int = 320,
    n_ctx: int = 512,
    kind: str = "F32",
    biases: Iterable[str] = (),
    norms: Iterable[str] = (),
    factors: npt.NDArray[np.float32] | None = None,
    tied: bool = False,
    experts: tuple[int, int] | None = None,
    pairs: Mapping[str, tuple[Any, GGUFValueType]] | None = None,
) -> Path:
    """Write a model of random weights that llama.cpp runs too; it has no vocabulary but its size.

    ``biases`` and ``norms`` name the optional tensors of a layer, ``pairs`` keys of the architecture.
    ``experts``: how many there are, and how many a token uses; None for a dense model.
    """
    n_head, n_kv = heads
    rng = np.random.default_rng(len(architecture))

    def matrix(*shape: int) -> Floats:
        return (rng.standard_normal(shape) / shape[-1] ** 0.5).astype(np.float32)

    def vector(n: int, around: float = 1.0) -> Floats:
        return (around + 0.2 * rng.standard_normal(n)).astype(np.float32)

    shapes: dict[str, tuple[int, ...]] = {
        "attn_q": (n_head * head_size, n_embd),
        "attn_k": (n_kv * head_size, n_embd),
        "attn_v": (n_kv * head_size, n_embd),
        "attn_output": (n_embd, n_head * head_size),
    }
    network = {"ffn_gate": (n_ff, n_embd), "ffn_up": (n_ff, n_embd), "ffn_down": (n_embd, n_ff)}
    if experts is None:
        shapes |= network
    else:
        shapes["ffn_gate_inp"] = (experts[0], n_embd)
        shapes |= {f"{name}_exps": (experts[0], *shape) for name, shape in network.items()}
    tensors = {"token_embd.weight": matrix(n_vocab, n_embd), "output_norm.weight": vector(n_embd)}
    if not tied:
        tensors["output.weight"] = 4 * matrix(n_vocab, n_embd)
    if factors is not None:
        tensors["rope_freqs.weight"] = factors
    for layer in range(n_layer):
        for norm in ("attn_norm", "ffn_norm", *norms):
            size = head_size if norm in ("attn_q_norm", "attn_k_norm") else n_embd
            tensors[f"blk.{layer}.{norm}.weight"] = vector(size)
        for name, shape in shapes.items():
            tensors[f"blk.{layer}.{name}.weight"] = matrix(*shape)
        for name in biases:
            tensors[f"blk.{layer}.{name}.bias"] = vector(shapes[name][0], 0.0)
    u32, f32 = GGUFValueType.UINT32, GGUFValueType.FLOAT32
    keys = {
        "context_length": (n_ctx, u32),
        "embedding_length": (n_embd, u32),
        "feed_forward_length": (n_ff, u32),
        "attention.head_count": (n_head, u32),
        "attention.head_count_kv": (n_kv, u32),
        "attention.key_length": (head_size, u32),
        "attention.value_length": (head_size, u32),
        "rope.dimension_count": (head_size, u32),
        "attention.layer_norm_rms_epsilon": (1e-5, f32),
        "vocab_size": (n_vocab, u32),
    }
    if experts is not None:
        keys["expert_count"], keys["expert_used_count"] = ((n, u32) for n in experts)
        keys["expert_feed_forward_length"] = (n_ff, u32)
    keys |= dict(pairs or {})
    own = [(f"{architecture}.{key}", value, value_type) for key, (value, value_type) in keys.items()]
    none = ("tokenizer.ggml.model", "none", GGUFValueType.STRING)
    return write_model(
        path, tensors, kind=kind, architecture=architecture, n_layer=n_layer, pairs=[*own, none],
        kept=lambda name: "_inp." in name,
    )  # fmt: skip
