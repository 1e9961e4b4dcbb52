"""Small models of random weights of many architectures, which llama.cpp runs: :func:`write_architecture`.

Each architecture is a function that returns its keys and the shapes of the tensors of a layer. Shapes are
[rows, columns], or [experts, rows, columns].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader, GGUFValueType

from synthetic import EXAMPLE, Pair, write_model

Shapes = dict[str, tuple[int, ...]]
Keys = dict[str, Any]

E, FF, VOCAB, HEADS, KV, HEAD = 256, 256, 320, 4, 2, 64
EXPERTS, USED = 8, 2
N_LAYER = 2

ATTENTION: Keys = {
    "attention.head_count": HEADS,
    "attention.head_count_kv": KV,
    "attention.key_length": HEAD,
    "attention.value_length": HEAD,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 10000.0,
}
MIXTURE: Keys = {"expert_count": EXPERTS, "expert_used_count": USED, "expert_feed_forward_length": FF}


def _attention(**others: tuple[int, ...]) -> Shapes:
    shapes: Shapes = {"attn_norm": (E,), "attn_q": (HEADS * HEAD, E), "attn_k": (KV * HEAD, E)}
    return {**shapes, "attn_v": (KV * HEAD, E), "attn_output": (E, HEADS * HEAD), **others}


def _dense() -> Shapes:
    return {"ffn_gate": (FF, E), "ffn_up": (FF, E), "ffn_down": (E, FF)}


def _experts(n: int = EXPERTS) -> Shapes:
    stacks = {"ffn_gate_exps": (n, FF, E), "ffn_up_exps": (n, FF, E), "ffn_down_exps": (n, E, FF)}
    return {"ffn_gate_inp": (n, E), **stacks}


def _shared() -> Shapes:
    return {f"{name}_shexp": shape for name, shape in _dense().items()}


def _qwen3moe(layer: int) -> Shapes:
    return _attention(ffn_norm=(E,), attn_q_norm=(HEAD,), attn_k_norm=(HEAD,)) | _experts()


def _olmoe(layer: int) -> Shapes:
    attention = _attention(ffn_norm=(E,), attn_q_norm=(HEADS * HEAD,), attn_k_norm=(HEADS * HEAD,))
    return attention | {"attn_k": (HEADS * HEAD, E), "attn_v": (HEADS * HEAD, E)} | _experts()


def _gpt_oss(layer: int) -> Shapes:
    biases: Shapes = {
        "attn_q.bias": (HEADS * HEAD,),
        "attn_k.bias": (KV * HEAD,),
        "attn_v.bias": (KV * HEAD,),
        "attn_output.bias": (E,),
        "attn_sinks": (HEADS,),
        "ffn_gate_inp.bias": (EXPERTS,),
        **{f"ffn_{name}_exps.bias": (EXPERTS, FF) for name in ("gate", "up")},
        "ffn_down_exps.bias": (EXPERTS, E),
    }
    return _attention(post_attention_norm=(E,)) | _experts() | biases


def _mamba(layer: int) -> Shapes:
    inner, state, rank = 2 * E, 16, 16
    return {
        "attn_norm": (E,),
        "ssm_in": (2 * inner, E),
        "ssm_conv1d": (inner, 4),
        "ssm_conv1d.bias": (inner,),
        "ssm_x": (rank + 2 * state, inner),
        "ssm_dt": (inner, rank),
        "ssm_dt.bias": (inner,),
        "ssm_a=": (inner, state),
        "ssm_d=": (inner,),
        "ssm_out": (E, inner),
    }


def _lfm2(layer: int) -> Shapes:
    norms: Shapes = {"attn_norm": (E,), "ffn_norm": (E,)}
    if layer % 2:
        return _attention(ffn_norm=(E,), attn_q_norm=(HEAD,), attn_k_norm=(HEAD,)) | _dense()
    convolution: Shapes = {
        "shortconv.conv": (E, 3),
        "shortconv.in_proj": (3 * E, E),
        "shortconv.out_proj": (E, E),
    }
    return norms | convolution | _dense()


def _qwen3next(layer: int) -> Shapes:
    state, groups, rank = 64, 2, 4
    inner, mixed = state * rank, 2 * state * groups + state * rank
    mixture = _experts() | _shared() | {"ffn_gate_inp_shexp": (E,), "post_attention_norm": (E,)}
    if layer % 2:
        gated = {"attn_q": (2 * HEADS * HEAD, E), "attn_q_norm": (HEAD,), "attn_k_norm": (HEAD,)}
        return _attention() | gated | mixture
    return mixture | {
        "attn_norm": (E,),
        "attn_qkv": (mixed, E),
        "attn_gate": (inner, E),
        "ssm_conv1d": (mixed, 4),
        "ssm_dt.bias": (rank,),
        "ssm_a=": (rank,),
        "ssm_ba": (2 * rank, E),
        "ssm_norm": (state,),
        "ssm_out": (E, inner),
    }


def _deepseek2(layer: int) -> Shapes:
    nope, rope, value, q_rank, kv_rank = 64, 32, 64, 128, 256
    mla: Shapes = {
        "attn_norm": (E,),
        "attn_q_a_norm": (q_rank,),
        "attn_kv_a_norm": (kv_rank,),
        "ffn_norm": (E,),
        "attn_q_a": (q_rank, E),
        "attn_q_b": (HEADS * (nope + rope), q_rank),
        "attn_kv_a_mqa": (kv_rank + rope, E),
        "attn_k_b": (HEADS, kv_rank, nope),
        "attn_v_b": (HEADS, value, kv_rank),
        "attn_output": (E, HEADS * value),
    }
    if layer == 0:
        return mla | _dense()
    return mla | _experts() | _shared() | {"exp_probs_b.bias": (EXPERTS,)}


def _granitehybrid(layer: int) -> Shapes:
    mixture = {"ffn_norm": (E,)} | _experts() | _shared()
    if layer % 2:
        return _attention() | mixture
    inner, state, groups, n_heads = 2 * E, 64, 1, 8
    mixed = inner + 2 * groups * state
    return mixture | {
        "attn_norm": (E,),
        "ssm_in": (inner + mixed + n_heads, E),
        "ssm_conv1d": (mixed, 4),
        "ssm_conv1d.bias": (mixed,),
        "ssm_dt.bias": (n_heads,),
        "ssm_a=": (n_heads, 1),
        "ssm_d=": (n_heads, 1),
        "ssm_norm": (groups, inner // groups),
        "ssm_out": (E, inner),
    }


def _glm4moe(layer: int) -> Shapes:
    attention = _attention(post_attention_norm=(E,))
    attention |= {f"attn_{x}.bias": (n * HEAD,) for x, n in (("q", HEADS), ("k", KV), ("v", KV))}
    if layer == 0:
        return attention | _dense()
    return attention | _experts() | _shared() | {"exp_probs_b.bias": (EXPERTS,)}


ARCHITECTURES: Mapping[str, tuple[Callable[[int], Shapes], Keys]] = {
    "deepseek2": (
        _deepseek2,
        ATTENTION
        | MIXTURE
        | {
            "attention.head_count_kv": 1,
            "attention.key_length": 288,
            "attention.value_length": 256,
            "attention.key_length_mla": 96,
            "attention.value_length_mla": 64,
            "attention.q_lora_rank": 128,
            "attention.kv_lora_rank": 256,
            "rope.dimension_count": 32,
            "leading_dense_block_count": 1,
            "expert_shared_count": 1,
            "expert_gating_func": 2,
            "expert_weights_scale": 1.0,
        },
    ),
    "glm4moe": (
        _glm4moe,
        ATTENTION
        | MIXTURE
        | {
            "rope.dimension_count": 32,
            "leading_dense_block_count": 1,
            "expert_shared_count": 1,
            "expert_gating_func": 2,
            "expert_weights_scale": 1.0,
        },
    ),
    "gpt-oss": (_gpt_oss, ATTENTION | MIXTURE | {"attention.sliding_window": 128}),
    "granitehybrid": (
        _granitehybrid,
        ATTENTION
        | MIXTURE
        | {
            "attention.head_count_kv": [0, KV],
            "ssm.conv_kernel": 4,
            "ssm.inner_size": 2 * E,
            "ssm.state_size": 64,
            "ssm.time_step_rank": 8,
            "ssm.group_count": 1,
            "expert_shared_feed_forward_length": FF,
            "embedding_scale": 1.0,
            "residual_scale": 1.0,
            "logit_scale": 1.0,
            "attention.scale": 0.125,
        },
    ),
    "lfm2": (_lfm2, ATTENTION | {"attention.head_count_kv": [0, KV], "shortconv.l_cache": 3}),
    "mamba": (
        _mamba,
        {
            "attention.head_count": 0,
            "ssm.conv_kernel": 4,
            "ssm.inner_size": 2 * E,
            "ssm.state_size": 16,
            "ssm.time_step_rank": 16,
            "attention.layer_norm_rms_epsilon": 1e-5,
        },
    ),
    "olmoe": (_olmoe, ATTENTION | MIXTURE | {"attention.head_count_kv": HEADS}),
    "qwen3moe": (_qwen3moe, ATTENTION | MIXTURE),
    "qwen3next": (
        _qwen3next,
        ATTENTION
        | MIXTURE
        | {
            "rope.dimension_count": 16,
            "full_attention_interval": 2,
            "expert_shared_feed_forward_length": FF,
            "ssm.conv_kernel": 4,
            "ssm.state_size": 64,
            "ssm.group_count": 2,
            "ssm.time_step_rank": 4,
            "ssm.inner_size": 256,
        },
    ),
}
"""Architecture -> the shapes of a layer's tensors, and the architecture's keys.

