"""Whole files: every tensor as ggml writes it, sizes as planned, and the stock engine runs them."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import pytest
from gguf import GGUFValueType

import oracle
import q4hifi
from q4hifi.allocation.measured_plan import FED_BACK
from q4hifi.errors import BadFileError, BadOptionError, NotFiniteError, UnsupportedModelError
from q4hifi.formats.types import TYPES
from q4hifi.gguf_io.metadata import Metadata
from q4hifi.gguf_io.reader import GgufFile
from q4hifi.imatrix.sums import ColumnSums, ImportanceSums
from q4hifi.plan.recipes import RECIPES
from synthetic import (
    EXAMPLE,
    Floats,
    names_in,
    random_sums,
    random_weights,
    read_pairs,
    read_tensors,
    write_imatrix,
    write_model,
    write_small_model,
)

TOKENS = 300
"""Tokens that the synthetic imatrix claims to have seen."""

UNKNOWN = "blk.3.attn_k.weight"
"""The matrix of the example that the synthetic imatrix leaves out, beside the embeddings."""

PROMPT, TEXT = "To install the package, run", " the package.\nThe package is a package that is a"
"""What the example says at 16 bits, and at any good number of bits below."""

U32, STRING, F32 = GGUFValueType.UINT32, GGUFValueType.STRING, GGUFValueType.FLOAT32


@cache
def example_weights() -> dict[str, Floats]:
    return {name: tensor.weights() for name, tensor in read_tensors(EXAMPLE).items()}


@cache
def example_sums() -> dict[str, Floats]:
    """Sums of squares for all matrices of the example but two."""
    return {
        name: random_sums(1, weights.shape[1], [TOKENS], seed=seed)
        for seed, (name, weights) in enumerate(example_weights().items())
        if weights.ndim == 2 and name not in (UNKNOWN, "token_embd.weight")
    }


@cache
def written_by_ggml(name: str, type_id: int, weighted: bool) -> bytes:
    """Return what ggml makes of one tensor of the example."""
    sums = example_sums().get(name) if weighted else None
    importance = None if sums is None else sums[0] / np.float32(TOKENS)
    rows = np.atleast_2d(example_weights()[name])
    return oracle.ggml_quantize(type_id, rows, importance).tobytes()


@pytest.fixture(scope="module")
def imatrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    entries = {name: (sums, np.array([TOKENS])) for name, sums in example_sums().items()}
    return write_imatrix(tmp_path_factory.mktemp("imatrix") / "imatrix.gguf", entries, chunks=2)


class Made(NamedTuple):
    """A file that q4hifi wrote, and its report."""

    path: Path
    report: q4hifi.QuantizeReport


@pytest.fixture(scope="module")
def hifi(imatrix: Path) -> Made:
    """The example as Q4_HIFI."""
    path = imatrix.with_name("hifi.gguf")
    return Made(path, q4hifi.quantize_file(EXAMPLE, path, imatrix=imatrix, coverage="scale"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("small") / "small.gguf")


# ---- the example, in every recipe ----------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "imatrix"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_tensor_is_what_ggml_writes(recipe: str, weighted: bool, imatrix: Path, tmp_path: Path) -> None:
    dst = tmp_path / "out.gguf"
    options: dict[str, Any] = {"refine": False, **({"imatrix": imatrix} if weighted else {})}
    if RECIPES[recipe].requires_imatrix:
        needed = UNKNOWN if weighted else ""
        with pytest.raises(BadOptionError, match=f"{recipe} needs an imatrix.* {needed}"):
            q4hifi.quantize_file(EXAMPLE, dst, recipe, **options)
        assert not dst.exists()
        if not weighted:
            return
        options["tensor_types"] = [(UNKNOWN, "Q3_K")]
    plan = q4hifi.plan_file(EXAMPLE, recipe, **options)
    report = q4hifi.quantize_file(EXAMPLE, dst, recipe, **options)
    assert report.plan == plan
    assert plan.file_bytes == report.file_bytes == dst.stat().st_size
    assert q4hifi.verify_file(dst) == []

    stored = read_tensors(dst)
    assert list(stored) == [part.name for tensor in plan.tensors for part in tensor.stored]
    for tensor in plan.tensors:
        if tensor.type.name == "Q4_HIFI":
            continue  # has no oracle; see test_q4_hifi_tensors_are_what_the_array_function_gives
        got = stored[tensor.name]
        assert got.type_id == tensor.type.id
        assert got.data == written_by_ggml(tensor.name, tensor.type.id, weighted), tensor.name


def test_q4_hifi_tensors_are_what_the_array_function_gives(hifi: Made) -> None:
    stored = read_tensors(hifi.path)
    names = [t.name for t in hifi.report.plan.tensors if t.type.name == "Q4_HIFI"]
    covered = [f"blk.{i}.attn_v.weight" for i in range(8)] + [f"blk.{i}.ffn_down.weight" for i in range(4)]
    assert names == sorted(covered)
    for name in names:
        importance = example_sums()[name][0] / np.float32(TOKENS)
        made = q4hifi.quantize(
            example_weights()[name], "Q4_HIFI", importance=importance, outliers=8, refine=True
        )
        parts = [stored[name + suffix] for suffix in ("", ".outlier_index", ".outlier_residual")]
        assert [part.data for part in parts] == [part.tobytes() for part in made.parts]
        assert [part.type_name for part in parts] == ["Q4_K", "I8", "F16"]
        rows, n = example_weights()[name].shape
        assert [part.shape for part in parts] == [(n, rows), (8, n // 256, rows), (8, n // 256, rows)]


def correlated(imatrix: Path, path: Path, *names: str) -> Path:
    """The importance matrix of a long text, with correlations of all inputs, or of some matrices'."""
    known = ImportanceSums.of(q4hifi.load_importance(imatrix))
    tensors = {
        name: ColumnSums(squares * 128, counts * 128) for name, (squares, counts) in known.tensors.items()
    }
    products = {}
    for name, sums in tensors.items():
        if name in names or not names:
            n = sums.squares.shape[-1]
            common = np.random.default_rng(1).standard_normal((n, 4)).astype(np.float32)
            common *= np.sqrt(sums.squares[0] / (2 * (common**2).sum(-1)))[:, np.newaxis]
            products[name] = (common @ common.T)[np.triu_indices(n, 1)].reshape(1, -1)
    replace(known, tensors=tensors, products=products).save(path)
    return path


