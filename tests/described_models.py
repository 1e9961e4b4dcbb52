"""Models of many architectures: names and shapes of their tensors, and metadata, without weights.

Shapes have the row length first, and are small. The recorder of llama-quantize's decisions writes these
models, and the tests plan them.
"""

from __future__ import annotations

import re
from itertools import groupby

# --- models by hand ------------------------------------------------------------------------------
# name -> {"metadata": {key: value}, "tensors": {name: [type, *shape]}}
# A name may say the layers it is for: "blk.{0-31}.attn_v.weight".

ATTN = {"attn_q.weight": (256, 256), "attn_k.weight": (256, 64), "attn_v.weight": (256, 64)}
FFN = {"ffn_gate.weight": (256, 512), "ffn_up.weight": (256, 512), "ffn_down.weight": (512, 256)}
REST = {"attn_output.weight": (256, 256), "attn_norm.weight": (256,), "ffn_norm.weight": (256,)}
DENSE = {**ATTN, **FFN, **REST}
FUSED = {"attn_qkv.weight": (256, 384), **FFN, **REST}
ENDS = {"token_embd.weight": (256, 32), "output_norm.weight": (256,)}
HEAD = {"output.weight": (256, 32)}


def experts(n):
    """The feed-forward tensors of a layer with n experts."""
    return {
        "ffn_gate_inp.weight": ("F32", 256, n),
        "ffn_gate_exps.weight": (256, 256, n),
        "ffn_up_exps.weight": (256, 256, n),
        "ffn_down_exps.weight": (256, 256, n),
    }


def layers(span, tensors, prefix="blk"):
    """Name a layer's tensors for a span of layers such as "0-31"."""
    return {f"{prefix}.{{{span}}}.{name}": shape for name, shape in tensors.items()}


def model(architecture, n_layer, *tensors, heads=(4, 1), n_expert=0, **metadata):
    """Describe a model; shapes get the type F16 (F32 where one-dimensional) unless they name one."""
    merged = {name: shape for group in tensors for name, shape in group.items()}
    typed = {
        name: list(shape) if isinstance(shape[0], str) else ["F16" if len(shape) > 1 else "F32", *shape]
        for name, shape in merged.items()
    }
    keys = {"block_count": n_layer, "attention.head_count": heads[0], "attention.head_count_kv": heads[1]}
    if n_expert:
        keys |= {"expert_count": n_expert, "expert_used_count": 1}
    keys |= metadata.pop("keys", {})
    return {
        "metadata": {"general.architecture": architecture}
        | {key if "general." in key else f"{architecture}.{key}": value for key, value in keys.items()},
        "tensors": typed,
    }


