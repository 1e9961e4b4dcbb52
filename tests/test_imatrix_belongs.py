"""Importance matrices that are of another model are refused; what llama-imatrix leaves out is not missed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

import q4hifi
from command import Run
from q4hifi.errors import BadFileError
from q4hifi.formats.layout import StoredTensor
from q4hifi.formats.types import F16
from q4hifi.gguf_io.reader import GgufFile
from q4hifi.imatrix.belongs import check_belongs
from q4hifi.imatrix.file import load_importance
from synthetic import EXAMPLE, random_weights, write_imatrix, write_model

N_LAYER, WIDTH = 8, 256
DENSE = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
EXPERTS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")

Shapes = dict[str, tuple[int, ...]]
Known = Callable[[str], str | None]
"""Tensor of the model -> the entry of the imatrix that is made of it, if any."""


def model(parts: tuple[str, ...] = DENSE, n_layer: int = N_LAYER, prefix: str = "blk") -> Shapes:
    """Shapes of a model's tensors, row length first."""
    shapes: Shapes = {
        "token_embd.weight": (WIDTH, 90),
        "output.weight": (WIDTH, 90),
        "output_norm.weight": (WIDTH,),
    }
    for i in range(n_layer):
        for part in parts:
            shapes[f"{prefix}.{i}.{part}.weight"] = (WIDTH, 8, 4) if part.endswith("_exps") else (WIDTH, 8)
        shapes[f"{prefix}.{i}.attn_norm.weight"] = (WIDTH,)
    return shapes


def entries(shapes: Shapes, known: Known) -> dict[str, tuple[int, ...]]:
    """What llama-imatrix has of such a model, renamed or left out by ``known``."""
    inside = {name: shape for name, shape in shapes.items() if len(shape) > 1 and "token_embd" not in name}
    found = {name: known(name) for name in inside if name != "output.weight"}
    return {new: inside[name] for name, new in found.items() if new is not None}


def check(
    shapes: Shapes, known: Mapping[str, tuple[int, ...]], folder: Path, allow_missing: bool = False
) -> None:
    sums = {
        name: (
            np.ones((shape[2] if len(shape) > 2 else 1, shape[0])),
            np.ones(shape[2] if len(shape) > 2 else 1),
        )
        for name, shape in known.items()
    }
    importance = load_importance(write_imatrix(folder / "i.gguf", sums))
    tensors = {name: StoredTensor(name, shape, F16) for name, shape in shapes.items()}
    check_belongs(importance, tensors, "llama", model="m.gguf", allow_missing=allow_missing)


def layer(name: str) -> int:
    return int(name.split("blk.")[1].split(".")[0])


FUSED = ("attn_qkv", "attn_output", "ffn_up", "ffn_down")
MOE = ("attn_q", "attn_k", "attn_v", "attn_output", *EXPERTS)


def but(*parts: str, when: Callable[[int], bool] = lambda _: True) -> Known:
    """All but the tensors whose names contain one of the parts, in the layers chosen."""
    return lambda name: None if any(part in name for part in parts) and when(layer(name)) else name


def only(*parts: str) -> Known:
    return lambda name: name if any(part in name for part in parts) else None


WITH_NEXTN = model() | {f"blk.8.{part}.weight": (WIDTH, 8) for part in (*DENSE, "nextn.eh_proj")}
SPLIT_UP = ("attn_q", "ffn_up", *(f"ffn_up.{i}" for i in range(9)))

FITTING: Mapping[str, tuple[Shapes, Shapes, Known]] = {
    "whole": (model(), model(), str),
    "without layers": ({"a.weight": (WIDTH, 4), "b.weight": (WIDTH, 4)}, {"a.weight": (WIDTH, 4)}, str),
    "experts that no token reached": (model(MOE), model(MOE), but("_exps")),
    "experts of some layers": (model(MOE), model(MOE), but("_exps", when=lambda i: i % 3 > 0)),
    "experts of the last layers": (model(MOE), model(MOE), but("_exps", when=lambda i: i > 2)),
    "fused values, made unfused": (model((*FUSED, "ffn_gate")), model(), str),
    "unfused values, made fused": (model(), model((*FUSED, "ffn_gate")), str),
    "a role is missing": (model(), model(), but("ffn_down")),
    "a layer in the middle is missing": (model(), model(), but("blk", when=lambda i: i == 4)),
    "one token predicted further": (WITH_NEXTN, model(), str),
    "a tower beside": (model() | model(("attn_qkv",), 4, "v.blk"), model(), str),
    "a third of the matrices": (model(), model(), only("attn_q.", "ffn_up")),
}

