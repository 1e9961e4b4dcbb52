"""Types of tensors: what q4hifi chooses is what llama-quantize chose, in models of 150 architectures."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from described_models import FAMILIES, MODELS, expand, family, one_of_each, pack
from q4hifi import QuantizeOptions
from q4hifi.errors import BadOptionError
from q4hifi.formats.layout import StoredTensor
from q4hifi.formats.tensor_names import processing_order
from q4hifi.formats.types import TYPES
from q4hifi.plan.model_shape import ModelShape
from q4hifi.plan.pruning import Pruning, parse_layers
from q4hifi.plan.tensor_type_rules import parse_tensor_type
from q4hifi.plan.type_rules import choose_types

RECORDED = json.loads((Path(__file__).parent / "golden" / "llama_quantize_types.json").read_text())
DESCRIBED = {
    **MODELS,
    **{name: family(name, RECORDED["families"][name].split(), **more) for name, more in FAMILIES.items()},
}
FLAGS = {"--pure": "pure", "--leave-output-tensor": "leave_output_tensor"}
VALUES = {"--output-tensor-type": "output_tensor_type", "--token-embedding-type": "token_embedding_type"}


def tensors_of(described):
    """The tensors of a described model, in its file's order, and its shape."""
    tensors = [
        StoredTensor(tensor, shape, TYPES[kind])
        for tensor, (kind, shape) in expand(described["tensors"]).items()
    ]
    return tensors, ModelShape.from_metadata(described["metadata"])


def options_of(args):
    """llama-quantize's arguments as QuantizeOptions, without those that decide no type by their value."""
    *words, kind = [word for word in args.split() if word not in ("--keep-split", "--imatrix")]
    fields, types = {"type": kind}, []
    rest = iter(words)
    for word in rest:
        if word in FLAGS:
            fields[FLAGS[word]] = True
        elif word in VALUES:
            fields[VALUES[word]] = next(rest)
        elif word == "--prune-layers":
            fields["prune_layers"] = parse_layers(next(rest))
        else:
            assert word == "--tensor-type"
            types.append(parse_tensor_type(next(rest)))
    return QuantizeOptions(**fields, tensor_types=tuple(types))


def chosen(described, args):
    """The packed types that q4hifi chooses, and those of the source."""
    tensors, model = tensors_of(described)
    before = pack((t.name, t.type.name) for t in tensors)
    options = options_of(args)
    pruning = Pruning(tuple(sorted(options.prune_layers)))
    names = [pruning.new_name(t.name) for t in tensors]
    tensors = [replace(t, name=name) for t, name in zip(tensors, names, strict=True) if name]
    if "--keep-split" not in args:
        tensors.sort(key=lambda t: processing_order(t.name))
    choices = choose_types(tensors, model, options, has_imatrix="--imatrix" in args)
    return pack((t.name, c.type.name) for t, c in zip(tensors, choices, strict=True)), before


@pytest.mark.parametrize(("name", "args", "groups"), RECORDED["runs"], ids=lambda part: str(part)[:80])
def test_types_are_those_that_llama_quantize_chose(name, args, groups):
    described = DESCRIBED[name]
    if groups is None:
        with pytest.raises(BadOptionError, match=r"tensor (output|token_embd)\.weight has rows of \d+"):
            chosen(described, args)
        return
    types, before = chosen(described, args)
    kept = set(RECORDED["kept"][name].split())
    expected = {tensor: RECORDED["patterns"][i] for names, i in groups.items() for tensor in names.split()}
    assert set(expected) - {""} <= set(types)
    usual = RECORDED["patterns"][groups[""]] if groups else None  # of an adapter all tensors are kept
    assert types == {
        tensor: before[tensor] if tensor in kept else expected.get(tensor, usual) for tensor in types
    }


def _by_name(groups):
    return {name: kind for kind, names in groups.items() for name in names.split()}


@pytest.mark.parametrize("n_expert", ["0", "8"])
def test_every_architecture_decides_every_name_as_llama_quantize(n_expert):
    recorded = RECORDED["one_of_each"][n_expert]
    names = RECORDED["one_of_each"]["names"].split()
    expected = {name: {} for name in recorded["like llama"].split()} | recorded["others"]
    assert len(expected) >= 148 and len(names) >= 400
    for architecture, others in expected.items():
        types, _ = chosen(one_of_each(architecture, names, int(n_expert)), "Q3_K_M")
        assert types == _by_name(recorded["llama"]) | _by_name(others), architecture


def test_the_recorded_models_are_of_all_kinds():
    names = " ".join(name for model in DESCRIBED.values() for name in model["tensors"])
    for part in ("nextn", "_shexp", "_exps", "ssm_", "attn_kv_b", "attn_k_b", r"\bv\.", r"\benc\.", "lora_a"):
        assert re.search(part, names), part
    architectures = {model["metadata"]["general.architecture"] for model in DESCRIBED.values()}
    assert len(architectures) >= 80


def test_processing_order_is_llama_quantizes():
    names = [t.name for t in tensors_of(MODELS["qwen3-tied"])[0]]
    recorded = RECORDED["order_of_qwen3-tied"].split()
    assert names != recorded
    assert sorted(names, key=processing_order) == recorded