WIDE = {"token_embd.weight": (320, 32), "output.weight": (320, 32), "output_norm.weight": (320,)}
ODD_ROWS = {
    "attn_q.weight": (320, 320),
    "attn_k.weight": (320, 320),
    "attn_v.weight": (320, 320),
    "attn_output.weight": (320, 320),
    "ffn_gate.weight": (320, 848),
    "ffn_up.weight": (320, 848),
    "ffn_down.weight": (848, 320),
}
MLA = {
    "attn_q_a.weight": (256, 256),
    "attn_q_b.weight": (256, 256),
    "attn_kv_a_mqa.weight": (256, 64),
    "attn_kv_b.weight": (256, 128),
    "attn_output.weight": (256, 256),
    "attn_kv_a_norm.weight": (256,),
}
SHARED = {"ffn_gate_shexp.weight": (256, 256), "ffn_down_shexp.weight": (256, 256)}
MLA_KEYS = {"attention.q_lora_rank": 64, "attention.kv_lora_rank": 64, "expert_shared_count": 1}
GLM5_KEYS = {
    "attention.key_length_mla": 64,
    "attention.value_length_mla": 64,
    "kda.head_dim": 64,
    "attention.indexer.head_count": 4,
    "attention.indexer.key_length": 64,
    "attention.indexer.top_k": 64,
    "attention.indexer.kpool": 4,
    "hyper_connection.count": 4,
    "hyper_connection.sinkhorn_iterations": 2,
    "hyper_connection.epsilon": 1e-6,
}
MODELS = {
    "qwen3": model("qwen3", 28, ENDS, HEAD, layers("0-27", DENSE), heads=(4, 2)),
    "qwen3-tied": model("qwen3", 12, ENDS, layers("0-11", {**DENSE, "attn_q_norm.weight": (64,)})),
    "llama-80": model("llama", 80, ENDS, HEAD, layers("0-79", DENSE)),
    "llama-80-ungrouped": model("llama", 80, ENDS, HEAD, layers("0-79", DENSE), heads=(4, 4)),
    "llama-embed-80": model("llama-embed", 80, ENDS, layers("0-79", DENSE)),
    "qwen2-80-ungrouped": model("qwen2", 80, ENDS, HEAD, layers("0-79", DENSE), heads=(4, 4)),
    "qwen3-80": model("qwen3", 80, ENDS, HEAD, layers("0-79", DENSE)),
    "olmo-80": model("olmo", 80, ENDS, HEAD, layers("0-79", DENSE)),
    "deci-80": model(
        "deci", 80, ENDS, HEAD, layers("0-79", DENSE),
        keys={"attention.head_count": [4] * 80, "attention.head_count_kv": [1] * 80},
    ),
    "jais2-68": model("jais2", 68, ENDS, HEAD, layers("0-67", DENSE)),
    "mixtral": model("llama", 32, ENDS, HEAD, layers("0-31", {**ATTN, **REST, **experts(8)}), n_expert=8),
    "mixtral-80": model("llama", 80, ENDS, HEAD, layers("0-79", {**ATTN, **REST, **experts(8)}), n_expert=8),
    "mixtral-split-experts": model(
        "llama", 12, ENDS, HEAD,
        layers("0-11", {**ATTN, **REST}),
        *(
            layers("0-11", {f"ffn_{part}.{i}.weight": (256, 256) for part in ("gate", "up", "down")})
            for i in range(8)
        ),
        n_expert=8,
    ),
    "qwen2moe": model(
        "qwen2moe", 24, ENDS, HEAD,
        layers("0-23", {**ATTN, **REST, **experts(60), **SHARED, "ffn_gate_inp_shexp.weight": (256,)}),
        n_expert=60,
    ),
    "deepseek2-lite": model(
        "deepseek2", 27, ENDS, HEAD,
        layers("0-26", {**MLA, "ffn_norm.weight": (256,)}),
        layers("0-0", FFN), layers("1-26", {**experts(64), **SHARED}),
        n_expert=64, keys={**MLA_KEYS, "leading_dense_block_count": 1},
    ),
    "glm4moe-nextn": model(
        "glm4moe", 17, ENDS, HEAD,
        layers("0-16", {**ATTN, **REST, **experts(16), **SHARED}),
        layers("16-16", {"nextn.eh_proj.weight": (512, 256), "nextn.shared_head_head.weight": (256, 32)}),
        n_expert=16, keys={"expert_shared_count": 1, "nextn_predict_layers": 1},
    ),
    "glm5-next": model(
        "glm5-next", 9, ENDS, HEAD,
        layers("0-8", {**MLA, **experts(16), "hc_fn.weight": (256, 24), "ssm_f_a.weight": (256, 64),
                       "attn_k_b.weight": (256, 64), "indexer.attn_q_b.weight": (256, 64)}),
        layers("8-8", {"nextn.eh_proj.weight": (512, 256)}),
        n_expert=16, keys={**MLA_KEYS, **GLM5_KEYS},
    ),
    "graniteswitch": model(
        "graniteswitch", 31, ENDS, layers("0-30", DENSE),
        keys={"adapters.count": 1, "adapters.lora_rank": 4, "logit_scale": 1.0,
              "adapters.token_ids_activate": [1], "adapters.token_ids_substitute": [2]},
    ),
    "falcon": model("falcon", 32, ENDS, HEAD, layers("0-31", FUSED)),
    "falcon-experts": model(
        "falcon", 16, ENDS, HEAD, layers("0-15", {**ATTN, **REST, **experts(8)}), n_expert=8
    ),
    "falcon-tied-odd": model("falcon", 4, {"token_embd.weight": (320, 32)}, layers("0-3", ODD_ROWS)),
    "phi3": model("phi3", 32, ENDS, HEAD, layers("0-31", FUSED)),
    "gemma3": model("gemma3", 26, ENDS, layers("0-25", DENSE)),
    "gemma3n": model(
        "gemma3n", 10, ENDS,
        {"per_layer_token_embd.weight": (256, 32), "per_layer_model_proj.weight": (256, 256),
         "altup_proj.weight": (256, 256, 3)},
        layers("0-9", {**DENSE, "altup_router.weight": (256, 4), "laurel_l.weight": (256, 64),
                       "inp_gate.weight": (256, 64), "proj.weight": (64, 256)}),
    ),
    "odd-rows": model("llama", 10, WIDE, layers("0-9", ODD_ROWS)),
    "odd-head": model(
        "llama", 10, {"token_embd.weight": (208, 32), "output.weight": (208, 32)}, layers("0-9", ODD_ROWS)
    ),
    "bert": model(
        "bert", 12, {**ENDS, "position_embd.weight": (256, 64), "token_types.weight": (256, 2)},
        layers("0-11", {**DENSE, "attn_q.bias": (256,), "ffn_down.bias": (256,)}),
        layers("0-11", {"layer_output_norm.weight": (256,)}),
    ),
    "adapter": model(
        "llama", 4,
        layers("0-3", {f"attn_{part}.weight.lora_{side}": ("F32", *shape) for part in "qv"
                       for side, shape in (("a", (256, 8)), ("b", (8, 256)))}),
        keys={"general.type": "adapter"},
    ),
    "mamba": model(
        "mamba", 12, ENDS,
        layers("0-11", {"ssm_in.weight": (256, 1024), "ssm_conv1d.weight": ("F32", 4, 512),
                        "ssm_x.weight": (512, 48), "ssm_dt.weight": (16, 512), "ssm_a": ("F32", 16, 512),
                        "ssm_out.weight": (512, 256)}),
        heads=(0, 0),
    ),
    "rwkv7": model(
        "rwkv7", 6, ENDS, HEAD,
        layers("0-5", {f"time_mix_{part}.weight": (256, 64) for part in
                       ("w0", "w1", "w2", "a1", "v2", "g1", "lerp_fused", "key", "receptance", "output")}),
        layers("0-5", {"channel_mix_key.weight": (256, 512), "channel_mix_value.weight": (512, 256)}),
        heads=(0, 0),
    ),
    "t5": model(
        "t5", 8, {**ENDS, "enc.output_norm.weight": (256,), "output.weight": (256, 32)},
        layers("0-7", {**DENSE, "attn_rel_b.weight": (4, 32)}, prefix="enc.blk"),
        layers("0-7", {**DENSE, "cross_attn_v.weight": (256, 64)}, prefix="dec.blk"),
    ),
    "lfm2": model(
        "lfm2", 16, ENDS,
        layers("0-15", {**FFN, "shortconv.conv.weight": (3, 256), "shortconv.in_proj.weight": (256, 768)}),
        layers("2-4", ATTN), heads=(4, 1),
    ),
}  # fmt: skip


