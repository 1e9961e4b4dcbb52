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
LATENT: Keys = {
    "attention.key_length": 288,
    "attention.value_length": 256,
    "attention.key_length_mla": 96,
    "attention.value_length_mla": 64,
    "attention.kv_lora_rank": 256,
    "rope.dimension_count": 32,
    "leading_dense_block_count": 1,
    "expert_shared_count": 1,
    "expert_gating_func": 2,
    "expert_weights_scale": 1.0,
}
"""Of multi-head latent attention, with shared experts after a dense first layer."""


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


def _gemma3n(layer: int) -> Shapes:
    per_layer: Shapes = {"inp_gate": (E, E), "proj": (E, E), "post_norm": (E,)}
    altup: Shapes = {
        "altup_correct_coef": (4, 4),
        "altup_correct_scale": (E,),
        "altup_predict_coef": (16, 4),
        "altup_router": (4, E),
        "altup_router_norm": (E,),
    }
    laurel: Shapes = {"laurel_l": (64, E), "laurel_r": (E, 64), "laurel_post_norm": (E,)}
    norms: Shapes = dict.fromkeys(("post_attention_norm", "ffn_norm", "post_ffw_norm"), (E,))
    heads: Shapes = {"attn_q_norm": (HEAD,), "attn_k_norm": (HEAD,)}
    return _attention() | heads | norms | _dense() | per_layer | altup | laurel


def _kimi_linear(layer: int) -> Shapes:
    rank, wide = 256, HEADS * HEAD
    parts: Shapes = {"attn_norm": (E,), "ffn_norm": (E,)}
    parts |= _dense() if layer == 0 else _experts() | _shared() | {"exp_probs_b.bias": (EXPERTS,)}
    if layer % 2:
        return parts | {
            "attn_kv_a_norm": (rank,),
            "attn_q": (HEADS * 96, E),
            "attn_kv_a_mqa": (rank + 32, E),
            "attn_k_b": (HEADS, rank, 64),
            "attn_v_b": (HEADS, 64, rank),
            "attn_output": (E, HEADS * 64),
        }
    return parts | {
        **{f"ssm_conv1d_{name}": (wide, 1, 4) for name in "qkv"},
        **{f"attn_{name}": (wide, E) for name in "qkv"},
        **{f"ssm_{name}_a": (HEAD, E) for name in "fg"},
        **{f"ssm_{name}_b": (wide, HEAD) for name in "fg"},
        "ssm_beta": (HEADS, E),
        "ssm_a=": (HEADS, 1),
        "ssm_dt.bias": (wide,),
        "ssm_norm": (HEAD,),
        "attn_output": (E, wide),
    }  # fmt: skip


def _nemotron_h_moe(layer: int) -> Shapes:
    norm: Shapes = {"attn_norm": (E,)}
    if layer % 3 == 1:
        return _attention()
    if layer % 3 == 2:
        stacks: Shapes = {"ffn_up_exps": (EXPERTS, FF, E), "ffn_down_exps": (EXPERTS, E, FF)}
        shared: Shapes = {"ffn_up_shexp": (FF, E), "ffn_down_shexp": (E, FF)}
        latent: Shapes = {"ffn_latent_down": (E, E), "ffn_latent_up": (E, E)}
        router: Shapes = {"ffn_gate_inp": (EXPERTS, E), "exp_probs_b.bias": (EXPERTS,)}
        return norm | stacks | shared | latent | router
    return {name: shape for name, shape in _granitehybrid(0).items() if name.startswith("ssm_")} | norm


def _rwkv7(layer: int) -> Shapes:
    vectors = ("w0", "a0", "v0", "k_k", "k_a", "r_k", "ln")
    ranks = {"w": 64, "a": 64, "v": 32 if layer else 64, "g": 128}
    biases: Shapes = {f"{name}.bias": (E,) for name in ("attn_norm", "attn_norm_2", "time_mix_ln")}
    return biases | {
        "attn_norm": (E,),
        "attn_norm_2": (E,),
        **{f"time_mix_{name}": (E,) for name in vectors},
        **{f"time_mix_{name}1": (rank, E) for name, rank in ranks.items()},
        **{f"time_mix_{name}2": (E, rank) for name, rank in ranks.items()},
        "time_mix_lerp_fused": (6, 1, 1, E),
        **{f"time_mix_{name}": (E, E) for name in ("key", "value", "receptance", "output")},
        "channel_mix_lerp_k": (E,),
        "channel_mix_key": (FF, E),
        "channel_mix_value": (E, FF),
    }