MISFITTING: Mapping[str, tuple[Shapes, Shapes, Known, str]] = {
    "no name fits": (model(), model(prefix="enc.blk"), str, "its 56 entries name 0 of the 56 matrices"),
    "none but the output fits": (model(), {"output.weight": (WIDTH, 9)}, str, "its 1 entry names 0 of"),
    "another architecture": (model(), model(("time_mix_key", "attn_output", "ssm_in")), str, "name 8 of the"),
    "single entries": (model(), model(), only("blk.3.attn"), "its 4 entries name 4 of the 56 matrices"),
    "names that are strange": (
        *(model(), model(SPLIT_UP), str),
        r"72 of its 88 entries, such as blk\.0\.ffn_up\.0\.weight, name no tensor",
    ),
    "embeddings only": ({"token_embd.weight": (WIDTH, 9)}, model(), str, "56 of its 56 entries"),
    "more layers": (model(), model(n_layer=9), str, r"go up to blk\.8, past the last layer"),
    "many more layers": (model(), model(n_layer=15), str, r"go up to blk\.14, past the last layer"),
    "fewer layers": (model(), model(n_layer=7), str, r"end at blk\.6, before the last layer"),
    "half the layers": (model(), model(n_layer=4), str, r"end at blk\.3, before the last layer"),
    "fewer layers of experts": (model(MOE), model(MOE, 6), str, r"end at blk\.5, before the last layer"),
    "fewer than those that are run": (WITH_NEXTN, model(n_layer=7), str, r"end at blk\.6, before the last"),
}


@pytest.mark.parametrize("case", FITTING)
def test_what_llama_quantize_takes_without_a_word_is_taken(case: str, tmp_path: Path) -> None:
    ours, theirs, known = FITTING[case]
    check(ours, entries(theirs, known), tmp_path)


@pytest.mark.parametrize("case", MISFITTING)
def test_the_imatrix_of_another_model_is_refused_unless_allowed(case: str, tmp_path: Path) -> None:
    ours, theirs, known, message = MISFITTING[case]
    made = entries(theirs, known) or {"output.weight": (WIDTH,)}
    with pytest.raises(
        BadFileError, match=rf"i\.gguf: .*(?:{message}).* m\.gguf; .*`allow_missing_importance=True`"
    ):
        check(ours, made, tmp_path)
    check(ours, made, tmp_path, allow_missing=True)