def test_errors_cancel_where_the_imatrix_knows_correlations(imatrix: Path, tmp_path: Path) -> None:
    """In refined tensors only; the recipe of llama-quantize has its bytes whatever the imatrix knows."""
    query = "blk.0.attn_q.weight"
    sources = (
        imatrix,
        correlated(imatrix, tmp_path / "other.gguf", "blk.1.attn_q.weight"),
        correlated(imatrix, tmp_path / "query.gguf", query, "blk.1.attn_q.weight"),
    )
    changed = {}
    for refine in (False, True):
        written = []
        for source in sources:
            q4hifi.quantize_file(
                EXAMPLE, tmp_path / "out.gguf", "Q4_K_S", imatrix=source, refine=refine, overwrite=True
            )
            written.append({name: t.data for name, t in read_tensors(tmp_path / "out.gguf").items()})
        changed[refine] = {name for name, data in written[1].items() if data != written[2][name]}
        assert refine or written[0] == written[1]
    assert changed == {False: set(), True: {query, "blk.0.attn_k.weight", "blk.0.attn_v.weight"}}


def test_the_plan_knows_where_errors_cancel(imatrix: Path, tmp_path: Path) -> None:
    def predicted(source: Path, refine: bool) -> float:
        plan = q4hifi.plan_file(EXAMPLE, imatrix=source, like="Q4_K_M", stock=True, refine=refine)
        assert plan.measured is not None
        return plan.measured.predicted_kld

    known = correlated(imatrix, tmp_path / "correlated.gguf")
    assert predicted(known, refine=False) == predicted(imatrix, refine=False)
    left = predicted(known, refine=True) / predicted(imatrix, refine=True)
    assert FED_BACK <= left < FED_BACK + 0.1


def test_the_gguf_package_reads_the_file(hifi: Made) -> None:
    tensors = gguf.GGUFReader(hifi.path).tensors
    got = {t.name: (t.tensor_type, tuple(t.shape.tolist()), t.data.tobytes()) for t in tensors}
    assert got == {name: (t.type_id, t.shape, t.data) for name, t in read_tensors(hifi.path).items()}


