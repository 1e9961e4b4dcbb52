"""Measured coverage: budgets, what is chosen within them, and the files that come of it."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import q4hifi
import q4hifi.allocation.measured_plan
from q4hifi.errors import BadFileError, BadOptionError
from q4hifi.formats.layout import Format
from q4hifi.formats.types import Q4_HIFI, TYPES
from q4hifi.plan.options import DEFAULT_COVERAGE, TypeOptions
from q4hifi.plan.plan import Plan
from q4hifi.plan.tensor_type_rules import read_tensor_type_file
from q4hifi.plan.tensor_types_file import write_tensor_types
from synthetic import EXAMPLE, random_weights, read_tensors, write_model, write_small_model

MEASURED: dict[str, Any] = {"coverage": "measured"}


@cache
def planned(**options: Any) -> Plan:
    return q4hifi.plan_file(EXAMPLE, **MEASURED, **options)


def types_of(plan: Plan) -> dict[str, str]:
    return {t.name: t.type.name for t in plan.tensors}


# ---- budgets -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"target_size": 4_000_001},
        {"target_bpw": 4.9},
        {"like": "Q4_K_M"},
        {"like": "Q4_K_M", "stock": True},
        {"like": "Q5_K_S", "layout": "fork"},
        {"target_size": 4_100_000, "split_max_size": 1_000_000},
        {},
    ],
    ids=str,
)
def test_a_budget_is_used_and_never_exceeded(options: dict[str, Any], tmp_path: Path) -> None:
    plan = planned(**options)
    report = q4hifi.quantize_file(EXAMPLE, tmp_path / "out.gguf", **MEASURED, **options)
    assert report.plan == plan
    size = sum(path.stat().st_size for path in report.destination)
    assert size == report.file_bytes == plan.file_bytes
    limit, used = options.get("target_size"), size
    if "target_bpw" in options:
        limit, used = int(options["target_bpw"] * plan.n_params / 8), plan.tensor_bytes
        assert plan.bits_per_weight <= options["target_bpw"]
    elif "like" in options:
        limit = q4hifi.plan_file(EXAMPLE, options["like"]).file_bytes
    elif limit is None:
        small = q4hifi.plan_file(EXAMPLE, "Q4_K_S").file_bytes
        assert small is not None
        limit = int(small * 1.06)
    assert limit is not None
    assert 0.995 * limit < used <= limit
    assert plan.measured is not None
    assert (plan.measured.budget, plan.measured.used) == (limit, used)
    assert 0 <= plan.measured.gap < 1e-3
    assert q4hifi.verify_file(report.destination[0]) == []


def test_the_smallest_is_told_where_the_budget_is_too_small() -> None:
    with pytest.raises(BadOptionError, match="the budget is 100000 bytes, and the smallest") as caught:
        planned(target_size=100_000)
    found = re.search(r"smallest that the types allow is (\d+)", str(caught.value))
    assert found
    smallest = int(found[1])
    assert planned(target_size=smallest).file_bytes == smallest
    with pytest.raises(BadOptionError, match=f"the smallest that the types allow is {smallest}"):
        planned(target_size=smallest - 1)


def test_the_smallest_is_told_in_bits_as_well() -> None:
    with pytest.raises(BadOptionError, match=r"give at least that$") as caught:
        planned(target_bpw=1.0)
    found = re.search(r"\((\S+ \S+), (\S+) bits per weight\)", str(caught.value))
    assert found and found[1].endswith("MiB")
    plan = planned(target_bpw=float(found[2]))
    assert plan.bits_per_weight <= float(found[2]) < plan.bits_per_weight + 0.001


def test_types_that_were_named_are_part_of_the_remedy() -> None:
    with pytest.raises(BadOptionError, match="or name smaller types in the options for single tensors"):
        planned(target_size=100_000, tensor_types=(("attn", "q8_0"),))


# ---- without importance --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "guessed"),
    [
        ({"like": "Q4_K_M"}, True),
        ({"stock": True}, True),
        ({"coverage": "measured"}, True),
        ({"target_bpw": 5.0, "exclude_weights": (), "refine": False}, True),
        ({}, False),  # by the table for the model's size
        ({"type": "Q4_K_M"}, False),
        ({"outliers": 4}, False),
        ({"like": "Q4_K_M", "imatrix": "i.gguf"}, False),
        ({"like": "Q4_K_M", "sensitivities": "s.json"}, False),
        ({"like": "Q4_K_M", "calibrate": "text.txt"}, False),
    ],
)
def test_options_know_whether_sensitivities_will_be_guessed(options: dict[str, Any], guessed: bool) -> None:
    assert q4hifi.QuantizeOptions(**options).guesses_sensitivities == guessed


def test_a_plan_warns_of_guessed_sensitivities(tmp_path: Path) -> None:
    (warning,) = planned(like="Q4_K_M").warnings
    assert "higher than estimated" in warning and "--imatrix" in warning
    known = {t.name: 0.1 for t in planned(like="Q4_K_M").tensors}
    (tmp_path / "s.json").write_text(json.dumps({"sensitivities": known}))
    assert q4hifi.plan_file(EXAMPLE, like="Q4_K_M", sensitivities=tmp_path / "s.json").warnings == ()


# ---- choices -------------------------------------------------------------------------------------


def test_more_bytes_are_never_worse() -> None:
    losses = []
    for size in (3_500_000, 3_800_000, 4_600_000, 5_900_000):
        plan = planned(target_size=size)
        measured = plan.measured
        assert measured is not None and plan.file_bytes is not None
        assert 0.995 * size < plan.file_bytes <= size
        losses.append(measured.predicted_kld)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] / 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_size": 10, "target_bpw": 5.0}, "`target_size` and `target_bpw` cannot go together"),
        ({"target_size": 10, "like": "Q4_K_M"}, "`target_size` and `like` cannot go together"),
        ({"target_size": 0}, "`target_size` is 0"),
        ({"target_bpw": 0.0}, "`target_bpw` is 0"),
        ({"target_bpw": float("nan")}, "`target_bpw` is nan"),
        ({"like": "Q4_HIFI"}, "`like` is Q4_HIFI"),
        ({"like": "COPY"}, "`like` is COPY"),
        ({"like": "Q9"}, "unknown type 'Q9'"),
        ({"stock": True, "coverage": "scale"}, "`stock`: for `coverage='measured'`"),
        ({"stock": True, "outliers": 8}, "`stock`: for `coverage='measured'`, and not with `outliers`"),
        (
            {"coverage": "measured", "ffn_down_coverage": 0.5},
            "`ffn_down_coverage`: not for `coverage=",
        ),
        ({"coverage": "measured", "pure": True}, "`pure`: not for `coverage='measured'`"),
        ({"coverage": "all"}, "unknown coverage 'all'; choose one of scale, measured"),
        (
            {"coverage": "measured", "type": "Q4_K_M"},
            "`coverage`: for type Q4_HIFI, and Q4_K_M is a fixed",
        ),
        ({"like": "Q4_K_S", "type": "Q4_K_M"}, "`like`: for type Q4_HIFI"),
        ({"sensitivities": "a.json", "type": "COPY"}, "`sensitivities`: for type Q4_HIFI"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadOptionError, match=re.escape(message)):
        TypeOptions(**options)


def test_an_option_of_measured_coverage_asks_for_it() -> None:
    for has_imatrix in (False, True):
        assert TypeOptions(like="Q4_K_M").is_measured(has_imatrix)
        assert TypeOptions(coverage="measured").is_measured(has_imatrix)
        assert not TypeOptions(coverage="scale").is_measured(has_imatrix)
        assert not TypeOptions(outliers=4).is_measured(has_imatrix)
        assert not TypeOptions(type="Q4_K_M").is_measured(has_imatrix)
        assert TypeOptions().is_measured(has_imatrix) == (DEFAULT_COVERAGE[has_imatrix] == "measured")


# ---- choices -------------------------------------------------------------------------------------


def test_stock_takes_stock_types_only() -> None:
    plan = planned(like="Q5_K_S", stock=True)
    assert "Q4_HIFI" not in types_of(plan).values()
    assert (plan.file_type, plan.size_class) == (16, None)  # mainly Q5_K, as Q5_K_S


@pytest.mark.parametrize("layout", ["split", "fork"])
def test_tensors_differ_in_their_outliers(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    formats = [Format(TYPES["Q4_K"]), *(Format(Q4_HIFI, n, layout) for n in (4, 16))]
    monkeypatch.setattr(q4hifi.allocation.measured_plan, "candidates", lambda *_, **__: tuple(formats))
    dst = tmp_path / "out.gguf"
    report = q4hifi.quantize_file(EXAMPLE, dst, **MEASURED, target_bpw=6.0, layout=layout)
    found = {t.outliers for t in report.plan.tensors if t.type == Q4_HIFI}
    assert found == ({4, 16} if layout == "split" else {16})  # there all blocks have room for 32
    with q4hifi.open(dst) as model:
        assert model.layout == layout
        for tensor in report.plan.tensors:
            assert model.tensors[tensor.name].format == tensor.target
        assert model.metadata["q4_hifi.outliers"] == 16
        roles = [t.type == Q4_HIFI for t in report.plan.tensors if t.role == "ffn_down"]
        assert model.metadata["q4_hifi.ffn_down_coverage"] == sum(roles) / len(roles)
    assert q4hifi.verify_file(dst) == []


def _write(path: Path, values: dict[str, float]) -> Path:
    path.write_text(json.dumps({"sensitivities": values}))
    return path


def test_sensitive_tensors_get_the_bits(tmp_path: Path) -> None:
    names = [t.name for t in planned().tensors]
    values = {name: 1.0 if "blk.3." in name else 1e-9 for name in names}
    plan = planned(like="Q4_K_M", sensitivities=_write(tmp_path / "s.json", values))
    types = types_of(plan)
    assert {types[name] for name in names if "blk.3." in name and "norm" not in name} == {"Q8_0"}
    assert plan.measured is not None
    assert plan.measured.sensitivities == str(tmp_path / "s.json")


def test_sensitivities_of_another_model_are_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "s.json", {"blk.0.attn_v.weight": 1.0})
    with pytest.raises(
        BadOptionError, match=r"s\.json: has no sensitivity for 56 tensors, such as token_embd"
    ):
        planned(sensitivities=path)
    with pytest.raises(BadFileError, match="cannot be read"):
        planned(sensitivities=tmp_path / "missing.json")


def test_what_the_user_names_is_not_chosen() -> None:
    types = types_of(
        planned(
            tensor_types=(("blk.2.attn_v", "q8_0"),), token_embedding_type="q4_0", leave_output_tensor=True
        )
    )
    assert (types["blk.2.attn_v.weight"], types["token_embd.weight"]) == ("Q8_0", "Q4_0")


def test_rows_that_256_does_not_divide_take_smaller_blocks(tmp_path: Path) -> None:
    tensors = {f"blk.0.{part}.weight": random_weights(300, 96, seed=1) for part in ("attn_q", "attn_v")}
    tensors["blk.0.ffn_down.weight"] = random_weights(300, 40)
    path = write_model(tmp_path / "model.gguf", tensors)
    plan = q4hifi.plan_file(path, **MEASURED, target_size=80_000)
    types = types_of(plan)
    assert types["blk.0.ffn_down.weight"] == "F16"
    assert {t.type.block_size for t in plan.tensors if t.name in tensors and t.shape[0] == 96} == {32}
    assert len(plan.fallbacks) == 3


@pytest.mark.parametrize(
    "options", [{"like": "Q4_K_M"}, {"target_bpw": 17.0}, {"no_fallback": True}], ids=str
)
def test_stock_types_never_fall_back_from_q4_hifi(options: dict[str, Any], tmp_path: Path) -> None:
    tensors = {
        f"blk.{i}.{part}.weight": random_weights(300, 96) for i in (0, 1) for part in ("attn_v", "ffn_down")
    }
    path = write_model(tmp_path / "model.gguf", tensors, n_layer=2)
    if "no_fallback" in options:
        with pytest.raises(q4hifi.UnsupportedModelError, match="Q4_K needs a multiple of 256") as caught:
            q4hifi.plan_file(path, stock=True, **options)
        assert "Q4_HIFI" not in str(caught.value)
        return
    plan = q4hifi.plan_file(path, stock=True, **options)
    assert {t.fallback_from and t.fallback_from.name for t in plan.fallbacks} == {"Q4_K"}
    assert len(plan.fallbacks) == 4


@pytest.mark.parametrize(
    "named",
    [
        {"tensor_types": [("attn_v", "q4_hifi")]},
        {"output_tensor_type": "Q4_HIFI"},
        {"token_embedding_type": "q4_hifi"},
    ],
    ids=str,
)
def test_stock_types_and_a_tensor_that_is_to_be_q4_hifi_exclude_each_other(named: dict[str, Any]) -> None:
    with pytest.raises(BadOptionError, match="`stock` excludes Q4_HIFI, which another option names"):
        TypeOptions(stock=True, **named)


def test_a_model_without_open_tensors_has_a_plan(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", {"blk.0.attn_norm.weight": random_weights(64)})
    plan = q4hifi.plan_file(path, **MEASURED, target_size=10_000)
    assert plan.measured is not None
    assert (plan.measured.predicted_kld, plan.measured.gap) == (0, 0)


def test_progress_counts_to_the_end_twice(tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    source = write_small_model(tmp_path / "model.gguf")
    q4hifi.quantize_file(source, tmp_path / "out.gguf", **MEASURED, progress=lambda *now: told.append(now))
    ends = [what for done, total, what in told if done == total]
    assert len(ends) == 2 and ends[0].startswith("error of ") and not ends[1].startswith("error of ")


# ---- files of types ------------------------------------------------------------------------------


def test_written_types_make_the_same_file_of_a_stock_recipe(tmp_path: Path) -> None:
    """As llama-quantize does with --tensor-type-file and the type that the file type names."""
    types = tmp_path / "types.txt"
    report = q4hifi.quantize_file(
        EXAMPLE, tmp_path / "a.gguf", **MEASURED, like="Q4_K_M", stock=True, refine=False
    )
    write_tensor_types(report.plan, types)
    entries = read_tensor_type_file(types)
    assert len(entries) == 57
    assert r"^blk\.0\.attn_k\.weight$" in dict(entries)
    kind = str(report.plan.file_type)
    q4hifi.quantize_file(EXAMPLE, tmp_path / "b.gguf", kind, tensor_types=entries)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    with pytest.raises(BadOptionError, match="exists already"):
        write_tensor_types(report.plan, types)
    write_tensor_types(report.plan, types, overwrite=True)


def test_the_file_says_what_it_holds(tmp_path: Path) -> None:
    report = q4hifi.quantize_file(EXAMPLE, tmp_path / "a.gguf", **MEASURED, target_bpw=5.0)
    data = report.as_dict()["plan"]
    assert data["measured"]["gap"] == 0
    stored = read_tensors(tmp_path / "a.gguf")
    by_role: dict[str, int] = {}
    for t in report.plan.tensors:
        if t.type.quantized:
            by_role[t.role] = by_role.get(t.role, 0) + 1
            assert stored[t.name].type_name == ("Q4_K" if t.outliers else t.type.name)
    assert {role: sum(kinds.values()) for role, kinds in report.plan.by_role.items()} == by_role
