"""Checking files to the last weight: sound ones pass, and damage is found where it is."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import q4hifi
from q4hifi.codec.model_file import row_ranges
from q4hifi.gguf_io.reader import GgufFile
from q4hifi.pipeline import verify
from q4hifi.plan.recipes import RECIPES
from synthetic import patch, write_small_model, write_stored

DOWN, VALUE, QUERY, NORM = (f"blk.0.{part}.weight" for part in ("ffn_down", "attn_v", "attn_q", "attn_norm"))
INDEX, RESIDUAL = ".outlier_index", ".outlier_residual"
OUTLIERS = 6

F16_NAN, F16_INFINITY = b"\x01\x7e", b"\x00\x7c"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("small") / "in.gguf")


@pytest.mark.parametrize("layout", ["split", "fork"])
@pytest.mark.parametrize("recipe", [name for name, recipe in RECIPES.items() if not recipe.requires_imatrix])
def test_what_q4hifi_writes_is_sound(recipe: str, layout: str, small: Path, tmp_path: Path) -> None:
    q4hifi.quantize_file(small, tmp_path / "out.gguf", recipe, layout=layout)
    assert q4hifi.verify_file(tmp_path / "out.gguf") == []


def make(path: Path, small: Path, kind: str) -> Path:
    """Write the small model as Q4_HIFI in a layout, or in a type."""
    if kind in ("split", "fork"):
        q4hifi.quantize_file(small, path, layout=kind, outliers=OUTLIERS)
    else:
        q4hifi.quantize_file(small, path, kind)
    return path


def place(path: Path, name: str, offset: int) -> int:
    """Return where in the file byte ``offset`` of a tensor is."""
    with GgufFile.open(path) as model:
        return model.tensors[name].offset + offset


def at_index(block: int, k: int) -> int:
    return block * OUTLIERS + k


# (what is damaged, the file, the tensor, the byte of it, the new bytes, the finding's tensor and message)
DAMAGES: list[tuple[str, str, str, int, bytes, str, str]] = [
    ("places out of order", "split", DOWN + INDEX, at_index(7, 2), b"\xff", DOWN, r"block 7: .*increasing"),
    ("a place twice", "split", VALUE + INDEX, at_index(63, 0), b"\x09" * 6, VALUE, r"block 63: .*increasing"),
    ("a residual NaN", "split", VALUE + RESIDUAL, 2 * at_index(3, 1), F16_NAN, VALUE, "row 3, column"),
    (
        "a residual infinite",
        "split",
        DOWN + RESIDUAL,
        2 * at_index(191, 5),
        F16_INFINITY,
        DOWN,
        "row 95, col",
    ),
    ("a base's scale NaN", "split", DOWN, 5 * 144, F16_NAN, DOWN, "row 2, column 2.. is NaN or infinite"),
    ("a base's min infinite", "split", VALUE, 9 * 144 + 2, F16_INFINITY, VALUE, "row 9, column"),
    ("a count of 33", "fork", DOWN, 240, b"\x21", DOWN, "33 outliers, but at most 32"),
    ("a later count of 33", "fork", DOWN, 244 + 240, b"\x21", DOWN, "block 1: more than 32 outliers"),
    ("places out of order", "fork", DOWN, 11 * 244 + 144, b"\xff", DOWN, r"block 11: .*increasing"),
    ("a value NaN", "fork", VALUE, 2 * 244 + 176, F16_NAN, VALUE, "row 2, column"),
    ("a base's scale NaN", "fork", VALUE, 244, F16_NAN, VALUE, "row 1, column"),
    ("a scale NaN", "Q8_0", QUERY, 34 * 8 * 4, F16_NAN, QUERY, "row 4, column 0 is NaN or infinite"),
    ("a scale infinite", "Q6_K", QUERY, 210 * 63 + 208, F16_INFINITY, QUERY, "row 63, column"),
    ("a scale NaN", "Q4_0", QUERY, 18 * 9, F16_NAN, QUERY, "row 1, column 32 is NaN"),
    ("a weight NaN", "F16", QUERY, 512 * 2 + 14, F16_NAN, QUERY, "row 2, column 7 is NaN"),
    ("a weight infinite", "BF16", QUERY, 512 * 2 + 14, b"\x80\xff", QUERY, "row 2, column 7 is NaN"),
    (
        "a norm NaN",
        "Q4_K_M",
        "blk.1.attn_norm.weight",
        4 * 9,
        b"\0\0\xc0\x7f",
        "blk.1.attn_norm.weight",
        "column 9",
    ),
]


@pytest.mark.parametrize(
    ("kind", "name", "offset", "data", "tensor", "match"),
    [pytest.param(*case[1:], id=f"{case[1]}: {case[0]}") for case in DAMAGES],
)
def test_damage_is_found_where_it_is(
    kind: str, name: str, offset: int, data: bytes, tensor: str, match: str, small: Path, tmp_path: Path
) -> None:
    path = make(tmp_path / "bad.gguf", small, kind)
    patch(path, place(path, name, offset), data)
    findings = q4hifi.verify_file(path)
    assert len(findings) == 1
    (finding,) = findings
    if finding.tensor is None:  # found when the file was opened
        assert f"bad.gguf: tensor {tensor}: " in finding.message
    else:
        assert finding.tensor == tensor
    assert re.search(match, finding.message), finding.message


@pytest.mark.parametrize("kind", ["split", "fork", "Q8_0"])
def test_places_are_those_of_the_tensor_not_of_the_piece(
    kind: str, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path / "bad.gguf", small, kind)
    name, offset, data, match = {
        "split": (DOWN + INDEX, at_index(150, 0), b"\xff", r"block 150\b"),
        "fork": (DOWN, 150 * 244 + 144, b"\xff", r"block 150\b"),
        "Q8_0": (DOWN, 34 * 16 * 75, F16_NAN, r"row 75, column 0\b"),
    }[kind]
    patch(path, place(path, name, offset), data)
    monkeypatch.setattr(verify, "row_ranges", partial(row_ranges, weights=4000))
    (finding,) = q4hifi.verify_file(path)
    assert finding.tensor == DOWN
    assert re.search(match, finding.message), finding.message


def test_every_damaged_tensor_is_found_once(small: Path, tmp_path: Path) -> None:
    path = make(tmp_path / "bad.gguf", small, "split")
    patch(path, place(path, VALUE + INDEX, 0), bytes(30))
    patch(path, place(path, DOWN, 0), F16_NAN)
    patch(path, place(path, QUERY, 0), F16_NAN)
    patch(path, place(path, QUERY, 144 * 5), F16_NAN)
    assert sorted(str(finding.tensor) for finding in q4hifi.verify_file(path)) == sorted([VALUE, DOWN, QUERY])


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def lose_its_magic(path: Path) -> None:
    patch(path, 0, b"GGML")


def vanish(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("damage", "match"), [(cut_off, "cut off"), (lose_its_magic, "not a GGUF"), (vanish, "No such file")]
)
@pytest.mark.parametrize("kind", ["split", "fork", "Q4_K_M"])
def test_a_broken_structure_is_the_only_finding(
    kind: str, damage: Callable[[Path], None], match: str, small: Path, tmp_path: Path
) -> None:
    path = make(tmp_path / "bad.gguf", small, kind)
    damage(path)
    (finding,) = q4hifi.verify_file(path)
    assert finding.tensor is None
    assert finding.message.startswith(f"{path}: ") and match in finding.message


def test_types_that_nothing_decodes_are_checked_for_their_size_only(tmp_path: Path) -> None:
    path = write_stored(tmp_path / "in.gguf", {QUERY: ("Q8_K", (2, 256))})
    patch(path, place(path, QUERY, 0), b"\0\0\xc0\x7f")  # a NaN
    assert q4hifi.verify_file(path) == []
    cut_off(path)
    (finding,) = q4hifi.verify_file(path)
    assert "cut off" in finding.message


def test_progress_rises_to_the_number_of_weights(small: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    q4hifi.verify_file(small, progress=lambda *call: calls.append(call))
    with q4hifi.open(small) as model:
        total = sum(tensor.n_elements for tensor in model.tensors.values())
        assert {name for _, _, name in calls} == {*model, ""}
    done = [call[0] for call in calls]
    assert done == sorted(done) and done[-1] == total
    assert {call[1] for call in calls} == {total}


@pytest.mark.parametrize("threads", [None, 1, 3])
def test_threads_find_the_same(threads: int | None, small: Path, tmp_path: Path) -> None:
    path = make(tmp_path / "bad.gguf", small, "split")
    rng = np.random.default_rng(0)
    for block in rng.integers(10, 190, 20):
        patch(path, place(path, DOWN, int(block) * 144), F16_NAN)
    patch(path, place(path, DOWN, 7 * 144), F16_NAN)
    (finding,) = q4hifi.verify_file(path, threads=threads)
    assert "row 3, column 256 is NaN" in finding.message