# --- families ------------------------------------------------------------------------------------

RECURRENT = r"ssm_|shortconv|time_mix|channel_mix|attn_qkv|attn_gate"
ATTENTION = r"attn_[qkv](_norm)?$|attn_output"
DENSE_FFN = r"ffn_(gate|up|down)$"
EXPERTS = r"exps|shexp|ffn_gate_inp|exp_probs_b"
SHAPES = (
    (r"(norm|norm_\d|_sinks|bias|scale|freqs|factors_\w+|ssm_d|lerp_\w|_k_[ak]|probs_b)$", ("F32", 256)),
    (r"ffn_gate_inp$", ("F32", 256, 16)),
    (r"gate_inp_shexp$", ("F32", 256)),
    (r"exps$", (256, 256, 16)),
    (r"conv1d|shortconv\.conv", ("F32", 4, 512)),
    (r"ssm_a$", ("F32", 16, 512)),
    (r"ssm_dt$", (16, 512)),
    (r"ssm_x$", (512, 48)),
    (r"ssm_out$|ffn_down", (512, 256)),
    (r"attn_k_b$", (64, 128, 4)),
    (r"attn_v_b$", (128, 64, 4)),
    (r"attn_kv_a_mqa$|attn_[kv]$", (256, 64)),
    (r"^(token_embd|output)$", (256, 32)),
    (r"patch_embd", (14, 14, 3, 256)),
    (r"", (256, 256)),
)
"""(regular expression, shape): the first that is found in a name decides."""

SUFFIX = {"ssm_a": "", "ssm_d": "", "exp_probs_b": ".bias"}
"""End of a name, if it is not ".weight"."""


def family(architecture, names, n_layer=12, *, heads=(4, 1), n_expert=0, **keys):
    """Describe a model with tensors of these names, such as "token_embd" and "*.attn_v".

    A model with two kinds of layers has one kind in the first half: recurrent layers before attention, one
    dense layer before experts. The layers for prediction of further tokens (nextn) are the last one.
    """
    parts = [name.rpartition("*.")[2] for name in names]
    hybrid = any(re.search(ATTENTION, p) for p in parts) and any(re.search(RECURRENT, p) for p in parts)
    tensors = {}
    for name, part in zip(names, parts, strict=True):
        first, last = 0, n_layer - 1
        if "nextn" in part:
            first = last
        elif n_expert and re.search(EXPERTS, part):
            first = min(1, n_layer - 1) if any(re.search(DENSE_FFN, p) for p in parts) else 0
        elif n_expert and re.search(DENSE_FFN, part):
            last = 0
        elif not n_expert and re.search(EXPERTS, part):
            continue
        elif hybrid and re.search(RECURRENT, part):
            last = n_layer // 2 - 1
        elif hybrid and re.search(ATTENTION, part):
            first = n_layer // 2
        shape = next(shape for pattern, shape in SHAPES if re.search(pattern, part))
        tensors[name.replace("*", f"blk.{{{first}-{last}}}") + SUFFIX.get(part, ".weight")] = shape
    return model(architecture, n_layer, tensors, heads=heads, n_expert=n_expert, keys=keys)