@pytest.mark.parametrize("allow_missing", [False, True])
def test_lengths_of_entries_must_agree_whatever_is_allowed(allow_missing: bool, tmp_path: Path) -> None:
    made = entries(model(), str)
    for wrong in ((2 * WIDTH, 8), (WIDTH // 2, 8), (WIDTH, 8, 2)):
        with pytest.raises(BadFileError, match=r"blk\.7\.ffn_down\.weight has .* columns x 1 matrix"):
            check(model(), {**made, "blk.7.ffn_down.weight": wrong}, tmp_path, allow_missing)
    check(model(), {**made, "token_embd.weight": (9, 9)}, tmp_path, allow_missing)  # as in llama-quantize


# ---- the commands --------------------------------------------------------------------------------


@pytest.fixture
def others(tmp_path: Path) -> Path:
    """An imatrix of a model of ten layers like the example's."""
    with GgufFile.open(EXAMPLE) as file:
        shapes = {name: t.shape for name, t in file.tensors.items() if len(t.shape) > 1}
    names = {name.replace("blk.7.", f"blk.{i}."): shape for name, shape in shapes.items() for i in (7, 8, 9)}
    sums = {name: (np.ones((1, shape[0])), np.ones(1)) for name, shape in names.items() if "blk" in name}
    return write_imatrix(tmp_path / "others.gguf", sums)


def test_the_commands_refuse_it_before_any_work(others: Path, run: Run, tmp_path: Path) -> None:
    destination = tmp_path / "out.gguf"
    commands = (
        ["quantize", EXAMPLE, destination, "Q4_K_M"],
        ["quantize", "--dry-run", EXAMPLE, destination, "Q4_K_M"],
        ["plan", EXAMPLE, "Q4_K_M"],
        ["plan", EXAMPLE, "--stock"],
    )
    for command in commands:
        outcome = run(*command, "--imatrix", others)
        assert outcome.status == 1 and not destination.exists()
        assert "others.gguf: its entries go up to blk.9" in outcome.err
        assert "or allow it with --allow-missing-importance\n" in outcome.err
    for command in commands:
        assert run(*command, "--imatrix", others, "--allow-missing-importance").status == 0
    with pytest.raises(BadFileError, match="past the last layer"):
        q4hifi.plan_file(EXAMPLE, imatrix=others)
    q4hifi.plan_file(EXAMPLE, imatrix=others, coverage="scale", allow_missing_importance=True)


def test_filters_do_not_make_an_imatrix_another_models(tmp_path: Path, run: Run) -> None:
    source = write_model(
        tmp_path / "in.gguf",
        {
            f"blk.{i}.{p}.weight": random_weights(2, 256, seed=i)
            for i in range(4)
            for p in ("attn_q", "attn_v")
        },
        n_layer=4,
    )
    sums = {
        f"blk.{i}.{p}.weight": (np.ones((1, 256)), np.ones(1)) for i in range(4) for p in ("attn_q", "attn_v")
    }
    write_imatrix(tmp_path / "i.gguf", sums)
    for option in (["--include-weights", "blk.2.attn_v"], ["--exclude-weights", "blk"]):
        outcome = run("plan", source, "Q4_K_M", "--imatrix", tmp_path / "i.gguf", *option)
        assert outcome.status == 0 and "has no effect" not in outcome.out


# ---- what the report says ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "heading", "rows"),
    [
        ({}, "squared error over squared weight\n", {}),
        (
            {f"blk.{i}.{p}.weight" for i in range(2) for p in ("attn_q", "attn_v")},
            "squared error over squared weight, weighted by importance\n",
            {},
        ),
        (
            {"blk.0.attn_q.weight", "blk.1.attn_q.weight", "blk.1.attn_v.weight"},
            "squared error over squared weight, weighted by importance where it is known\n",
            {"attn_q": "2 of 2", "attn_v": "1 of 2"},
        ),
    ],
)
def test_errors_are_called_weighted_only_where_they_are(
    known: set[str], heading: str, rows: dict[str, str], tmp_path: Path, run: Run
) -> None:
    parts = [f"blk.{i}.{p}.weight" for i in range(2) for p in ("attn_q", "attn_v")]
    source = write_model(tmp_path / "in.gguf", {n: random_weights(2, 256, seed=1) for n in parts}, n_layer=2)
    options = []
    if known:
        sums = {name: (np.ones((1, 256)), np.ones(1)) for name in known}
        options = ["--imatrix", write_imatrix(tmp_path / "i.gguf", sums)]
    outcome = run("quantize", source, tmp_path / "out.gguf", "Q4_K_M", *options)
    assert heading in outcome.out
    for role, share in rows.items():
        assert any(line.startswith(role) and line.endswith(share) for line in outcome.out.splitlines())
    assert (" of 2" in outcome.out) == bool(rows)
    left = [name for name in parts if known and name not in known]
    printed = run("quantize", source, tmp_path / "out.gguf", "Q4_K_M", *options, "--overwrite", "--json")
    assert json.loads(printed.out)["without_importance"] == left


def test_an_imatrix_whose_entries_are_all_left_out_weighs_nothing(tmp_path: Path, run: Run) -> None:
    name = "blk.0.attn_q.weight"
    source = write_model(tmp_path / "in.gguf", {name: random_weights(2, 256)})
    write_imatrix(tmp_path / "i.gguf", {name: (np.ones((1, 256)), np.ones(1))})
    options = ["--imatrix", tmp_path / "i.gguf", "--exclude-weights", "attn"]
    outcome = run("quantize", source, tmp_path / "out.gguf", "Q4_K_M", *options)
    assert outcome.status == 0 and "squared error over squared weight\n" in outcome.out


def test_an_entry_of_the_wrong_length_that_is_ignored_is_no_importance(tmp_path: Path) -> None:
    names = ["token_embd.weight", "blk.0.attn_q.weight"]
    source = write_model(tmp_path / "in.gguf", {name: random_weights(4, 256) for name in names})
    sums = {"token_embd.weight": (np.ones((1, 4)), np.ones(1)), names[1]: (np.ones((1, 256)), np.ones(1))}
    imatrix = write_imatrix(tmp_path / "i.gguf", sums)
    report = q4hifi.quantize_file(source, tmp_path / "out.gguf", "Q4_K_M", imatrix=imatrix)
    assert report.without_importance == ("token_embd.weight",)