def _dream(layer: int) -> Shapes:
    return _attention(ffn_norm=(E,)) | _dense()


MTP: Shapes = {"nextn.eh_proj": (E, 2 * E), "nextn.enorm": (E,), "nextn.hnorm": (E,)}
"""Further tensors of a layer for multi-token prediction."""


def _bert(layer: int) -> Shapes:
    norms: Shapes = {"attn_output_norm": (E,), "layer_output_norm": (E,)}
    attention = {name: shape for name, shape in _attention().items() if "norm" not in name}
    return (
        norms
        | {f"{name}.bias": (E,) for name in norms}
        | attention
        | {"ffn_up": (FF, E), "ffn_down": (E, FF)}
    )


def _t5(layer: int) -> Shapes:
    norms: Shapes = {"attn_norm": (E,), "ffn_norm": (E,), "attn_rel_b": (32, HEADS)}
    return norms | {f"attn_{name}": (E, E) for name in ("q", "k", "v", "o")} | _dense()


def _t5_decoder() -> Shapes:
    cross: Shapes = {f"cross_attn_{name}": (E, E) for name in ("q", "k", "v", "o")}
    layers = range(N_LAYER)
    inside = _t5(0) | cross | {"cross_attn_norm": (E,)}
    return {f"dec.blk.{i}.{name}": shape for i in layers for name, shape in inside.items()}


