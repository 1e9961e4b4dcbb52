"""Small valid files of every kind, built from the definitions of the formats and with q4hifi's writers."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from functools import cache
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf.constants import GGUFValueType, TokenType
from tokenizers.pre_tokenizers import ByteLevel

from q4hifi.formats.layout import StoredTensor
from q4hifi.formats.types import TYPES
from q4hifi.gguf_io.header import data_offsets, header_bytes
from q4hifi.gguf_io.metadata import Metadata

from .mutate import Seed

Pairs = Sequence[tuple[str, Any, GGUFValueType]]
T = GGUFValueType

TEXT = "The quick brown fox jumps over the lazy dog, 12345 times; déjà vu! 中文 👍 \n" * 3


def gguf_file(pairs: Pairs, tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]) -> Seed:
    """Return a GGUF file.

    ``pairs``: key, value and type of each metadata entry. ``tensors``: name -> type, shape with the row
    length first, data.
    """
    metadata = Metadata()
    for key, value, kind in pairs:
        metadata = metadata.with_value(key, value, kind)
    stored = [StoredTensor(name, shape, TYPES[kind]) for name, (kind, shape, _) in tensors.items()]
    header = header_bytes(metadata, stored, 32)
    *offsets, size = data_offsets(stored, 32)
    data = bytearray(size)
    for tensor, offset in zip(stored, offsets, strict=True):
        content = tensors[tensor.name][2]
        assert len(content) == tensor.nbytes, tensor
        data[offset : offset + len(content)] = content
    return Seed.of(header + data, len(header))


def small_floats(n: int, dtype: str = "<f2") -> bytes:
    """Return the bytes of ``n`` floats between -0.1 and 0.1."""
    return (np.sin(np.arange(n) * 0.7) * 0.1).astype(dtype).tobytes()


@cache
def headers() -> list[Seed]:
    """Return small files whose headers contain every type of value and of array."""
    named: Pairs = [("general.architecture", "llama", T.STRING), ("llama.block_count", 1, T.UINT32)]
    scalars: Pairs = [
        ("a", 7, T.UINT8), ("b", -7, T.INT8), ("c", 700, T.UINT16), ("d", -700, T.INT16), ("e", 7, T.UINT32),
        ("f", -7, T.INT32), ("g", 0.5, T.FLOAT32), ("h", True, T.BOOL), ("i", "héllo", T.STRING),
        ("j", 7, T.UINT64), ("k", -7, T.INT64), ("l", 0.5, T.FLOAT64),
    ]  # fmt: skip
    arrays: Pairs = [
        ("strings", ["a", "", "abc" * 9], T.STRING),
        ("deep", [[[1, 2], [3]], [[4]]], T.INT32),
        ("empty", [], T.FLOAT32),
        ("bools", [True, False], T.BOOL),
        ("general.alignment", 32, T.UINT32),
    ]
    hifi: Pairs = [
        *named,
        ("general.file_type", 15, T.UINT32),
        ("q4_hifi.version", 1, T.UINT32),
        ("q4_hifi.layout", "split", T.STRING),
        ("q4_hifi.outliers", 2, T.UINT32),
        ("q4_hifi.ffn_down_coverage", 0.5, T.FLOAT32),
    ]
    f32 = {"w": ("F32", (8,), small_floats(8, "<f4")), "v": ("F16", (4, 2, 1, 1), small_floats(8))}
    base = bytes(144)
    split = {
        "blk.0.ffn_down.weight": ("Q4_K", (256, 1), base),
        "blk.0.ffn_down.weight.outlier_index": ("I8", (2, 1), bytes((1, 9))),
        "blk.0.ffn_down.weight.outlier_residual": ("F16", (2, 1), small_floats(2)),
    }
    return [
        gguf_file([*named, *scalars], f32),
        gguf_file([*named, *arrays], {"x": ("Q8_0", (32, 1), small_floats(17))}),
        gguf_file(hifi, split),
        gguf_file([], {}),
    ]


@cache
def shards() -> list[Seed]:
    """Return the two shards of a model."""
    files = []
    for number in range(2):
        pairs: Pairs = [
            ("general.architecture", "llama", T.STRING),
            ("llama.block_count", 1, T.UINT32),
            ("split.no", number, T.UINT16),
            ("split.count", 2, T.UINT16),
            ("split.tensors.count", 2, T.INT32),
        ]
        files.append(gguf_file(pairs, {f"blk.0.{number}.weight": ("F16", (4, 2), small_floats(8))}))
    return files


def vocabulary(model: str) -> Pairs:
    """Return the metadata of a byte-level vocabulary ("gpt2") or a SentencePiece one ("llama")."""
    words = ["th", "e", "he", "the", "o", "x"]
    if model == "gpt2":
        texts = [
            *sorted(ByteLevel.alphabet()),
            "th",
            "he",
            "the",
            "Ġthe",
            "<|im_start|>",
            "<|im_end|>",
            "<|endoftext|>",
        ]
        kinds = [TokenType.NORMAL] * (len(texts) - 3) + [TokenType.CONTROL] * 3
        extra: Pairs = [
            ("tokenizer.ggml.merges", ["t h", "h e", "th e", "Ġ the"], T.STRING),
            ("tokenizer.ggml.pre", "qwen2", T.STRING),
            ("tokenizer.ggml.eos_token_id", len(texts) - 1, T.UINT32),
            ("tokenizer.ggml.add_bos_token", False, T.BOOL),
        ]
    else:
        texts = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *words, "▁", "▁the", "q"]
        kinds = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
        kinds += [TokenType.BYTE] * 256 + [TokenType.NORMAL] * (len(texts) - 259)
        extra = [
            ("tokenizer.ggml.scores", [-float(i) for i in range(len(texts))], T.FLOAT32),
            ("tokenizer.ggml.bos_token_id", 1, T.UINT32),
            ("tokenizer.ggml.unknown_token_id", 0, T.UINT32),
            ("tokenizer.ggml.add_space_prefix", True, T.BOOL),
        ]
    texts, kinds = list(dict.fromkeys(texts)), kinds[: len(set(texts))]
    return [
        ("tokenizer.ggml.model", model, T.STRING),
        *extra,
        ("tokenizer.ggml.token_type", [int(kind) for kind in kinds], T.INT32),
        ("tokenizer.ggml.tokens", texts, T.STRING),
    ]


TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

N_EMBD = 32
PARTS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


@cache
def models() -> list[Seed]:
    """Return models that can be run: several architectures, and both types of vocabulary."""
    return [
        *(_model("llama", "gpt2"), _model("qwen3", "llama"), _model("gemma3", "gpt2")),
        _model("qwen3moe", "gpt2"),
    ]


def _model(architecture: str, model: str) -> Seed:
    words = vocabulary(model)
    n_vocab = len(next(value for key, value, _ in words if key.endswith("tokens")))
    counts = {
        "block_count": 1, "context_length": 64, "embedding_length": N_EMBD, "feed_forward_length": N_EMBD,
        "attention.head_count": 2, "attention.head_count_kv": 1, "attention.key_length": 16,
        "attention.value_length": 16, "rope.dimension_count": 16, "attention.sliding_window": 8,
        "vocab_size": n_vocab,
    }  # fmt: skip
    pairs: Pairs = [
        ("general.architecture", architecture, T.STRING),
        *((f"{architecture}.{key}", value, T.UINT32) for key, value in counts.items()),
        (f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5, T.FLOAT32),
        (f"{architecture}.rope.freq_base", 10000.0, T.FLOAT32),
        (f"{architecture}.rope.scaling.type", "yarn", T.STRING),
        (f"{architecture}.rope.scaling.factor", 2.0, T.FLOAT32),
        ("tokenizer.chat_template", TEMPLATE, T.STRING),
        *words,
    ]
    experts: tuple[int, ...] = (2,) if architecture == "qwen3moe" else ()
    if experts:
        keys = {"expert_count": 2, "expert_used_count": 1, "expert_feed_forward_length": N_EMBD}
        pairs += [(f"{architecture}.{key}", value, T.UINT32) for key, value in keys.items()]
    tensors = {"token_embd.weight": ("F16", (N_EMBD, n_vocab), small_floats(N_EMBD * n_vocab))}
    norms = ["attn_norm", "ffn_norm"]
    if architecture != "llama":
        norms += ["attn_q_norm", "attn_k_norm"]
    if architecture == "gemma3":
        norms += ["post_attention_norm", "post_ffw_norm"]
    for norm in norms:
        n = 16 if norm in ("attn_q_norm", "attn_k_norm") else N_EMBD
        tensors[f"blk.0.{norm}.weight"] = ("F32", (n,), np.ones(n, "<f4").tobytes())
    for part in PARTS:
        n = 16 if part in ("attn_k", "attn_v") else N_EMBD
        stack = experts if part.startswith("ffn") else ()
        shape = (N_EMBD, n, *stack)
        name = f"blk.0.{part}{'_exps' * len(stack)}.weight"
        tensors[name] = ("F16", shape, small_floats(prod(shape)))
    if experts:
        tensors["blk.0.ffn_gate_inp.weight"] = ("F32", (N_EMBD, 2), np.zeros(2 * N_EMBD, "<f4").tobytes())
    tensors["output_norm.weight"] = ("F32", (N_EMBD,), np.ones(N_EMBD, "<f4").tobytes())
    return gguf_file(pairs, tensors)


@cache
def blocks() -> list[Seed]:
    """Return models that together have a tensor of every type that can be decoded, with arbitrary bytes."""
    kinds = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL"]
    kinds += ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"]
    seeds = []
    for start in range(0, len(kinds), 5):
        tensors = {}
        for kind in kinds[start : start + 5]:
            n = StoredTensor("", (256,), TYPES[kind]).nbytes
            tensors[f"blk.0.{kind}.weight"] = (kind, (256, 1), (small_floats(n) * 2)[:n])
        pairs: Pairs = [("general.architecture", "llama", T.STRING), ("llama.block_count", 1, T.UINT32)]
        seed = gguf_file(pairs, tensors)
        seeds.append(Seed.of(seed.data))
    return [*seeds, Seed.of(headers()[2].data)]


IMATRIX_NAMES = ("blk.0.attn_q.weight", "blk.0.ffn_down.weight")


@cache
def imatrices() -> list[Seed]:
    """Return importance matrices in GGUF: of llama.cpp, of q4hifi with its own tensors, and of experts."""
    pairs: Pairs = [
        ("general.type", "imatrix", T.STRING),
        ("imatrix.datasets", ["text.txt"], T.STRING),
        ("imatrix.chunk_count", 3, T.UINT32),
        ("imatrix.chunk_size", 512, T.UINT32),
    ]
    sums = np.abs(np.frombuffer(small_floats(N_EMBD, "<f4"), "<f4")).tobytes()
    count = struct.pack("<f", 7.0)
    plain = {}
    for name in IMATRIX_NAMES:
        plain[f"{name}.in_sum2"] = ("F32", (N_EMBD, 1), sums)
        plain[f"{name}.counts"] = ("F32", (1, 1), count)
    own = dict(plain)
    for name in IMATRIX_NAMES:
        own[f"{name}.fisher"] = ("F32", (N_EMBD,), sums)
        own[f"{name}.fisher_counts"] = ("F32", (1,), count)
    pair_count = N_EMBD * (N_EMBD - 1) // 2
    own[f"{IMATRIX_NAMES[0]}.in_corr"] = ("I8", (pair_count,), bytes(i % 256 for i in range(pair_count)))
    own["output.weight.refine_sum2"] = ("F32", (N_EMBD, 1), sums)
    own["output.weight.refine_counts"] = ("F32", (1, 1), count)
    experts = {
        "blk.0.ffn_gate_exps.weight.in_sum2": ("F32", (8, 2), sums[:64]),
        "blk.0.ffn_gate_exps.weight.counts": ("F32", (1, 2), count + bytes(4)),
    }
    return [gguf_file(pairs, tensors) for tensors in (plain, own, experts)]


@cache
def old_imatrices() -> list[Seed]:
    """Return importance matrices in the older binary format, without and with its optional end."""
    data = struct.pack("<i", len(IMATRIX_NAMES))
    for name in map(str.encode, IMATRIX_NAMES):
        data += struct.pack("<i", len(name)) + name + struct.pack("<ii", 3, 8)
        data += struct.pack("<8f", *range(8))
    return [Seed.of(data), Seed.of(data + struct.pack("<ii", 3, 8) + b"text.txt")]


N_VOCAB, N_CTX, N_CHUNKS = 5, 8, 2


def tokens() -> npt.NDArray[np.uint32]:
    """Return the tokens of the base files, uint32 [n_chunks, n_ctx]."""
    return (np.arange(N_CHUNKS * N_CTX, dtype=np.uint32) % N_VOCAB).reshape(N_CHUNKS, N_CTX)


def _base_file(magic: bytes) -> bytes:
    rows = N_CHUNKS * (N_CTX - 1 - N_CTX // 2)
    row = struct.pack("<ff", 1e-4, -9.0) + struct.pack("<6H", 0, 9, 999, 65535, 40000, 0)
    head = struct.pack("<8siii", magic, N_CTX, N_VOCAB, N_CHUNKS)
    return head + tokens().astype("<i4").tobytes() + row * rows


@cache
def base_files() -> list[Seed]:
    """Return base files of log-probabilities."""
    return [Seed.of(_base_file(b"_logits_"), 84)]


@cache
def partial_files() -> list[Seed]:
    """Return partial base files, as interrupted runs leave them, with one and two chunks."""
    scores = bytes(8 * N_CHUNKS * (N_CTX - 1 - N_CTX // 2))
    return [Seed.of(_base_file(b"part" + struct.pack("<I", done)) + scores, 84) for done in (1, 2)]


@cache
def comparisons() -> list[Seed]:
    """Return the results of a comparison of a reference with one other model."""
    pairs: Pairs = [
        ("q4hifi.comparison.run", '{"text": "t"}', T.STRING),
        ("q4hifi.comparison.models", ["reference", "other"], T.STRING),
        ("q4hifi.comparison.chunks", [2, 2], T.UINT32),
    ]
    doubles = ("F64", (2 * N_CTX,), small_floats(2 * N_CTX, "<f8"))
    tensors = {f"{i}.rates": ("F64", (3,), small_floats(3, "<f8")) for i in range(2)}
    tensors |= {"0.nll": doubles} | {f"1.{name}": doubles for name in ("nll", "nll_base", "kld", "delta_p")}
    tensors["1.same_top"] = ("I8", (2 * N_CTX,), bytes(2 * N_CTX))
    return [gguf_file(pairs, tensors)]


def _json(value: Any) -> list[Seed]:
    return [Seed.of(json.dumps(value).encode())]


MATRICES = {
    name: {"probe": "Q4_K", "error": 0.005, "divergences": [[0.01, 0.09], [0.02, 0.1]]}
    for name in IMATRIX_NAMES
}
SETTING = {"model": "m", "text": "t", "importance": None, "n_ctx": 256, "group": 1}


@cache
def calibrations() -> list[Seed]:
    """Return the calibration of a model: measured divergences and sensitivities of its matrices."""
    sensitivities = dict.fromkeys(IMATRIX_NAMES, 0.02)
    return _json({"version": 1, **SETTING, "matrices": MATRICES, "sensitivities": sensitivities})


@cache
def shapes() -> list[Seed]:
    """Return the shapes of a model's tensors."""
    tensors = {"token_embd.weight": [256, 300], "output_norm.weight": [256]}
    tensors |= {f"blk.{i}.{part}.weight": [256, 256] for part in PARTS for i in range(2)}
    counts = {"block_count": 2, "head_count": 8, "head_count_kv": 2, "expert_count": 0}
    return _json({"architecture": "llama", **counts, "tensors": tensors})


@cache
def tensor_type_rules() -> list[Seed]:
    """Return files for ``--tensor-type-file``."""
    lines = "^blk\\.0\\.attn_q\\.weight$=q8_0\nattn_(v|k)=Q5_K\n\nffn_.*[0-9]+=f16\noutput=q6_k\n"
    return [Seed.of(lines.encode()), Seed.of(b"ffn_up=f32 token_embd=q4_0\r\n.*=q4_k")]


@cache
def templates() -> list[Seed]:
    """Return chat templates."""
    parts = (
        "{{ bos_token }}{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
        "{% set ns = namespace(n=0) %}{% macro f(x) %}{{ x | upper }}{% endmacro %}{{ f(messages[0].role) }}"
    )
    return [Seed.of(TEMPLATE.encode()), Seed.of(parts.encode())]


@cache
def texts() -> list[Seed]:
    """Return texts, valid UTF-8 and not."""
    return [Seed.of(TEXT.encode()), Seed.of(bytes(range(256))), Seed.of(b"<|im_start|>the </s>" * 5)]
