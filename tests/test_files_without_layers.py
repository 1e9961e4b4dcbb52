"""Files that hold no language model: diffusion models, adapters, towers, tensors alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gguf import GGUFValueType

import q4hifi
from command import Run
from q4hifi.errors import UnsupportedModelError
from synthetic import random_weights, read_pairs, read_tensors, write_imatrix, write_stored

STRING, U32, F32, ARRAY = (
    GGUFValueType.STRING,
    GGUFValueType.UINT32,
    GGUFValueType.FLOAT32,
    GGUFValueType.ARRAY,
)
MATRIX = "double_blocks.0.img_attn.qkv.weight"
DOWN = "blk.0.ffn_down.weight"
STORED = {MATRIX: ("F16", (24, 256)), DOWN: ("F16", (8, 256)), "norm.weight": ("F32", (256,))}
KINDS = {
    "flux": [("general.architecture", "flux", STRING), ("general.file_type", 1, U32)],
    "bare": [("a.b", "c", STRING)],
    "nothing": [],
    "odd architecture": [("general.architecture", 7, U32)],
}
NO_LAYERS = ("COPY", "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q4_1", "Q5_K_S", "Q3_K_S", "Q4_0")
"""Recipes that do not choose by layer, at least not without an imatrix."""


@pytest.fixture(params=KINDS)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    data = {name: random_weights(*STORED[name][1]).astype("<f2").tobytes() for name in (MATRIX, DOWN)}
    return write_stored(tmp_path / "in.gguf", STORED, pairs=KINDS[request.param], data=data)


@pytest.mark.parametrize("recipe", NO_LAYERS)
def test_recipes_that_ask_for_no_layers_work(recipe: str, source: Path, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    outcome = run("quantize", source, out, recipe)
    assert (outcome.status, outcome.err) == (0, "")
    kind = read_tensors(out)[MATRIX].type_name
    assert kind == ("F16" if recipe == "COPY" else recipe.removesuffix("_S"))
    assert run("verify", out).status == 0
    assert run("plan", source, recipe).status == 0


@pytest.mark.parametrize("recipe", ["Q4_K_S", "Q4_K_M", "Q4_HIFI", "Q3_K_M", "Q2_K_S", "IQ4_XS"])
def test_mixes_by_layers_say_what_is_missing_and_pure_works(
    recipe: str, source: Path, run: Run, tmp_path: Path
) -> None:
    for command in (("quantize", source, tmp_path / "out.gguf", recipe), ("plan", source, recipe)):
        outcome = run(*command)
        assert outcome.status == 1
        words = " ".join(outcome.err.split())
        assert f"block_count is missing, {recipe} chooses by layers; use --pure or Q8_0" in words
        assert str(source) in outcome.err
    pure = [*command, "--pure"]
    assert run(*pure).status == 0
    if recipe != "Q2_K_S":  # needs an imatrix
        q4hifi.quantize_file(source, tmp_path / "out.gguf", recipe, pure=True)
        assert q4hifi.verify_file(tmp_path / "out.gguf") == []


def test_the_key_is_named(tmp_path: Path) -> None:
    path = write_stored(tmp_path / "in.gguf", STORED, pairs=KINDS["flux"])
    with pytest.raises(UnsupportedModelError, match=r"in\.gguf: flux\.block_count is missing, Q4_K_M"):
        q4hifi.plan_file(path, "Q4_K_M")


@pytest.mark.parametrize("recipe", ["Q4_K_M", "Q4_K_S", "Q3_K_M", "IQ4_XS", "Q4_HIFI"])
@pytest.mark.parametrize("kind", KINDS)
def test_mixes_by_layers_work_where_no_matrix_needs_them(
    kind: str, recipe: str, run: Run, tmp_path: Path
) -> None:
    stored = {name: STORED[name] for name in (MATRIX, "norm.weight")}
    path = write_stored(tmp_path / "in.gguf", stored, pairs=KINDS[kind])
    assert run("quantize", path, tmp_path / "out.gguf", recipe).status == 0
    main = {"Q4_HIFI": "Q4_K"}.get(recipe, recipe.removesuffix("_M").removesuffix("_S"))
    types = {name: t.type_name for name, t in read_tensors(tmp_path / "out.gguf").items()}
    assert types == {MATRIX: main, "norm.weight": "F32"}
    assert run("verify", tmp_path / "out.gguf").status == 0


def test_an_imatrix_may_make_a_recipe_choose_by_layer(tmp_path: Path) -> None:
    path = write_stored(tmp_path / "in.gguf", STORED, pairs=KINDS["flux"])
    imatrix = write_imatrix(tmp_path / "i.gguf", {DOWN: (random_weights(1, 256) ** 2 + 1, [9])})
    with pytest.raises(UnsupportedModelError, match="Q4_0 chooses by layers"):
        q4hifi.plan_file(path, "Q4_0", imatrix=imatrix)
    assert q4hifi.plan_file(path, "IQ4_XS", imatrix=imatrix).by_type["IQ4_XS"].tensors == 2


def test_everything_else_works_too(source: Path, run: Run, tmp_path: Path) -> None:
    assert run("inspect", source).status == run("verify", source).status == 0
    assert run("quantize", source, tmp_path / "q.gguf", "Q8_0").status == 0
    assert run("dequantize", tmp_path / "q.gguf", tmp_path / "f.gguf", "f32").status == 0
    assert {t.type_name for t in read_tensors(tmp_path / "f.gguf").values()} == {"F32"}


def test_a_copy_says_nothing_that_its_source_does_not_say(source: Path, tmp_path: Path) -> None:
    q4hifi.quantize_file(source, tmp_path / "out.gguf", "COPY")
    added = set(read_pairs(tmp_path / "out.gguf")) - set(read_pairs(source))
    assert added == {"general.quantization_version"}


@pytest.mark.parametrize("value", [("text", STRING), (2.5, F32), ([1], U32), (None, None)])
def test_a_file_type_of_any_kind_is_no_obstacle(value: tuple[object, GGUFValueType], tmp_path: Path) -> None:
    pairs = [*KINDS["bare"], *([("general.file_type", *value)] if value[1] is not None else [])]
    path = write_stored(tmp_path / "in.gguf", STORED, pairs=pairs)
    q4hifi.quantize_file(path, tmp_path / "copy.gguf", "COPY")
    key = "general.file_type"
    assert read_pairs(tmp_path / "copy.gguf").get(key) == read_pairs(path).get(key)
    q4hifi.quantize_file(path, tmp_path / "q.gguf", "Q8_0")
    with q4hifi.open(tmp_path / "q.gguf") as model:
        assert model.metadata[key] == 7


# ---- adapters ------------------------------------------------------------------------------------

LORA = {
    "blk.0.attn_q.weight.lora_a": ("F32", (8, 256)),
    "blk.0.attn_q.weight.lora_b": ("F32", (256, 8)),
    "token_embd.weight": ("F16", (4, 256)),
}


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    pairs = [("general.architecture", "llama", STRING), ("general.type", "adapter", STRING)]
    return write_stored(tmp_path / "lora.gguf", LORA, pairs=pairs)


@pytest.mark.parametrize("recipe", ["COPY", "F16", "Q8_0"])
def test_an_adapter_is_copied(recipe: str, lora: Path, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    outcome = run("quantize", lora, out, recipe)
    assert outcome.status == 0
    assert ("an adapter, whose matrices no recipe changes" in outcome.out) == (recipe != "COPY")
    before, after = read_tensors(lora), read_tensors(out)
    assert {name: after[name] for name in before} == before
    assert "general.file_type" not in read_pairs(out)
    warnings = json.loads(run("plan", lora, recipe, "--json").out)["warnings"]
    assert len(warnings) == (recipe != "COPY")


@pytest.mark.parametrize("recipe", ["Q4_K_M", "Q4_HIFI"])
def test_a_mix_of_layers_refuses_an_adapter(recipe: str, lora: Path, run: Run, tmp_path: Path) -> None:
    outcome = run("quantize", lora, tmp_path / "out.gguf", recipe)
    assert outcome.status == 1
    assert "an adapter, whose matrices no recipe changes; use COPY" in " ".join(outcome.err.split())