A name with "=" at its end is that of a tensor without ".weight"."""


def write_architecture(
    path: Path, architecture: str, *, vocabulary: bool = False, kind: str = "F16", n_layer: int = N_LAYER
) -> Path:
    """Write a model of two layers, or ``n_layer``, and about 2 M random weights.

    With ``vocabulary`` it has the tokenizer of the example model, else only a number of tokens.
    """
    shapes_of, keys = ARCHITECTURES[architecture]
    keys = {k: [v[i % N_LAYER] for i in range(n_layer)] if type(v) is list else v for k, v in keys.items()}
    rng = np.random.default_rng(len(architecture))
    tokens = _tokenizer() if vocabulary else [("tokenizer.ggml.model", "none", GGUFValueType.STRING)]
    n_vocab = 4096 if vocabulary else VOCAB
    common = {
        "context_length": 512,
        "embedding_length": E,
        "feed_forward_length": FF,
        "vocab_size": n_vocab,
    }
    pairs = [(f"{architecture}.{key}", value, _type_of(value)) for key, value in (common | keys).items()]
    tensors = {
        "token_embd.weight": _weights(rng, "token_embd", (n_vocab, E)),
        "output_norm.weight": np.ones(E, np.float32),
        "output.weight": _weights(rng, "output", (n_vocab, E)),
    }
    if architecture == "lfm2":
        tensors["token_embd_norm.weight"] = tensors.pop("output_norm.weight")
        del tensors["output.weight"]
    for layer in range(n_layer):
        for name, shape in shapes_of(layer).items():
            stored = name.removesuffix("=") if name.endswith(("=", ".bias")) else name + ".weight"
            tensors[f"blk.{layer}.{stored}"] = _weights(rng, name, shape)
    return write_model(
        path, tensors, kind=kind, architecture=architecture, n_layer=n_layer, pairs=[*pairs, *tokens],
        kept=_is_small,
    )  # fmt: skip


def _is_small(name: str) -> bool:
    """Return whether llama.cpp wants a tensor of two dimensions in F32."""
    parts = ("ssm_conv1d", "ssm_norm", "shortconv.conv.", "_inp.")
    return not name.endswith(".weight") or any(part in name for part in parts)


def _weights(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    if "norm" in name:
        return np.ones(shape, np.float32)
    if name == "ssm_a=":
        return -np.broadcast_to(np.arange(1, shape[-1] + 1, dtype=np.float32), shape)
    if name.endswith(("=", ".bias")):
        return np.full(shape, 0.02, np.float32)
    return (rng.standard_normal(shape) / shape[-1] ** 0.5).astype(np.float32)


def _type_of(value: Any) -> GGUFValueType:
    if isinstance(value, list):
        return GGUFValueType.ARRAY
    return GGUFValueType.FLOAT32 if isinstance(value, float) else GGUFValueType.UINT32


def _tokenizer() -> list[Pair]:
    fields = GGUFReader(EXAMPLE).fields
    return [
        (key, field.contents(), field.types[0])
        for key, field in fields.items()
        if key.startswith("tokenizer.")
    ]