@pytest.mark.parametrize("recipe", ["Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"])
def test_the_stock_engine_runs_the_file(recipe: str, tmp_path: Path) -> None:
    q4hifi.quantize_file(EXAMPLE, tmp_path / "out.gguf", recipe)
    assert oracle.llama_generate(EXAMPLE, PROMPT, 12, threads=1) == TEXT
    assert oracle.llama_generate(tmp_path / "out.gguf", PROMPT, 12, threads=1) == TEXT


def test_the_stock_engine_refuses_the_companions_of_q4_hifi(hifi: Made) -> None:
    error = oracle.llama_load_error(hifi.path) or "it loads"
    assert "wrong number of tensors; expected 114, got 90" in error


# ---- metadata ------------------------------------------------------------------------------------


def metadata_of(path: Path) -> Metadata:
    with GgufFile.open(path) as model:
        return model.metadata


@pytest.mark.parametrize(("recipe", "file_type"), [("Q4_HIFI", 14), ("Q4_K_M", 15), ("COPY", 1), ("F32", 0)])
def test_metadata_is_carried_over_to_the_byte(recipe: str, file_type: int, tmp_path: Path) -> None:
    q4hifi.quantize_file(EXAMPLE, tmp_path / "out.gguf", recipe)
    source, written = metadata_of(EXAMPLE), metadata_of(tmp_path / "out.gguf")
    changed = ["general.quantization_version", "general.file_type"]
    kept = [key for key in source if key not in changed]
    assert list(written)[: len(kept) + 2] == kept + changed
    assert [written.raw(key) for key in kept] == [source.raw(key) for key in kept]
    assert [(written[key], written.value_type(key)) for key in changed] == [(2, U32), (file_type, U32)]


def test_q4_hifi_and_the_imatrix_are_recorded(imatrix: Path, tmp_path: Path) -> None:
    q4hifi.quantize_file(EXAMPLE, tmp_path / "out.gguf", imatrix=imatrix, outliers=5, ffn_down_coverage=0.3)
    written = metadata_of(tmp_path / "out.gguf")
    recorded = [
        (key, written[key], written.value_type(key)) for key in written if key not in metadata_of(EXAMPLE)
    ]
    assert recorded == [
        ("quantize.imatrix.file", str(imatrix)[:127], STRING),
        ("quantize.imatrix.dataset", "calibration.txt", STRING),
        ("quantize.imatrix.entries_count", len(example_sums()), U32),
        ("quantize.imatrix.chunks_count", 2, U32),
        ("q4_hifi.version", 1, U32),
        ("q4_hifi.layout", "split", STRING),
        ("q4_hifi.outliers", 5, U32),
        ("q4_hifi.ffn_down_coverage", pytest.approx(0.3), F32),
    ]


def test_a_mix_of_llama_cpp_records_nothing_of_q4_hifi(small: Path, tmp_path: Path) -> None:
    q4hifi.quantize_file(small, tmp_path / "hifi.gguf")
    for source in (small, tmp_path / "hifi.gguf"):
        q4hifi.quantize_file(source, tmp_path / "out.gguf", "Q4_K_M", allow_requantize=True, overwrite=True)
        assert not [key for key in metadata_of(tmp_path / "out.gguf") if key.startswith("q4_hifi.")]


# ---- the report ----------------------------------------------------------------------------------


def test_the_report_agrees_with_the_file(hifi: Made, imatrix: Path) -> None:
    dst, report = hifi
    assert (report.source, report.source_bytes) == ((EXAMPLE,), EXAMPLE.stat().st_size)
    assert (report.destination, report.file_bytes) == ((dst,), dst.stat().st_size)
    assert report.imatrix == str(imatrix)
    assert report.without_importance == ("token_embd.weight", UNKNOWN)
    assert report.seconds > 0 and report.weights_per_second > 0

    stored = read_tensors(dst)
    for kind in ("Q4_K", "Q6_K", "F32"):
        mine = [t for t in report.plan.tensors if t.type.name == kind]
        total = report.plan.by_type[kind]
        assert total.tensors == len(mine)
        assert total.weights == sum(prod(stored[t.name].shape) for t in mine)
        assert total.bytes == sum(len(stored[t.name].data) for t in mine)
    assert report.plan.tensor_bytes == sum(len(t.data) for t in stored.values())
    assert sum(total.bytes for total in report.plan.by_type.values()) == report.plan.tensor_bytes