ARCHITECTURES: Mapping[str, tuple[Callable[[int], Shapes], Keys]] = {
    "deepseek2": (
        _deepseek2,
        ATTENTION | MIXTURE | LATENT | {"attention.head_count_kv": 1, "attention.q_lora_rank": 128},
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
    "dream": (_dream, ATTENTION),
    "gemma3n": (
        _gemma3n,
        ATTENTION | {"attention.sliding_window": 32, "embedding_length_per_layer_input": E},
    ),
    "kimi-linear": (
        _kimi_linear,
        ATTENTION
        | MIXTURE
        | LATENT
        | {"attention.head_count_kv": [0, 1], "ssm.conv_kernel": 4, "kda.head_dim": HEAD},
    ),
    "nemotron_h_moe": (
        _nemotron_h_moe,
        ATTENTION
        | MIXTURE
        | {
            "attention.head_count_kv": [0, KV, 0],
            "attention.layer_norm_epsilon": 1e-5,
            "feed_forward_length": [0, 0, FF],
            "expert_shared_feed_forward_length": FF,
            "expert_shared_count": 1,
            "expert_weights_norm": True,
            "expert_weights_scale": 1.0,
            "ssm.conv_kernel": 4,
            "ssm.inner_size": 2 * E,
            "ssm.state_size": 64,
            "ssm.time_step_rank": 8,
            "ssm.group_count": 1,
        },
    ),
    "rwkv7": (
        _rwkv7,
        {
            "attention.head_count": 0,
            "attention.layer_norm_epsilon": 1e-5,
            "wkv.head_size": HEAD,
            "attention.decay_lora_rank": 64,
            "attention.iclr_lora_rank": 64,
            "attention.value_residual_mix_lora_rank": 32,
            "attention.gate_lora_rank": 128,
            "token_shift_count": 2,
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

_T5: Keys = ATTENTION | {"attention.head_count_kv": HEADS, "attention.relative_buckets_count": 32}

ENCODERS: Mapping[str, tuple[Callable[[int], Shapes], Keys]] = {
    "bert": (_bert, ATTENTION | {"attention.causal": False, "attention.layer_norm_epsilon": 1e-5}),
    "t5encoder": (_t5, _T5),
}
"""The same for architectures that predict no tokens."""

NOT_RUN: Mapping[str, tuple[Callable[[int], Shapes], Keys]] = {"t5": (_t5, _T5)}
"""The same for architectures that llama.cpp runs, but q4hifi does not."""

LAYERS: Mapping[str, int] = {"gemma3n": 4, "nemotron_h_moe": 3}
"""Architecture -> its number of layers, if that is not :data:`N_LAYER`."""

PREFIXES: Mapping[str, str] = {"t5": "enc.", "t5encoder": "enc."}
"""Architecture -> what its names of layers begin with."""

OUTSIDE: Mapping[str, tuple[set[str], Shapes]] = {
    "bert": (
        {"output", "output_norm"},
        {
            "token_embd_norm": (E,),
            "token_embd_norm.bias": (E,),
            "position_embd": (512, E),
            "token_types": (2, E),
        },
    ),
    "gemma3n": (
        {"output"},
        {
            "altup_proj": (3, E, E),
            "altup_unembd_proj": (3, E, E),
            "per_layer_token_embd": (VOCAB, 4 * E),
            "per_layer_model_proj": (4 * E, E),
            "per_layer_proj_norm": (E,),
        },
    ),
    "lfm2": ({"output", "output_norm"}, {"token_embd_norm": (E,)}),
    "rwkv7": (set(), {"token_embd_norm": (E,), "token_embd_norm.bias": (E,), "output_norm.bias": (E,)}),
    "t5": (
        {"output", "output_norm"},
        {"enc.output_norm": (E,), "dec.output_norm": (E,)} | _t5_decoder(),
    ),
    "t5encoder": ({"output", "output_norm"}, {"enc.output_norm": (E,)}),
}
"""Architecture -> which of the usual tensors outside the layers it has not, and further ones that it has."""


def write_architecture(
    path: Path,
    architecture: str,
    *,
    vocabulary: bool = False,
    kind: str = "F16",
    more: Shapes | None = None,
    n_layer: int | None = None,
    mtp: int = 0,
) -> Path:
    """Write a model of a few layers, or ``n_layer``, and about 2 M random weights.

    With ``vocabulary`` it has the tokenizer of the example model, else only a number of tokens. ``more``:
    further tensors. ``mtp``: further layers, for multi-token prediction.
    """
    shapes_of, keys = {**ARCHITECTURES, **ENCODERS, **NOT_RUN}[architecture]
    n_layer = (n_layer or LAYERS.get(architecture, N_LAYER)) + mtp
    keys = {k: [v[i % len(v)] for i in range(n_layer)] if type(v) is list else v for k, v in keys.items()}
    if mtp:
        keys = keys | {"nextn_predict_layers": mtp}
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
    absent, others = OUTSIDE.get(architecture, (set(), {}))
    usual: Shapes = {"token_embd": (n_vocab, E), "output_norm": (E,), "output": (n_vocab, E)}
    shapes = {name: shape for name, shape in usual.items() if name not in absent} | others | (more or {})
    if "token_types" in shapes:
        tokens.append(("tokenizer.ggml.token_type_count", shapes["token_types"][0], GGUFValueType.UINT32))
    if "per_layer_token_embd" in shapes:
        shapes["per_layer_token_embd"] = (n_vocab, n_layer * E)
    for layer in range(n_layer):
        prefix = PREFIXES.get(architecture, "") + f"blk.{layer}."
        inside = shapes_of(layer) | (MTP if layer >= n_layer - mtp else {})
        shapes |= {prefix + name: shape for name, shape in inside.items()}
    tensors = {
        name.removesuffix("=") if name.endswith(("=", ".bias")) else name + ".weight": _weights(
            rng, name, shape
        )
        for name, shape in shapes.items()
    }
    return write_model(
        path, tensors, kind=kind, architecture=architecture, n_layer=n_layer, pairs=[*pairs, *tokens],
        kept=_is_small,
    )  # fmt: skip


def _is_small(name: str) -> bool:
    """Return whether llama.cpp wants a tensor of two dimensions in F32."""
    parts = (
        *("ssm_conv1d", "ssm_norm", "shortconv.conv.", "_inp.", "token_types", "position_embd"),
        *("altup_correct_coef", "altup_predict_coef", "time_mix_lerp", "attn_rel_b"),
    )
    return not name.endswith(".weight") or any(part in name for part in parts)


def _weights(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    if "norm" in name and not name.endswith(".bias"):
        return np.ones(shape, np.float32)
    if name.endswith("ssm_a="):
        return -np.broadcast_to(np.arange(1, shape[-1] + 1, dtype=np.float32), shape)
    if name.endswith(("=", ".bias")):
        return np.full(shape, 0.02, np.float32)
    return (rng.standard_normal(shape) / shape[-1] ** 0.5).astype(np.float32)


def _type_of(value: Any) -> GGUFValueType:
    if isinstance(value, list):
        return GGUFValueType.ARRAY
    if isinstance(value, bool):
        return GGUFValueType.BOOL
    return GGUFValueType.FLOAT32 if isinstance(value, float) else GGUFValueType.UINT32


def _tokenizer() -> list[Pair]:
    fields = GGUFReader(EXAMPLE).fields
    return [
        (key, field.contents(), field.types[0])
        for key, field in fields.items()
        if key.startswith("tokenizer.")
    ]
