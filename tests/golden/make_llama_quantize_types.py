"""Record which types llama-quantize chooses: writes llama_quantize_types.json beside this file.

Usage: python make_llama_quantize_types.py LLAMA_QUANTIZE

LLAMA_QUANTIZE is llama.cpp's program, of a build whose ``--dry-run`` lists every tensor. The models
are synthetic: real names, small shapes, no weights (sparse files). The tests import :func:`expand`
and :func:`pack`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from itertools import groupby
from math import prod
from pathlib import Path

import gguf
import numpy as np

HERE = Path(__file__).parent
GOLDEN = HERE / "llama_quantize_types.json"

# --- models: name -> {"metadata": {key: value}, "tensors": {name: [type, *shape]}} ---------------
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
        | {f"{architecture}.{key}": value for key, value in keys.items()},
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
    "deepseek2": model(
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

# keys that some architecture asks for and that decide nothing here
FILLERS = {
    "context_length": 64,
    "embedding_length": 256,
    "feed_forward_length": 512,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "attention.layer_norm_epsilon": 1e-5,
    "attention.sliding_window": 32,
    "attention.relative_buckets_count": 32,
    "attention.decay_lora_rank": 64,
    "attention.iclr_lora_rank": 64,
    "attention.value_residual_mix_lora_rank": 64,
    "expert_feed_forward_length": 256,
    "ssm.conv_kernel": 4,
    "ssm.inner_size": 512,
    "ssm.state_size": 16,
    "ssm.time_step_rank": 16,
    "wkv.head_size": 64,
    "shortconv.l_cache": 3,
}

# --- runs ----------------------------------------------------------------------------------------

MIXES = ["Q4_K_S", "Q4_K_M", "Q5_K_M", "Q4_0", "IQ4_XS", "Q2_K", "Q2_K_S", "Q3_K_S", "Q3_K_M", "Q3_K_L"]
TYPES = [*MIXES, "Q5_K_S", "Q6_K", "Q8_0", "Q4_1", "Q5_0", "Q5_1"]
TYPES += ["IQ4_NL", "F16", "BF16", "F32", "COPY", "15", "q4_k", "q3_k"]
EVERY_TYPE = ["qwen3-tied", "mixtral", "falcon", "odd-rows", "odd-head"]
OPTIONS = [
    "--pure",
    "--leave-output-tensor",
    "--output-tensor-type q8_0",
    "--output-tensor-type q5_K --token-embedding-type Q4_0",
    "--token-embedding-type q6_k",
    "--token-embedding-type q6_k --tensor-type token_embd=q8_0",
    "--token-embedding-type q6_k --tensor-type per_layer=q8_0",
    "--tensor-type attn_v=q8_0",
    "--tensor-type ATTN_Q=Q6_K --tensor-type attn=bf16",
    r"--tensor-type blk\.(0|1|5)\.(attn_v|ffn_down)=q8_0",
    r"--tensor-type blk\.[0-2]\..*=f16 --output-tensor-type f16",
    "--pure --tensor-type ffn_(up|down)=q5_1",
    "--pure --output-tensor-type q6_k",
    "--leave-output-tensor --output-tensor-type q6_k",
    "--tensor-type output=q5_k --output-tensor-type q8_0",
    "--tensor-type norm=q8_0",
    "--keep-split",
]
EVERY_OPTION = ["qwen3", "qwen3-tied", "mixtral", "phi3", "gemma3n"]
WITH_IMATRIX = ["Q4_0", "Q5_0", "Q4_1", "Q4_K_M", "Q4_K_S", "IQ4_NL", "IQ4_XS", "Q2_K", "Q2_K_S", "Q3_K_M"]
IMATRIX = ["qwen3", "mixtral", "falcon", "odd-rows", "qwen2moe"]


def runs():
    """Yield (model, llama-quantize's arguments, whether there is an imatrix)."""
    for name in MODELS:
        yield from ((name, [kind], False) for kind in (TYPES if name in EVERY_TYPE else MIXES))
    for name in EVERY_OPTION:
        for options in OPTIONS:
            yield from ((name, [*options.split(), kind], False) for kind in ("Q4_K_M", "Q5_0"))
    for name in IMATRIX:
        yield from ((name, [kind], True) for kind in WITH_IMATRIX)
        yield name, ["--tensor-type", r"blk\.0\.ffn_down=q8_0", "Q4_0"], True


# --- what the tests use too ----------------------------------------------------------------------


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
    """Shorten [(name, type)]: one entry a name without its layer, with runs "Q6_K*3 Q4_K*1"."""
    by_name = {}
    for name, kind in sorted(types, key=lambda item: [int(n) for n in re.findall(r"\d+", item[0])]):
        by_name.setdefault(re.sub(r"blk\.\d+", "blk.*", name), []).append(kind)
    return {
        name: " ".join(f"{kind}*{len(list(run))}" for kind, run in groupby(kinds))
        for name, kinds in sorted(by_name.items())
    }


# --- llama-quantize ------------------------------------------------------------------------------


def write_model(path, described):
    """Write a model's header, and a hole where the weights would be."""
    architecture = described["metadata"]["general.architecture"]
    fillers = {f"{architecture}.{key}": value for key, value in FILLERS.items()}
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (fillers | described["metadata"]).items():
        if key != "general.architecture":
            add = {int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}[type(value)]
            add(key, value)
    size = 0
    for name, (kind, shape) in expand(described["tensors"]).items():
        dtype = np.dtype({"F16": np.float16, "F32": np.float32}[kind])
        nbytes = prod(shape) * dtype.itemsize
        writer.add_tensor_info(name, shape[::-1], dtype, nbytes)
        size += -nbytes % 32 + nbytes
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        end = file.seek(0, 2)
        file.truncate(-end % 32 + end + size)


def write_imatrix(path):
    """Write an importance matrix; what it says does not matter, only that there is one."""
    writer = gguf.GGUFWriter(path, "")
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", ["text"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 64)
    writer.add_tensor("blk.0.attn_q.weight.in_sum2", np.ones((1, 256), np.float32))
    writer.add_tensor("blk.0.attn_q.weight.counts", np.ones((1, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


LINE = re.compile(r"^\[ *\d+/ *\d+\] +(\S+) +- \[.*?\], type = +(\w+), .*?(?:\((\w+)\))?$", re.MULTILINE)


def dry_run(program, args, path):
    """Return llama-quantize's choice, [(name, type)] in its order."""
    command = [program, "--dry-run", *args[:-1], path, args[-1]]
    done = subprocess.run(command, capture_output=True, text=True)
    found = LINE.findall(re.sub(r"warning: .*?\n", "", done.stdout + done.stderr))
    if done.returncode or not found:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return [(name, (new or old).upper()) for name, old, new in found]


def main(program):
    """Run every case and write the golden file."""
    recorded, order = [], []
    with tempfile.TemporaryDirectory() as folder:
        imatrix = Path(folder, "imatrix.gguf")
        write_imatrix(imatrix)
        paths = {}
        for name, described in MODELS.items():
            paths[name] = Path(folder, f"{name}.gguf")
            write_model(paths[name], described)
        for name, args, has_imatrix in runs():
            with_imatrix = ["--imatrix", imatrix, *args] if has_imatrix else args
            types = dry_run(program, with_imatrix, paths[name])
            source = expand(MODELS[name]["tensors"])
            if set(source) != {tensor for tensor, _ in types}:
                raise SystemExit(f"{name} {args}: not every tensor is listed")
            same = pack((tensor, kind) for tensor, (kind, _) in source.items())
            changed = {key: value for key, value in pack(types).items() if same[key] != value}
            recorded.append({"model": name, "args": args, "imatrix": has_imatrix, "types": changed})
        order = [name for name, _ in dry_run(program, ["COPY"], paths["qwen3-tied"])]
    about = "types that llama-quantize --dry-run lists, unchanged ones left out; see the script beside"
    models = ",\n".join(f"{json.dumps(name)}: {json.dumps(m)}" for name, m in MODELS.items())
    lines = ",\n".join(json.dumps(run) for run in recorded)
    GOLDEN.write_text(
        f'{{\n"about": {json.dumps(about)},\n"models": {{\n{models}\n}},\n'
        f'"order_of_qwen3-tied": {json.dumps(order)},\n"runs": [\n{lines}\n]\n}}\n'
    )
    print(f"{len(recorded)} runs, {GOLDEN.stat().st_size} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
