"""Record which types llama-quantize chooses: writes llama_quantize_types.json beside this file.

Usage: python make_llama_quantize_types.py LIBLLAMA

LIBLLAMA is the path of llama.cpp's library, of a build whose dry run lists every tensor (spring 2026 or
later). libggml must be where the library finds it. It takes minutes.

The models are those of tests/described_models.py: real names, small shapes, no weights (sparse files).

What is written:

``families``: architecture -> names of its tensors, from the tables of the gguf package; "*" is a layer.
``patterns``: types of a tensor in all layers, to which the runs refer by index.
``kept``: model -> tensors that no run changes.
``runs``: [model, arguments of llama-quantize, {names: pattern}]. The names "" are all others that are not
kept. A run is null where llama-quantize refuses the type that an option names.
``one_of_each``: number of experts -> the types in a model with one tensor of every name, by architecture.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections import Counter
from math import prod
from pathlib import Path

import gguf
import numpy as np
from gguf.constants import MODEL_ARCH_NAMES, MODEL_TENSORS, TENSOR_NAMES

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from llama_quantizer import LlamaQuantizer  # noqa: E402

from described_models import FAMILIES, MODELS, expand, family, one_of_each, pack  # noqa: E402

GOLDEN = HERE / "llama_quantize_types.json"

# --- runs ----------------------------------------------------------------------------------------

MIXES = ["Q4_K_S", "Q4_K_M", "Q5_K_M", "Q4_0", "IQ4_XS", "Q2_K", "Q2_K_S", "Q3_K_S", "Q3_K_M", "Q3_K_L"]
TYPES = [*MIXES, "Q5_K_S", "Q6_K", "Q8_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "F16", "BF16", "F32", "COPY"]
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
    "--tensor-type attn_v=f32 --tensor-type ffn_down=q4_k --tensor-type ffn_down=q8_0",
    "--pure --token-embedding-type bf16 --output-tensor-type f32",
]
FLOATS = ["F16", "BF16", "F32"]
EVERY_OPTION = ["qwen3", "qwen3-tied", "mixtral", "phi3", "gemma3n"]
WITH_IMATRIX = ["Q4_0", "Q5_0", "Q4_1", "Q4_K_M", "Q4_K_S", "IQ4_NL", "IQ4_XS", "Q2_K", "Q2_K_S", "Q3_K_M"]
IMATRIX = ["qwen3", "mixtral", "falcon", "odd-rows", "qwen2moe"]
ODD = ["odd-rows", "odd-head", "falcon-tied-odd"]
ODD_OPTIONS = [
    *(f"--{option} {kind}" for option in ("output-tensor-type", "token-embedding-type")
      for kind in ("q5_k", "q8_0", "q4_0", "iq4_xs", "f16", "bf16", "f32")),
    *(f"--tensor-type attn_q={kind} --tensor-type ffn_down={kind} --tensor-type output={kind}"
      for kind in ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0", "q4_0", "q5_1", "iq4_nl", "iq4_xs",
                   "f16", "bf16", "f32")),
    "--pure",
    "--pure --tensor-type ffn_down=q8_0 --tensor-type attn_k=q6_k",
]  # fmt: skip
ODD_ROWS = [
    f"--tensor-type ffn_down={kind} Q4_K_M" for kind in ("mxfp4", "nvfp4", "tq1_0", "iq2_s", "iq3_xxs")
]
PRUNED = {
    "qwen3": "0,5,6",
    "mixtral": "31",
    "mixtral-split-experts": "2,3",
    "deepseek2-lite": "0,1,26",
    "glm4moe-nextn": "16,3",
    "t5": "1",
    "lfm2": "2,15",
}
FAMILY_RUNS = ["Q4_K_M", "Q2_K", "Q3_K_L", "IQ4_XS", "--imatrix Q4_0", "--tensor-type .=q5_1 Q4_0", "F16"]
ONE_OF_EACH = "Q3_K_M"


def runs():
    """Yield (model, llama-quantize's arguments)."""
    for name in MODELS:
        types = TYPES if name in EVERY_TYPE else ["Q8_0", "F16"] if name == "adapter" else MIXES
        yield from ((name, kind) for kind in types)
    for name in EVERY_OPTION:
        types = ["Q4_K_M", "Q5_0", *(FLOATS if name == "qwen3-tied" else FLOATS[:1])]
        yield from ((name, f"{options} {kind}") for options in OPTIONS for kind in types)
    for name in ODD:
        yield from ((name, f"{options} {kind}") for options in ODD_OPTIONS for kind in ("Q4_K_M", "F16"))
    yield from (("odd-rows", args) for args in ODD_ROWS)
    for name, layers in PRUNED.items():
        yield from (
            (name, f"--prune-layers {layers} {kind}") for kind in ("Q4_K_M", "Q3_K_M", "--imatrix Q4_0")
        )
        yield name, rf"--prune-layers {layers} --tensor-type blk\.(1|16)\.=q8_0 Q4_K_M"
    for name in IMATRIX:
        yield from ((name, f"--imatrix {kind}") for kind in WITH_IMATRIX)
        yield name, r"--imatrix --tensor-type blk\.0\.ffn_down=q8_0 Q4_0"
    for name in FAMILIES:
        yield from ((name, args) for args in FAMILY_RUNS)


FLAGS = {
    "--pure": {"pure": True},
    "--leave-output-tensor": {"quantize_output_tensor": False},
    "--keep-split": {"keep_split": True},
    "--imatrix": {"imatrix": {"blk.0.attn_q.weight": [1.0] * 256}},  # its values decide nothing
}


def parameters(args):
    """Return the library's parameters for the program's arguments."""
    *words, kind = args.split()
    found = {"type": kind, "tensor_types": []}
    words = iter(words)
    for word in words:
        if word in FLAGS:
            found |= FLAGS[word]
        elif word == "--tensor-type":
            pattern, named = next(words).split("=")
            found["tensor_types"].append((pattern.lower(), named))
        elif word == "--prune-layers":
            found["prune_layers"] = sorted(map(int, next(words).split(",")))
        else:
            found[word.removeprefix("--").replace("-", "_")] = next(words)
    return found


# --- models --------------------------------------------------------------------------------------


def names_of(architecture):
    """The names of an architecture's tensors that the gguf package lists, with "*" for the layer."""
    (arch,) = (arch for arch, name in MODEL_ARCH_NAMES.items() if name == architecture)
    return short(TENSOR_NAMES[tensor] for tensor in MODEL_TENSORS[arch])


def every_name(library):
    """The names of tensors that the gguf package or the library knows, with "*" for the layer."""
    found = re.findall(rb"\b(?:[a-z]+\.)*blk\.%d\.[a-z][\w.]*\w", library)
    return sorted(
        set(short([*TENSOR_NAMES.values(), *(name.decode().replace("%d", "{bid}") for name in found)]))
    )


def short(names):
    """Names with "*" for the layer, as :func:`described_models.pack` has them; split experts are left out."""
    names = [name for name in names if name.count("{") < 2]
    return [name.replace("blk.{bid}", "*").replace("{bid}", "0") for name in names]


def every_architecture(library):
    """The architectures of the gguf package, and words in the library that may be some."""
    words = re.findall(rb"(?<=\0)[a-z][a-z0-9_-]{2,23}(?=\0)", library)
    return sorted({word.decode() for word in words} | set(MODEL_ARCH_NAMES.values()))


def write_model(path, described, more):
    """Write a model's header with further metadata, and a hole where the weights would be."""
    architecture = described["metadata"]["general.architecture"]
    writer = gguf.GGUFWriter(path, architecture)
    adders = {
        int: writer.add_uint32, float: writer.add_float32, list: writer.add_array,
        str: writer.add_string, bool: writer.add_bool,
    }  # fmt: skip
    for key, value in (more | described["metadata"]).items():
        if key != "general.architecture":
            adders[type(value)](key, value)
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


OF_TYPE = {"f32": 1.0, "str": "silu", "bool": True, "i32": [1] * 4}
LISTS = {"rope.dimension_sections": [1] * 4}


def write_loadable(quantizer, path, described):
    """Write a model with the metadata that the library asks for. Return whether it loads it.

    These values decide nothing, and are only as many and as large as the library wants.
    """
    architecture = described["metadata"]["general.architecture"]
    n_layer = described["metadata"][f"{architecture}.block_count"]
    more = {}
    for _ in range(80):
        write_model(path, described, more)
        done, log = quantizer.run(str(path), str(path) + ".out", type="COPY", dry_run=True)
        if done:
            return True
        missing = re.search(r"(array )?key not found in model: (\S+)", log)
        other = re.search(r"key (\S+) has wrong type \S+ but expected type (\S+)", log)
        if missing:
            key = missing[2]
            part = key.removeprefix(f"{architecture}.")
            more[key] = LISTS.get(part) or ([4] * n_layer if missing[1] or "pattern" in part else 4)
        elif other:
            more[other[1]] = OF_TYPE.get(other[2], [4] * n_layer)
        else:
            return False
    return False


# --- llama-quantize ------------------------------------------------------------------------------

TENSOR = re.compile(r"^\[ *\d+/ *\d+\] +(\S+) +- \[.*?\], type = +(\w+), (.*)$", re.MULTILINE)


def names_a_type(args):
    """Whether an option names a type that rows may not fit."""
    return re.search("--(output-tensor|token-embedding)-type", args) is not None


def types_of(quantizer, path, args):
    """Return llama-quantize's choice, [(name, type)] in its order, or None if it fails.

    The run is a real one where an option names a type: a dry run does not notice that rows do not fit it.
    """
    dry = not names_a_type(args)
    done, log = quantizer.run(str(path), str(path) + ".out", dry_run=dry, **parameters(args))
    found = []
    for name, old, rest in TENSOR.findall(re.sub(r"warning: .*?\n", "", log)):
        new = re.search(r"converting to (\w+)", rest) or re.search(r"\((\w+)\)", rest)
        found.append((name, (new[1] if new else old).upper()))
    return found if done else None


def shortened(packed, kept, index):
    """Return {names: pattern}, where "" stands for the pattern of the most names."""
    packed = {name: kinds for name, kinds in packed.items() if name not in kept}
    if not packed:
        return {}
    usual, _ = Counter(packed.values()).most_common(1)[0]
    groups = {usual: []}
    for name, kinds in packed.items():
        groups.setdefault(kinds, []).append(name)
    groups[usual] = []
    return {" ".join(names): index(kinds) for kinds, names in groups.items()}


def record_runs(quantizer, folder, models):
    """Return the golden file's patterns, kept tensors and runs."""
    patterns, runs_, kept = {}, [], {}
    found = {name: [] for name in models}
    for name, args in runs():
        types = types_of(quantizer, folder / f"{name}.gguf", args)
        source = expand(models[name]["tensors"])
        listed = types is None or set(source) == {tensor for tensor, _ in types}
        if not listed and "--prune-layers" not in args:
            raise SystemExit(f"{name} {args}: not every tensor is listed")
        if types is None and not names_a_type(args):
            print(f"left out, as llama-quantize fails: {name} {args}")
            continue
        found[name].append((args, types and pack(types)))
    for name, results in found.items():
        same = pack((tensor, kind) for tensor, (kind, _) in expand(models[name]["tensors"]).items())
        kept[name] = {
            tensor
            for tensor, kinds in same.items()
            if all(p is None or p.get(tensor, kinds) == kinds for _, p in results)
        }
        for args, packed in results:
            index = lambda kinds: patterns.setdefault(kinds, len(patterns))  # noqa: E731
            runs_.append([name, args, packed and shortened(packed, kept[name], index)])
    return list(patterns), {name: " ".join(sorted(names)) for name, names in kept.items()}, runs_


def record_one_of_each(quantizer, path, library):
    """Return the types of a model with one tensor of every name, by number of experts and architecture."""
    names = every_name(library)
    recorded = {"names": " ".join(names)}
    known = [
        architecture
        for architecture in every_architecture(library)
        if write_loadable(quantizer, path, one_of_each(architecture, ["token_embd"], 0))
    ]
    for n_expert in (0, 8):
        results = {}
        for architecture in known:
            described = one_of_each(architecture, names, n_expert)
            if write_loadable(quantizer, path, described):
                types = types_of(quantizer, path, ONE_OF_EACH)
                if types is not None:
                    results[architecture] = pack(types)
        usual = results["llama"]
        recorded[str(n_expert)] = {
            "llama": _by_type(usual),
            "like llama": " ".join(name for name, types in results.items() if types == usual),
            "others": {
                name: _by_type({tensor: kind for tensor, kind in types.items() if usual[tensor] != kind})
                for name, types in results.items()
                if types != usual
            },
        }
    return recorded


def _by_type(types):
    groups = {}
    for name, kind in types.items():
        groups.setdefault(kind, []).append(name)
    return {kind: " ".join(names) for kind, names in groups.items()}


def main(library):
    """Run every case and write the golden file."""
    quantizer = LlamaQuantizer(library)
    families = {name: names_of(name) for name in FAMILIES}
    models = {**MODELS, **{name: family(name, families[name], **more) for name, more in FAMILIES.items()}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for name, described in models.items():
            if not write_loadable(quantizer, folder / f"{name}.gguf", described):
                raise SystemExit(f"{name}: the library does not load it")
        patterns, kept, recorded = record_runs(quantizer, folder, models)
        order = [name for name, _ in types_of(quantizer, folder / "qwen3-tied.gguf", "COPY")]
        each = record_one_of_each(quantizer, folder / "each.gguf", Path(library).read_bytes())
    quantizer.close()
    lines = {
        "about": "types that llama.cpp's llama_model_quantize chooses; the script beside explains the form",
        "families": {name: " ".join(names) for name, names in families.items()},
        "kept": kept,
        "patterns": patterns,
        "order_of_qwen3-tied": " ".join(order),
        "one_of_each": each,
        "runs": recorded,
    }
    GOLDEN.write_text(
        "{\n" + ",\n".join(f"{json.dumps(key)}: {_json(v)}" for key, v in lines.items()) + "\n}\n"
    )
    print(f"{len(recorded)} runs, {GOLDEN.stat().st_size} bytes")


def _json(value):
    """JSON with a line for each part of a list or mapping."""
    if isinstance(value, dict):
        return (
            "{\n"
            + ",\n".join(f"{json.dumps(key)}: {json.dumps(part)}" for key, part in value.items())
            + "\n}"
        )
    if isinstance(value, list):
        return "[\n" + ",\n".join(json.dumps(part, separators=(",", ":")) for part in value) + "\n]"
    return json.dumps(value)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
