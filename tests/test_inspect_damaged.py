"""What ``inspect`` shows of files that cannot be read as models, and what it says is wrong."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from gguf import GGUFValueType

import q4hifi
from command import Run
from q4hifi.gguf_io.reader import GgufFile
from synthetic import EXAMPLE, write_small_model, write_stored
from test_hostile_files import F32, U8, array, build, entry, pair, shard, string, u32

KEY = u32(b"a.key", 7)

# what is wrong, the file, what is said, the tensors that are listed all the same
FAULTS: list[tuple[str, bytes, str, list[str]]] = [
    ("long name", build([KEY], [entry(b"n" * 64)]), "has 64 bytes; at most 63", ["n" * 64]),
    ("five dimensions", build([KEY], [entry(shape=(1, 2, 1, 1, 4))]), "5 dimensions; at most 4", ["w"]),
    ("unknown type", build([KEY], [entry(kind=1000)]), "unknown type id 1000; update q4hifi", ["w"]),
    ("removed type", build([KEY], [entry(kind=4)]), "unknown type id 4", ["w"]),
    ("broken rows", build([KEY], [entry(shape=(48,), kind=8)]), "not a multiple of Q8_0's 32", ["w"]),
    ("misaligned", build([KEY], [entry(offset=16)]), "begins at data byte 16", ["w"]),
    ("overlap", build([KEY], [entry(b"w"), entry(b"v")]), "'w' and 'v' overlap", ["w", "v"]),
    ("a name twice", build([KEY], [entry(), entry(offset=32)]), "two tensors are called 'w'", ["w", "w"]),
    ("impossible", build([KEY], [entry(shape=(2**62, 8))]), "impossible shape", ["w"]),
    ("a key twice", build([KEY, KEY], [entry()]), "key 'a.key' is there twice", ["w"]),
    ("empty key", build([KEY, u32(b"", 1)], [entry()]), "key 2 is empty", ["w"]),
    ("alignment", build([KEY, u32(b"general.alignment", 48)], [entry()]), "not a power of two", ["w"]),
    (
        "unknown value type",
        build([KEY, pair(b"k", 13, bytes(8))], [entry()]),
        "unknown value type 13",
        [],
    ),
    ("lying count", build([KEY], [entry()], n_tensors=9), "name of tensor|the entry of tensor", ["w"]),
    ("absurd count", build([KEY], n_pairs=1 << 62), "pairs and 0 tensors would end", []),
    (
        "data missing",
        build([KEY], [entry(), entry(b"v", offset=32)], data=16),
        "2 of 2 tensors are not",
        ["w", "v"],
    ),
]


@pytest.mark.parametrize(
    ("data", "message", "names"), [pytest.param(*case[1:], id=case[0]) for case in FAULTS]
)
def test_what_can_be_read_is_shown(
    data: bytes, message: str, names: list[str], run: Run, tmp_path: Path
) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    outcome = run("inspect", path, "--tensors")
    assert outcome.status == 1
    assert "a.key" in outcome.out and "7" in outcome.out
    assert f"Error: {path}: " in outcome.err
    found = json.loads(run("inspect", path, "--json").out)
    assert any(part in problem for part in message.split("|") for problem in found["problems"])
    assert [t["name"] for t in found["tensors"]][: len(names)] == names
    assert found["metadata"].get("a.key") == 7
    (finding,) = q4hifi.verify_file(path)  # other commands refuse it, for one of these faults
    assert finding.tensor is None


def test_several_faults_are_all_told(run: Run, tmp_path: Path) -> None:
    entries = [entry(b"n" * 70), entry(b"five", (1,) * 5, F32, 32), entry(b"odd", (8,), 999, 64), entry(b"w")]
    (tmp_path / "bad.gguf").write_bytes(build([KEY], entries, data=200))
    found = json.loads(run("inspect", tmp_path / "bad.gguf", "--json").out)
    assert len(found["problems"]) == 4  # two tensors lie in one place
    assert [t["bytes"] for t in found["tensors"]] == [32, 4, None, 32]
    assert [t["type"] for t in found["tensors"]] == ["F32", "F32", "type id 999", "F32"]
    assert [t.get("problem", "") != "" for t in found["tensors"]] == [False, False, True, False]


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_of_a_truncated_file_what_is_missing_is_said(share: float, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    shutil.copy(EXAMPLE, path)
    with GgufFile.open(EXAMPLE) as model:
        size, tensors = model.n_bytes, list(model.tensors.values())
    os.truncate(path, int(size * share))
    missing = {t.name for t in tensors if t.offset + t.nbytes > int(size * share)}
    outcome = run("inspect", path, "--tensors")
    assert outcome.status == 1
    assert "qwen3.block_count" in outcome.out and "blk.0.attn_q.weight" in outcome.out
    words = " ".join(outcome.err.split())
    verb = "is" if len(missing) == 1 else "are"
    assert f"{len(missing)} of {len(tensors)} tensors {verb} not completely in the file" in words
    assert f"{int(size * share)} of {size} bytes" in words and "download or copy it again" in words
    found = json.loads(run("inspect", path, "--json").out)
    assert {t["name"] for t in found["tensors"] if t.get("problem") in ("missing", "cut off")} == missing


def test_of_a_header_cut_off_the_beginning_is_shown(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(EXAMPLE.read_bytes()[:600])
    outcome = run("inspect", path)
    assert outcome.status == 1
    assert "general.architecture" in outcome.out and "cut off or damaged" in outcome.err


def test_a_shard_under_another_name_is_shown_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "renamed.gguf").write_bytes(shard(0, 2, 2, b"a"))
    outcome = run("inspect", tmp_path / "renamed.gguf", "--tensors")
    assert outcome.status == 1
    assert "split.count" in outcome.out and "32" in outcome.out
    assert "must be called NAME-00001-of-0000N.gguf" in " ".join(outcome.err.split())


def test_one_of_several_files_is_shown_where_others_are_missing(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "m-00001-of-00002.gguf"
    path.write_bytes(shard(0, 2, 2, b"a"))
    outcome = run("inspect", path, "--tensors")
    assert outcome.status == 1 and "split.no" in outcome.out
    assert "m-00002-of-00002.gguf" in outcome.err


def test_what_only_the_model_shows_is_told_too(run: Run, tmp_path: Path) -> None:
    """A version of q4hifi's that is not known, or companions that do not fit."""
    pairs = [("q4_hifi.version", 9, GGUFValueType.UINT32)]
    path = write_stored(tmp_path / "new.gguf", {"w": ("F32", (4,))}, pairs=pairs)
    outcome = run("inspect", path)
    assert outcome.status == 1 and "q4_hifi.version is 9" in outcome.err
    assert "q4_hifi.version" in outcome.out
    alone = write_stored(
        tmp_path / "alone.gguf", {"w": ("Q4_K", (2, 256)), "w.outlier_index": ("I8", (2, 1, 8))}
    )
    outcome = run("inspect", alone, "--tensors")
    assert outcome.status == 1 and "there is no tensor w.outlier_residual" in outcome.err
    assert "w.outlier_index" in outcome.out