def test_reported_errors_are_what_numpy_computes(hifi: Made) -> None:
    path, report = hifi
    matrices = {name for name, weights in example_weights().items() if weights.ndim == 2}
    assert set(report.errors) == matrices
    by_role: dict[str, list[float]] = {}
    with q4hifi.open(path) as model:
        for tensor in report.plan.tensors:
            if tensor.name not in matrices:
                continue
            weights = example_weights()[tensor.name].astype(np.float64)
            sums = example_sums().get(tensor.name)
            importance = np.ones(weights.shape[1]) if sums is None else sums[0] / np.float32(TOKENS)
            error = ((weights - model[tensor.name].dequantize()) ** 2 * importance).sum()
            reference = (weights**2 * importance).sum()
            got = report.errors[tensor.name]
            assert (got.error, got.reference) == pytest.approx((error, reference), rel=1e-5)
            assert got.relative == pytest.approx(error / reference, rel=1e-5)
            total = by_role.setdefault(tensor.role, [0.0, 0.0])
            total[0] += error
            total[1] += reference
    expected = {role: error / reference for role, (error, reference) in by_role.items()}
    got_by_role = {role: sums.relative for role, sums in report.error_by_role.items()}
    assert got_by_role == pytest.approx(expected, rel=1e-5)
    assert list(got_by_role.values()) == sorted(got_by_role.values(), reverse=True)


def test_the_report_is_json(hifi: Made) -> None:
    path, report = hifi
    read = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert read["file_bytes"] == read["plan"]["file_bytes"] == path.stat().st_size
    assert read["relative_error_by_role"]["attn_v"] == report.error_by_role["attn_v"].relative
    errors = {t["name"]: t["relative_error"] for t in read["plan"]["tensors"]}
    assert errors["output_norm.weight"] is None
    assert errors["token_embd.weight"] == report.errors["token_embd.weight"].relative


def test_copying_has_no_errors_to_report(tmp_path: Path) -> None:
    report = q4hifi.quantize_file(EXAMPLE, tmp_path / "out.gguf", "COPY")
    assert report.errors == {} and report.error_by_role == {}
    assert read_tensors(tmp_path / "out.gguf") == read_tensors(EXAMPLE)


def test_weights_without_any_importance_have_a_relative_error(tmp_path: Path) -> None:
    """Where all weights that count are zero there is no magnitude to relate the error to."""
    weights = random_weights(2, 256)
    weights[:, 3] = 0
    sums = np.zeros((1, 256))
    sums[0, 3] = 1
    name = "blk.0.attn_q.weight"
    write_model(tmp_path / "in.gguf", {name: weights})
    write_imatrix(tmp_path / "imatrix.gguf", {name: (sums, np.ones(1))})
    report = q4hifi.quantize_file(
        tmp_path / "in.gguf", tmp_path / "out.gguf", "Q4_K_S", imatrix=tmp_path / "imatrix.gguf"
    )
    assert report.errors[name].reference == 0
    json.dumps(report.as_dict(), allow_nan=False)


# ---- experts -------------------------------------------------------------------------------------

EXPERTS = "blk.0.ffn_down_exps.weight", "blk.1.ffn_down_exps.weight"


def expert_model(folder: Path) -> tuple[dict[str, Floats], dict[str, tuple[Floats, Floats]]]:
    """Write a model of four experts, whose third was never activated, with its imatrix."""
    tensors = {
        "token_embd.weight": random_weights(32, 256, seed=1),
        "blk.0.ffn_gate_inp.weight": random_weights(4, 256, seed=2),
        EXPERTS[0]: random_weights(4, 6, 512, seed=3),
        EXPERTS[1]: random_weights(4, 5, 256, seed=4),
        "blk.1.attn_q.weight": random_weights(7, 256, seed=5),
    }
    counts = np.array([5, 300, 0, 17], np.float32)
    sums = {
        name: (random_sums(4, tensors[name].shape[2], [5, 300, 0, 17], seed=seed), counts)
        for seed, name in enumerate(EXPERTS)
    }
    write_model(
        folder / "moe.gguf",
        tensors,
        architecture="qwen3moe",
        n_layer=2,
        pairs=[("qwen3moe.expert_count", 4, U32)],
    )
    write_imatrix(folder / "moe-imatrix.gguf", sums)
    return tensors, sums