UNGROUPED = {"heads": (4, 4)}
RECURRENT_ONLY = {"heads": (0, 0)}
HYBRID = {"heads": (4, [0] * 6 + [1] * 6)}
EXPERTS_16 = {"n_expert": 16}
_ALIKE = (
    ("apertus bitnet chameleon chatglm codeshell cogvlm cohere2 command-r dream exaone4 falcon-h1 glm4"
     " granite hunyuan-dense minicpm3 olmo2 qwen35 seed_oss stablelm", {}),
    ("bloom gpt2 gptneox jina-bert-v2 llada modern-bert mpt t5encoder", UNGROUPED),
    ("mamba2 rwkv6", RECURRENT_ONLY),
    ("afmoe arctic dbrx deepseek deepseek2 dots1 ernie4_5-moe gemma4 grovemoe hunyuan-moe kimi-linear llama4"
     " minimax-m2 phimoe qwen3moe qwen3next qwen35moe smallthinker", EXPERTS_16),
    ("granitehybrid jamba", EXPERTS_16 | HYBRID),
    ("llada-moe olmoe", EXPERTS_16 | UNGROUPED),
    ("bailingmoe2 glm4moe", EXPERTS_16 | {"n_layer": 13}),
)  # fmt: skip
FAMILIES = {
    **{name: more for names, more in _ALIKE for name in names.split()},
    "clip": {"n_layer": 6},
    "gemma2": {"heads": (4, 2)},
    "gpt-oss": {"n_expert": 32},
    "granitemoe": {"n_expert": 32},
    "grok": {"n_expert": 8},
    "lfm2moe": {"n_expert": 32} | HYBRID,
    "nemotron_h": {"heads": ([0] * 6 + [4] * 6, [0] * 6 + [1] * 6)},
    "nemotron_h_moe": EXPERTS_16 | {"heads": ([0] * 6 + [4] * 6, [0] * 6 + [1] * 6)},
    "nomic-bert-moe": {"n_expert": 8} | UNGROUPED,
    "openelm": {"heads": ([4] * 12, [1] * 12)},
    "plamo2": HYBRID,
    "starcoder2": {"heads": (4, 2)},
}
"""Architecture -> arguments of :func:`family`. The names are those that the gguf package lists."""

assert not MODELS.keys() & FAMILIES.keys()


def one_of_each(architecture, names, n_expert):
    """Describe a model of two layers with one tensor of each name, all of one shape.

    In mixtures of experts, llama.cpp refuses feed-forward matrices whose names do not begin with their layer.
    """
    if n_expert:
        names = [name for name in names if name.startswith("*.") or "ffn_" not in name]
    tensors = {name.replace("*", "blk.0") + ".weight": (256, 64) for name in names}
    return model(architecture, 2, tensors, n_expert=n_expert)


# --- short forms ---------------------------------------------------------------------------------


def expand(tensors):
    """Return {name: (type, shape)} in file order, with every layer of every span.

    The layers run backwards, so that only a program which sorts them gets the order right.
    """
    found = {}
    for name, (kind, *shape) in tensors.items():
        span = re.search(r"\{(\d+)-(\d+)\}", name)
        for i in range(int(span[2]), int(span[1]) - 1, -1) if span else [0]:
            found[re.sub(r"\{.*\}", str(i), name)] = (kind, tuple(shape))
    return found


def pack(types):
    """Shorten [(name, type)]: {"*.attn_v": "Q6_K*3 Q4_K*1"}, one entry for a tensor of all layers.

    The number is left out where all layers have one type.
    """
    by_name = {}
    for name, kind in sorted(types, key=lambda item: [int(n) for n in re.findall(r"\d+", item[0])]):
        short = re.sub(r"blk\.\d+", "*", name).removesuffix(".weight")
        by_name.setdefault(short, []).append(kind)
    return {name: _runs(kinds) for name, kinds in sorted(by_name.items())}


def _runs(kinds):
    runs = [(kind, len(list(run))) for kind, run in groupby(kinds)]
    return runs[0][0] if len(runs) == 1 else " ".join(f"{kind}*{n}" for kind, n in runs)