def test_sound_files_have_no_problems(run: Run, tmp_path: Path) -> None:
    path = write_small_model(tmp_path / "in.gguf")
    assert json.loads(run("inspect", path, "--json").out)["problems"] == []
    assert run("inspect", path).status == 0


def test_of_very_many_problems_some_are_printed(run: Run, tmp_path: Path) -> None:
    entries = [entry(b"t%d" % i, (8,), 999, 32 * i) for i in range(100)]
    (tmp_path / "bad.gguf").write_bytes(build([KEY], entries, data=3200))
    outcome = run("inspect", tmp_path / "bad.gguf")
    assert outcome.err.count("Error: ") == 20 and "and 80 more" in outcome.err


@pytest.mark.parametrize("kind", range(13))
def test_the_file_type_may_be_of_any_kind(kind: int, run: Run, tmp_path: Path) -> None:
    value = {8: string(b"text"), 9: array(U8, 2, b"\1\2")}.get(kind, b"\1" * 8)
    size = {0: 1, 1: 1, 2: 2, 3: 2, 7: 1, 8: len(value), 9: len(value), 10: 8, 11: 8, 12: 8}.get(kind, 4)
    path = tmp_path / "odd.gguf"
    path.write_bytes(build([pair(b"general.file_type", kind, value[:size])], [entry()]))
    assert run("inspect", path).status == 0
    assert run("quantize", path, tmp_path / "out.gguf", "COPY").status == 0