@pytest.mark.parametrize(
    ("recipe", "types"), [("Q4_K_M", ("Q4_K", "Q6_K")), ("Q4_HIFI", ("Q4_HIFI", "Q4_K"))]
)
def test_every_expert_takes_its_own_importance(recipe: str, types: tuple[str, str], tmp_path: Path) -> None:
    tensors, sums = expert_model(tmp_path)
    report = q4hifi.quantize_file(
        tmp_path / "moe.gguf",
        tmp_path / "out.gguf",
        recipe,
        imatrix=tmp_path / "moe-imatrix.gguf",
        coverage="scale" if recipe == "Q4_HIFI" else None,
        refine=False,
    )
    assert report.inactive_experts == dict.fromkeys(EXPERTS, (2,))
    assert report.without_importance == ("token_embd.weight", "blk.1.attn_q.weight")
    stored = read_tensors(tmp_path / "out.gguf")
    assert stored["blk.0.ffn_gate_inp.weight"].type_name == "F16"
    for name, type_name in zip(EXPERTS, types, strict=True):
        values, counts = sums[name]
        for expert in range(4):
            importance = np.ones_like(values[expert])
            if counts[expert]:
                importance = values[expert] / counts[expert]
            for suffix, data in encoded_alone(tensors[name][expert], importance, type_name).items():
                size = len(data)
                got = stored[name + suffix].data[expert * size : (expert + 1) * size]
                assert got == data, (name, suffix, expert)


def encoded_alone(weights: Floats, importance: Floats, type_name: str) -> dict[str, bytes]:
    """Return suffix -> bytes of one expert: ggml's, or where it is Q4_HIFI those of q4hifi.quantize."""
    if type_name != "Q4_HIFI":
        return {"": oracle.ggml_quantize(TYPES[type_name].id, weights, importance).tobytes()}
    made = q4hifi.quantize(weights, "Q4_HIFI", importance=importance, outliers=8)
    suffixes = ("", ".outlier_index", ".outlier_residual")
    return {suffix: part.tobytes() for suffix, part in zip(suffixes, made.parts, strict=True)}


def test_an_imatrix_of_another_model_is_refused(tmp_path: Path) -> None:
    expert_model(tmp_path)
    write_imatrix(tmp_path / "wrong.gguf", {EXPERTS[0]: (np.ones((1, 512)), np.ones(1))})
    before = names_in(tmp_path)
    with pytest.raises(BadFileError, match=r"wrong\.gguf: blk\.0\.ffn_down_exps\.weight has 512 values"):
        q4hifi.quantize_file(tmp_path / "moe.gguf", tmp_path / "out.gguf", imatrix=tmp_path / "wrong.gguf")
    assert names_in(tmp_path) == before


def test_include_and_exclude_weights_choose_what_the_imatrix_is_used_for(
    imatrix: Path, tmp_path: Path
) -> None:
    dst = tmp_path / "out.gguf"
    for options, weighted in (
        ({"include_weights": ["ffn_"]}, lambda name: "ffn_" in name),
        ({"exclude_weights": ["ffn_", "attn_q"]}, lambda name: "ffn_" not in name and "attn_q" not in name),
    ):
        report = q4hifi.quantize_file(EXAMPLE, dst, "Q4_K_S", imatrix=imatrix, overwrite=True, **options)
        stored = read_tensors(dst)
        for tensor in report.plan.tensors:
            expected = written_by_ggml(tensor.name, tensor.type.id, weighted(tensor.name))
            assert stored[tensor.name].data == expected, tensor.name
    with pytest.raises(BadOptionError, match="give one"):
        q4hifi.quantize_file(EXAMPLE, dst, include_weights=["ffn_"])


# ---- sources -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("has", "wanted"), [("fork", "split"), ("split", "fork")])
def test_a_model_in_the_other_layout_is_for_export(
    has: str, wanted: str, small: Path, tmp_path: Path
) -> None:
    q4hifi.quantize_file(small, tmp_path / "in.gguf", layout=has)
    with pytest.raises(UnsupportedModelError, match=f"the {has} layout; use export .* the {wanted} layout"):
        q4hifi.quantize_file(tmp_path / "in.gguf", tmp_path / "out.gguf", layout=wanted)
    assert names_in(tmp_path) == {"in.gguf"}


