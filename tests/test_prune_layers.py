"""``--prune-layers``: models without some of their layers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFValueType

import llama_oracle
import q4hifi
from architectures import ARCHITECTURES, write_architecture
from command import Run
from q4hifi import BadOptionError, UnsupportedModelError
from synthetic import (
    EXAMPLE,
    names_in,
    random_weights,
    read_tensors,
    write_first_layers,
    write_imatrix,
    write_model,
    write_stored,
)

U32, ARRAY = GGUFValueType.UINT32, GGUFValueType.ARRAY
N_LAYER = len({name.split(".")[1] for name in read_tensors(EXAMPLE) if name.startswith("blk.")})


def values(path: Path) -> dict[str, object]:
    return {key: field.contents() for key, field in GGUFReader(path).fields.items()}


def test_the_layers_that_remain_keep_their_bytes_and_are_numbered_anew(tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out.gguf"
    outcome = run("quantize", EXAMPLE, out, "COPY", "--prune-layers", "2, 0,2")
    assert (outcome.status, outcome.err) == (0, "")
    before, after = read_tensors(EXAMPLE), read_tensors(out)
    kept = [layer for layer in range(N_LAYER) if layer not in (0, 2)]
    sources = {f"blk.{new}.": f"blk.{old}." for new, old in enumerate(kept)}
    for name, tensor in after.items():
        prefix = ".".join(name.split(".")[:2]) + "."
        assert tensor.data == before[name.replace(prefix, sources.get(prefix, prefix))].data
    layers = sum(name.startswith("blk.") for name in before)
    assert len(after) == len(before) - 2 * layers // N_LAYER
    assert values(out)["qwen3.block_count"] == N_LAYER - 2
    assert run("verify", out).status == 0
    assert np.isfinite(llama_oracle.llama_logits(out, [1, 2, 3])).all()


def test_the_first_layers_are_the_model_that_has_only_these(tmp_path: Path) -> None:
    first = write_first_layers(tmp_path / "first.gguf")
    q4hifi.quantize_file(first, tmp_path / "a.gguf", "COPY")
    q4hifi.quantize_file(EXAMPLE, tmp_path / "b.gguf", "COPY", prune_layers=range(2, N_LAYER))
    assert read_tensors(tmp_path / "a.gguf") == read_tensors(tmp_path / "b.gguf")
    pairs = values(tmp_path / "b.gguf")
    assert pairs == values(tmp_path / "a.gguf")
    assert list(pairs)[-1] == "qwen3.block_count"  # where llama-quantize puts it


@pytest.mark.parametrize("options", [
    {"type": "Q4_K_M"}, {"type": "Q4_HIFI"}, {"layout": "fork"}, {"type": "Q8_0", "pure": True},
    {"like": "Q4_K_M"}, {"target_bpw": 4.5, "stock": True}, {"target_size": "share"},
])  # fmt: skip
def test_every_kind_of_plan_has_the_size_of_its_file(options: dict[str, object], tmp_path: Path) -> None:
    source, out = write_first_layers(tmp_path / "in.gguf", 3), tmp_path / "out.gguf"
    if options.get("target_size"):
        options = {"target_size": q4hifi.plan_file(source, "Q5_K_S", prune_layers=[1]).file_bytes}
    plan = q4hifi.plan_file(source, prune_layers=[1], **options)  # type: ignore[arg-type]
    report = q4hifi.quantize_file(source, out, prune_layers=[1], **options)  # type: ignore[arg-type]
    assert plan.file_bytes == report.file_bytes == out.stat().st_size
    assert plan.n_params < q4hifi.plan_file(source, "COPY").n_params
    assert {t.layer for t in plan.tensors} == {None, 0, 1}
    assert q4hifi.verify_file(out) == []
    warned = any("KL divergence is that of quantizing alone" in text for text in plan.warnings)
    assert warned == (plan.measured is not None)


def test_the_importance_matrix_is_that_of_the_source(tmp_path: Path) -> None:
    source = write_first_layers(tmp_path / "in.gguf", 3)
    names = [name for name, tensor in read_tensors(source).items() if len(tensor.shape) > 1]
    sums = {
        name: (
            np.random.default_rng(i).lognormal(0, 2, (1, read_tensors(source)[name].shape[0])),
            np.ones(1),
        )
        for i, name in enumerate(names)
        if name.startswith("blk.")
    }
    imatrix = write_imatrix(tmp_path / "i.gguf", sums)
    moved = {name.replace("blk.2.", "blk.1."): pair for name, pair in sums.items() if "blk.1." not in name}
    of_pruned = write_imatrix(tmp_path / "j.gguf", moved)
    for options in ({}, {"refine": True}):
        q4hifi.quantize_file(
            source, tmp_path / "a.gguf", "Q5_K_S", prune_layers=[1], imatrix=imatrix, **options
        )
        q4hifi.quantize_file(source, tmp_path / "pruned.gguf", "COPY", prune_layers=[1], overwrite=True)
        q4hifi.quantize_file(
            tmp_path / "pruned.gguf", tmp_path / "b.gguf", "Q5_K_S", imatrix=of_pruned, **options
        )
        found, expected = read_tensors(tmp_path / "a.gguf"), read_tensors(tmp_path / "b.gguf")
        assert found == expected
        for name in ("a.gguf", "b.gguf"):
            (tmp_path / name).unlink()


@pytest.mark.parametrize("layers", [[0], [1, 2], [3]])
@pytest.mark.parametrize("architecture", sorted({*ARCHITECTURES} - {"gemma3n", "qwen3next", "rwkv7"}))
def test_llama_cpp_runs_every_architecture_without_layers(
    architecture: str, layers: list[int], tmp_path: Path
) -> None:
    source = write_architecture(tmp_path / "in.gguf", architecture, n_layer=5)
    out = tmp_path / "out.gguf"
    q4hifi.quantize_file(source, out, "Q4_K_M", prune_layers=layers)
    assert np.isfinite(llama_oracle.llama_logits(out, [1, 2, 3])).all()
    found = values(out)
    assert found[f"{architecture}.block_count"] == 5 - len(layers)
    for key, value in values(source).items():
        if isinstance(value, list) and key.startswith(f"{architecture}."):
            assert found[key] == [v for i, v in enumerate(value) if i not in layers]
    if "leading_dense_block_count" in ARCHITECTURES[architecture][1]:
        assert found[f"{architecture}.leading_dense_block_count"] == (0 not in layers)


def test_a_first_layer_with_shapes_of_its_own_is_kept(tmp_path: Path) -> None:
    """In RWKV7 llama.cpp expects other shapes in layer 0 than in all others."""
    source, out = write_architecture(tmp_path / "in.gguf", "rwkv7", n_layer=4), tmp_path / "out.gguf"
    with pytest.raises(UnsupportedModelError, match="let `prune_layers` keep layer 0"):
        q4hifi.quantize_file(source, out, "Q4_K_M", prune_layers=[0])
    q4hifi.quantize_file(source, out, "Q4_K_M", prune_layers=[1, 2])
    assert np.isfinite(llama_oracle.llama_logits(out, [1, 2, 3])).all()


def test_layers_that_alternate_are_pruned_in_groups(tmp_path: Path) -> None:
    source = write_architecture(tmp_path / "in.gguf", "qwen3next", n_layer=4)
    with pytest.raises(
        UnsupportedModelError, match=r"interval is 2, and layer 1 has other .* groups of 2 layers"
    ):
        q4hifi.quantize_file(source, tmp_path / "out.gguf", "Q4_K_M", prune_layers=[0])
    assert names_in(tmp_path) == {"in.gguf"}
    q4hifi.quantize_file(source, tmp_path / "out.gguf", "Q4_K_M", prune_layers=[1, 2])
    assert np.isfinite(llama_oracle.llama_logits(tmp_path / "out.gguf", [1, 2, 3])).all()


def write_layers(path: Path, n_layer: int = 4, **keys: tuple[object, GGUFValueType]) -> Path:
    tensors = {"token_embd.weight": random_weights(8, 256)}
    tensors |= {f"blk.{i}.ffn_down.weight": random_weights(8, 256, seed=i) for i in range(n_layer)}
    pairs = [(key.replace("__", "."), *pair) for key, pair in keys.items()]
    return write_model(path, tensors, n_layer=n_layer, pairs=pairs)


def test_what_the_metadata_say_of_layers_follows(tmp_path: Path) -> None:
    source = write_layers(
        tmp_path / "in.gguf",
        llama__attention__head_count_kv=([1, 2, 3, 4], ARRAY),
        llama__feed_forward_length=([5, 6, 7, 8], ARRAY),
        llama__rope__dimension_sections=([1, 2, 3, 4], ARRAY),
        llama__leading_dense_block_count=(2, U32),
        llama__nextn_predict_layers=(1, U32),
        llama__decoder_block_count=(2, U32),
        xielu__beta=([1.0, 2.0, 3.0, 4.0], ARRAY),
        other=([1, 2, 3, 4], ARRAY),
    )
    q4hifi.quantize_file(source, tmp_path / "out.gguf", "Q8_0", prune_layers=[0, 3])
    found = {key.removeprefix("llama."): value for key, value in values(tmp_path / "out.gguf").items()}
    assert found["block_count"] == 2 and found["attention.head_count_kv"] == [2, 3]
    assert found["feed_forward_length"] == [6, 7] and found["xielu.beta"] == [2.0, 3.0]
    assert found["rope.dimension_sections"] == found["other"] == [1, 2, 3, 4]
    assert found["leading_dense_block_count"] == found["decoder_block_count"] == 1
    assert found["nextn_predict_layers"] == 0


def test_patterns_match_the_new_names_as_in_llama_quantize(tmp_path: Path) -> None:
    plan = q4hifi.plan_file(
        write_layers(tmp_path / "in.gguf"), "Q4_K_S", prune_layers=[1],
        tensor_types=[(r"blk\.2\.", "q8_0"), (r"blk\.3\.", "q6_k")],
    )  # fmt: skip
    assert [t.type.name for t in plan.tensors] == ["Q6_K", "Q4_K", "Q4_K", "Q8_0"]
    assert len(plan.warnings) == 1 and "blk" in plan.warnings[0]


@pytest.mark.parametrize("options", [{"keep_split": True}, {"split_max_size": 5000}])
def test_shards_without_tensors_are_left_out(options: dict[str, object], tmp_path: Path) -> None:
    source = write_layers(tmp_path / "in.gguf")
    q4hifi.quantize_file(source, tmp_path / "s.gguf", "COPY", split_max_size=4096)
    shards = sorted(tmp_path.glob("s-*"))
    assert len(shards) == 5  # a tensor in each
    report = q4hifi.quantize_file(shards[0], tmp_path / "out.gguf", "Q8_0", prune_layers=[1], **options)  # type: ignore[arg-type]
    n_files = 4 if "keep_split" in options else 2
    assert len(report.destination) == n_files
    with q4hifi.open(report.destination[0]) as model:
        assert list(model) == ["token_embd.weight", *(f"blk.{i}.ffn_down.weight" for i in range(3))]
    assert q4hifi.plan_file(shards[0], "Q8_0", prune_layers=[1], **options).file_bytes == report.file_bytes  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([4], r"in\.gguf: `prune_layers` names layer 4, and the model's layers are 0 to 3"),
        ([0, 1, 2, 3], "names all 4 layers; keep at least one"),
        ([-1], "names layer -1; layers have numbers from 0 on"),
        (["1"], r"`prune_layers` is \['1'\]; give a list of whole numbers"),
        ([1.0], r"`prune_layers` is \[1\.0\]; give"),
        ([True], r"`prune_layers` is \[True\]; give"),
    ],
)
def test_layers_that_cannot_be_left_out(layers: list[int], message: str, tmp_path: Path) -> None:
    source = write_layers(tmp_path / "in.gguf")
    for call in (
        q4hifi.plan_file,
        lambda *a, **k: q4hifi.quantize_file(a[0], tmp_path / "out.gguf", *a[1:], **k),
    ):
        with pytest.raises(BadOptionError, match=message):
            call(source, "Q4_K_M", prune_layers=layers)
    assert names_in(tmp_path) == {"in.gguf"}


@pytest.mark.parametrize("text", ["", "a", "1,,2", "1;2", "-1", "1.5", "1-3", "²", "1" * 5000])
def test_the_command_reads_numbers_with_commas_only(text: str, run: Run, tmp_path: Path) -> None:
    outcome = run("quantize", EXAMPLE, tmp_path / "out.gguf", "Q8_0", "--prune-layers", text)
    assert outcome.status == 2 and "--prune-layers" in outcome.err
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize(
    "pairs",
    [
        [],
        [("general.architecture", "flux", GGUFValueType.STRING)],
        [("general.architecture", "clip", GGUFValueType.STRING), ("clip.block_count", 2, U32)],
        [("general.architecture", "llama", GGUFValueType.STRING), ("llama.block_count", 2, U32)],
    ],
)
def test_files_without_layers_are_refused(
    pairs: list[tuple[str, object, GGUFValueType]], tmp_path: Path
) -> None:
    path = write_stored(tmp_path / "in.gguf", {"double_blocks.0.qkv.weight": ("F16", (8, 256))}, pairs=pairs)
    with pytest.raises(BadOptionError, match=r"in\.gguf: the file has no layers that can be left out"):
        q4hifi.plan_file(path, "Q8_0", prune_layers=[0])


@pytest.mark.parametrize(
    ("more", "layers", "message"),
    [
        ("per_layer_token_embd", [1], r"tensor per_layer_token_embd\.weight has values for all layers"),
        ("blk.0.attn_rel_b", [0, 1], "layer 0 has other tensors than the layer that would take its place"),
    ],
)
def test_models_that_need_every_layer(more: str, layers: list[int], message: str, tmp_path: Path) -> None:
    tensors = {f"blk.{i}.ffn_down.weight": random_weights(8, 256) for i in range(4)}
    tensors[f"{more}.weight"] = random_weights(8, 256)
    source = write_model(tmp_path / "in.gguf", tensors, n_layer=4)
    with pytest.raises(UnsupportedModelError, match=message):
        q4hifi.plan_file(source, "Q8_0", prune_layers=layers)
    if more.startswith("blk."):
        assert len(q4hifi.plan_file(source, "Q8_0", prune_layers=[1, 2]).tensors) == 3


def test_messages_name_tensors_as_the_file_does(tmp_path: Path) -> None:
    tensors = {f"blk.{i}.ffn_down.weight": random_weights(8, 256) for i in range(3)}
    tensors["blk.2.ffn_down.weight"][3, 5] = np.nan
    source = write_model(tmp_path / "in.gguf", tensors, n_layer=3)
    with pytest.raises(q4hifi.NotFiniteError, match=r"tensor blk\.2\.ffn_down\.weight"):
        q4hifi.quantize_file(source, tmp_path / "out.gguf", "Q8_0", prune_layers=[0])
    q4hifi.quantize_file(source, tmp_path / "out.gguf", "Q8_0", prune_layers=[2])
    with pytest.raises(UnsupportedModelError, match=r"tensor blk\.1\.ffn_down\.weight is Q8_0 already"):
        q4hifi.quantize_file(tmp_path / "out.gguf", tmp_path / "b.gguf", "Q4_K_M", prune_layers=[0])
    with pytest.raises(BadOptionError, match=r"the first being blk\.1\.ffn_down\.weight"):
        q4hifi.quantize_file(source, tmp_path / "b.gguf", "Q2_K_S", prune_layers=[0])


def test_a_pruned_model_is_compared_like_any_other(tmp_path: Path, run: Run) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 60)
    out = tmp_path / "out.gguf"
    q4hifi.quantize_file(EXAMPLE, out, prune_layers=[N_LAYER - 2])
    outcome = run("compare", EXAMPLE, out, "-f", text, "-c", "64", "--chunks", "2", "--json")
    assert outcome.status == 0, outcome.err
    found = json.loads(outcome.out)
    (model,) = found["models"]
    assert model["model"] == str(out) and model["n_params"] < found["reference"]["n_params"]


@pytest.mark.parametrize("layout", ["split", "fork"])
def test_layers_of_a_q4_hifi_model_are_left_out_without_requantizing(layout: str, tmp_path: Path) -> None:
    source = write_first_layers(tmp_path / "in.gguf", 3)
    q4hifi.quantize_file(source, tmp_path / "hifi.gguf", layout=layout, pure=True)
    q4hifi.quantize_file(tmp_path / "hifi.gguf", tmp_path / "out.gguf", "COPY", prune_layers=[0])
    assert q4hifi.verify_file(tmp_path / "out.gguf") == []
    before, after = read_tensors(tmp_path / "hifi.gguf"), read_tensors(tmp_path / "out.gguf")
    assert after["blk.0.attn_v.weight"] == before["blk.1.attn_v.weight"]
    assert len(after) < len(before)
    with q4hifi.open(tmp_path / "out.gguf") as model:
        assert model.layout == layout and model.tensors["blk.1.attn_v.weight"].type.name == "Q4_HIFI"


def test_sensitivities_are_those_of_the_source(tmp_path: Path) -> None:
    source = write_first_layers(tmp_path / "in.gguf", 3)
    names = {name: 1.0 for name in read_tensors(source) if name.endswith("weight")}
    for layer, larger in ((1, 0), (2, 1)):
        values_of = names | {name: 1e3 for name in names if f"blk.{layer}." in name}
        plan = plan_with(source, tmp_path / f"{layer}.json", values_of)
        bits = [
            sum(t.nbytes for t in plan.tensors if t.layer == i) for i in range(2)
        ]  # layer 0 is left out: 1 and 2 become 0 and 1
        assert bits[larger] > bits[1 - larger]


def plan_with(source: Path, file: Path, sensitivities: dict[str, float]) -> q4hifi.Plan:
    file.write_text(json.dumps({"sensitivities": sensitivities}))
    return q4hifi.plan_file(source, sensitivities=file, target_bpw=4.6, stock=True, prune_layers=[0])