ODD_ROWS = {
    "blk.0.attn_q.weight": random_weights(5, 96, seed=1),  # Q4_K -> Q5_0
    "blk.0.attn_v.weight": random_weights(5, 160, seed=2),  # Q6_K -> Q8_0
    "blk.0.attn_k.weight": random_weights(5, 48, seed=3),  # no block fits -> F16
    "blk.0.ffn_up.weight": random_weights(5, 256, seed=4),
}


def test_rows_that_256_does_not_divide_fall_back(tmp_path: Path) -> None:
    write_model(tmp_path / "in.gguf", ODD_ROWS)
    report = q4hifi.quantize_file(tmp_path / "in.gguf", tmp_path / "out.gguf", "Q4_K_M")
    taken = {t.name: (t.fallback_from and t.fallback_from.name, t.type.name) for t in report.plan.tensors}
    assert taken == {
        "blk.0.attn_k.weight": ("Q4_K", "F16"),
        "blk.0.attn_q.weight": ("Q4_K", "Q5_0"),
        "blk.0.attn_v.weight": ("Q6_K", "Q8_0"),
        "blk.0.ffn_up.weight": (None, "Q4_K"),
    }
    for name, tensor in read_tensors(tmp_path / "out.gguf").items():
        assert tensor.type_name == taken[name][1]
        assert tensor.data == oracle.ggml_quantize(tensor.type_id, ODD_ROWS[name]).tobytes()


def test_falling_back_can_be_refused(tmp_path: Path) -> None:
    write_model(tmp_path / "in.gguf", ODD_ROWS)
    with pytest.raises(
        UnsupportedModelError, match=r"3 tensors do not fit.*blk\.0\.attn_k\.weight \(rows of 48"
    ):
        q4hifi.quantize_file(tmp_path / "in.gguf", tmp_path / "out.gguf", "Q4_K_M", no_fallback=True)
    assert names_in(tmp_path) == {"in.gguf"}


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("recipe", ["Q4_K_M", "Q8_0", "F16", "BF16", "F32", "COPY"])
def test_every_float_type_is_a_source(kind: str, recipe: str, tmp_path: Path) -> None:
    tensors = {f"blk.0.{part}.weight": random_weights(9, 512) for part in ("attn_q", "attn_v", "ffn_down")}
    tensors["blk.0.attn_norm.weight"] = random_weights(512)
    write_model(tmp_path / "in.gguf", tensors, kind=kind)
    q4hifi.quantize_file(tmp_path / "in.gguf", tmp_path / "out.gguf", recipe)
    for name, tensor in read_tensors(tmp_path / "out.gguf").items():
        weights = np.atleast_2d(tensors[name])
        assert tensor.data == oracle.ggml_quantize(tensor.type_id, weights).tobytes()


def test_an_f32_source_is_not_rounded_to_16_bits_on_the_way(tmp_path: Path) -> None:
    name = "blk.0.attn_q.weight"
    weights = np.random.default_rng(3).standard_normal((4, 256), np.float32)
    write_model(tmp_path / "in.gguf", {name: weights}, kind="F32")
    for recipe in ("Q4_K_S", "F16", "BF16"):
        q4hifi.quantize_file(tmp_path / "in.gguf", tmp_path / "out.gguf", recipe, overwrite=True)
        (tensor,) = read_tensors(tmp_path / "out.gguf").values()
        assert tensor.data == oracle.ggml_quantize(tensor.type_id, weights).tobytes()


# ---- sources that are quantized already ----------------------------------------------------------


def test_quantizing_twice_must_be_allowed(small: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    q4hifi.quantize_file(small, first, "Q8_0")
    with pytest.raises(UnsupportedModelError, match=r"token_embd\.weight is Q8_0 already, and 7 tensors"):
        q4hifi.quantize_file(first, second, "Q4_K_M")
    assert names_in(tmp_path) == {"first.gguf"}
    q4hifi.quantize_file(first, second, "Q4_K_M", allow_requantize=True)
    source = read_tensors(first)
    for name, tensor in read_tensors(second).items():
        weights = np.atleast_2d(source[name].weights())
        assert tensor.data == oracle.ggml_quantize(tensor.type_id, weights).tobytes()


def test_tensors_that_keep_their_quantized_type_are_copied(small: Path, tmp_path: Path) -> None:
    q4hifi.quantize_file(small, tmp_path / "first.gguf", "Q6_K")
    report = q4hifi.quantize_file(tmp_path / "first.gguf", tmp_path / "second.gguf", "Q6_K")
    assert report.errors == {}
    assert (tmp_path / "first.gguf").read_bytes() == (tmp_path / "second.gguf").read_bytes()


@pytest.mark.parametrize("layout", ["split", "fork"])
def test_a_q4_hifi_model_can_be_copied(layout: str, small: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"layout": layout, "outliers": 3, "ffn_down_coverage": 1}
    q4hifi.quantize_file(small, tmp_path / "first.gguf", **options)
    q4hifi.quantize_file(tmp_path / "first.gguf", tmp_path / "copy.gguf", "COPY")
    q4hifi.quantize_file(tmp_path / "first.gguf", tmp_path / "again.gguf", **options)
    for name in ("copy.gguf", "again.gguf"):
        assert read_tensors(tmp_path / name) == read_tensors(tmp_path / "first.gguf")
        assert read_pairs(tmp_path / name) == read_pairs(tmp_path / "first.gguf")


def test_a_q4_hifi_model_is_a_quantized_one(small: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    q4hifi.quantize_file(small, first)
    with pytest.raises(UnsupportedModelError, match=r"blk\.0\.attn_v\.weight is Q4_HIFI already"):
        q4hifi.quantize_file(first, second, "Q4_K_M")
    report = q4hifi.quantize_file(first, second, "Q5_K_M", allow_requantize=True)
    with q4hifi.open(first) as source:
        for name, tensor in read_tensors(second).items():
            if name in report.errors:
                weights = source[name].dequantize()
                assert tensor.data == oracle.ggml_quantize(tensor.type_id, weights).tobytes()


def test_layouts_are_changed_by_export_only(small: Path, tmp_path: Path) -> None:
    q4hifi.quantize_file(small, tmp_path / "first.gguf")
    with pytest.raises(
        UnsupportedModelError, match=r"in the split layout; use export .* into the fork layout"
    ):
        q4hifi.quantize_file(tmp_path / "first.gguf", tmp_path / "second.gguf", layout="fork")
    assert names_in(tmp_path) == {"first.gguf"}


# ---- weights that cannot be stored ---------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("name", "place", "row", "column"),
    [
        ("blk.0.attn_q.weight", (3, 17), 3, 17),
        ("blk.0.ffn_gate_exps.weight", (1, 2, 255), 6, 255),
        ("blk.0.attn_norm.weight", (5,), 0, 5),
    ],
    ids=["encoded", "expert", "copied"],
)
@pytest.mark.parametrize("recipe", ["Q4_K_M", "Q4_HIFI", "Q8_0", "BF16", "COPY"])
def test_a_weight_that_is_not_finite_is_named(
    recipe: str, name: str, place: tuple[int, ...], row: int, column: int, value: float, tmp_path: Path
) -> None:
    tensors = {
        "blk.0.attn_q.weight": random_weights(5, 256),
        "blk.0.ffn_gate_exps.weight": random_weights(2, 4, 256),
        "blk.0.attn_norm.weight": random_weights(256),
    }
    tensors[name][place] = value
    write_model(tmp_path / "in.gguf", tensors)
    match = rf"in\.gguf: tensor {name}: the weight in row {row}, column {column} is NaN or infinite"
    with pytest.raises(NotFiniteError, match=match):
        q4hifi.quantize_file(tmp_path / "in.gguf", tmp_path / "out.gguf", recipe)
    assert names_in(tmp_path) == {"in.gguf"}


@pytest.mark.parametrize("recipe", ["Q4_K_M", "Q4_HIFI", "Q8_0", "F16"])
def test_weights_that_are_too_large_are_refused(recipe: str, tmp_path: Path) -> None:
    weights = random_weights(4, 256)
    weights[2, 7] = 1e30
    write_model(tmp_path / "in.gguf", {"blk.0.attn_q.weight": weights}, kind="F32")
    with pytest.raises(NotFiniteError, match=r"in\.gguf: tensor blk\.0\.attn_q\.weight: .*too large for"):
        q4hifi.quantize_file(tmp_path / "in.gguf", tmp_path / "out.gguf", recipe)
    assert names_in(tmp_path) == {"in.gguf"}
    q4hifi.quantize_file(tmp_path / "in.gguf", tmp_path / "out.gguf", "BF16")
