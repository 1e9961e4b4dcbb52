"""Runs that fail or are stopped, destinations that must not be touched, and what must not change a byte."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from gguf import GGUFValueType

import q4hifi
from q4hifi.codec.model_file import row_ranges
from q4hifi.errors import BadFileError, BadOptionError, Q4HifiError
from q4hifi.formats.layout import StoredTensor
from q4hifi.formats.types import F16
from q4hifi.gguf_io.header import data_offsets, header_bytes
from q4hifi.gguf_io.metadata import Metadata
from q4hifi.pipeline import rewrite
from synthetic import names_in, write_small_model

RECIPES = ["Q4_HIFI", "Q5_K_M"]


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Path]:
    """A model of nine tensors, which must be the same after the test."""
    path = write_small_model(tmp_path / "in.gguf")
    before, times = path.read_bytes(), path.stat()
    yield path
    assert path.read_bytes() == before
    assert path.stat().st_mtime_ns == times.st_mtime_ns


# ---- progress ------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_progress_rises_to_the_number_of_weights(
    recipe: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewrite, "row_ranges", partial(row_ranges, weights=5000))
    calls: list[tuple[int, int, str]] = []
    report = q4hifi.quantize_file(
        source, tmp_path / "out.gguf", recipe, progress=lambda *call: calls.append(call)
    )
    done, totals, names = zip(*calls, strict=True)
    assert list(done) == sorted(set(done)) and done[0] > 0
    assert set(totals) == {report.plan.n_params} == {done[-1]}
    assert list(dict.fromkeys(names)) == [tensor.name for tensor in report.plan.tensors]
    assert len(calls) > 50


# ---- what must not change a byte -----------------------------------------------------------------


@pytest.mark.usefixtures("many_cores")
@pytest.mark.parametrize("recipe", [*RECIPES, "Q8_0"])
def test_threads_do_not_change_a_byte(recipe: str, tmp_path: Path) -> None:
    source = write_small_model(tmp_path / "in.gguf")
    written = []
    for threads in (None, 1, 2, 3):
        q4hifi.quantize_file(source, tmp_path / "out.gguf", recipe, threads=threads, overwrite=True)
        written.append((tmp_path / "out.gguf").read_bytes())
    assert len(set(written)) == 1


@pytest.mark.parametrize("recipe", [*RECIPES, "Q8_0"])
def test_the_size_of_the_pieces_does_not_change_a_byte(
    recipe: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = q4hifi.quantize_file(source, tmp_path / "whole.gguf", recipe)
    for weights in (1, 1000, 20_000):
        monkeypatch.setattr(rewrite, "row_ranges", partial(row_ranges, weights=weights))
        report = q4hifi.quantize_file(source, tmp_path / "out.gguf", recipe, overwrite=True)
        assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()
        for name, sums in whole.errors.items():
            assert report.errors[name].relative == pytest.approx(sums.relative, rel=1e-9)


# ---- runs that do not end well -------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
def test_an_interrupted_run_leaves_nothing(
    at: float, error: type[BaseException], source: Path, tmp_path: Path
) -> None:
    def interrupt(done: int, total: int, _: str) -> None:
        if done >= at * total:
            raise error

    with pytest.raises(error):
        q4hifi.quantize_file(source, tmp_path / "out.gguf", progress=interrupt)
    assert names_in(tmp_path) == {"in.gguf"}


def test_an_interrupted_run_keeps_the_file_that_it_was_to_replace(source: Path, tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "out.gguf").write_bytes(b"precious")
    with pytest.raises(KeyboardInterrupt):
        q4hifi.quantize_file(source, tmp_path / "out.gguf", overwrite=True, progress=interrupt)
    assert (tmp_path / "out.gguf").read_bytes() == b"precious"
    assert names_in(tmp_path) == {"in.gguf", "out.gguf"}


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="space cannot be reserved here")
@pytest.mark.parametrize(("call", "writes"), [("posix_fallocate", 0), ("pwrite", 0), ("pwrite", 5)])
def test_a_full_disk_is_reported_and_leaves_nothing(
    call: str, writes: int, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = getattr(os, call), iter(range(100))

    def full(*arguments: object) -> object:
        if next(calls) >= writes:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*arguments)

    size = q4hifi.plan_file(source).file_bytes
    monkeypatch.setattr(os, call, full)
    with pytest.raises(Q4HifiError, match=rf"out\.gguf: the disk is full: the output needs {size} bytes"):
        q4hifi.quantize_file(source, tmp_path / "out.gguf")
    assert names_in(tmp_path) == {"in.gguf"}


def test_a_source_that_is_cut_off_meanwhile_is_reported(tmp_path: Path) -> None:
    source = write_small_model(tmp_path / "in.gguf")

    def cut_off(*_: object) -> None:
        os.truncate(source, source.stat().st_size // 2)

    with pytest.raises(BadFileError, match=r"in\.gguf: tensor '.*become shorter"):
        q4hifi.quantize_file(source, tmp_path / "out.gguf", progress=cut_off)
    assert names_in(tmp_path) == {"in.gguf"}


# ---- destinations --------------------------------------------------------------------------------


def never(*_: object) -> None:
    raise AssertionError("the work began")


@pytest.mark.parametrize("link", ["same", "symlink", "hardlink", "dots"])
def test_the_source_is_refused_as_destination(link: str, source: Path, tmp_path: Path) -> None:
    dst = tmp_path / "out.gguf"
    if link == "symlink":
        dst.symlink_to(source)
    elif link == "hardlink":
        dst.hardlink_to(source)
    else:
        (tmp_path / "folder").mkdir()
        dst = source if link == "same" else tmp_path / "folder" / ".." / "in.gguf"
    before = names_in(tmp_path)
    with pytest.raises(BadOptionError, match=r"is the source .*in\.gguf itself"):
        q4hifi.quantize_file(source, dst, overwrite=True, progress=never)
    assert names_in(tmp_path) == before


def test_an_existing_destination_needs_overwrite(source: Path, tmp_path: Path) -> None:
    dst = tmp_path / "out.gguf"
    dst.write_bytes(b"precious")
    with pytest.raises(BadOptionError, match=r"out\.gguf: exists already"):
        q4hifi.quantize_file(source, dst, progress=never)
    assert dst.read_bytes() == b"precious"
    q4hifi.quantize_file(source, dst, overwrite=True)
    assert q4hifi.verify_file(dst) == []
    assert names_in(tmp_path) == {"in.gguf", "out.gguf"}


@pytest.mark.parametrize(
    ("dst", "match"), [("no/such/folder/out.gguf", "there is no folder"), (".", "is not a file")]
)
def test_destinations_that_cannot_be_are_refused(dst: str, match: str, source: Path, tmp_path: Path) -> None:
    with pytest.raises(BadOptionError, match=match):
        q4hifi.quantize_file(source, tmp_path / dst, progress=never)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"type": "Q4_K_XXL"}, "unknown type 'Q4_K_XXL'"),
        ({"layout": "spoon"}, "unknown layout 'spoon'"),
        ({"outliers": 33}, "`outliers` is 33"),
        ({"ffn_down_coverage": 1.5}, r"`ffn_down_coverage` is 1\.5"),
        ({"minimal": True}, "`minimal` is for models above 100 B"),
        ({"tensor_types": [("(", "q8_0")]}, "no regular expression"),
        ({"output_tensor_type": "q9_0"}, "unknown tensor type 'q9_0'"),
        ({"threads": -1}, "`threads` is -1; give a number of threads, or 0 for one per core"),
        ({"imatrix": "not there.gguf"}, r"not there\.gguf: cannot be opened: No such file"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(
    options: dict[str, object], match: str, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(Q4HifiError, match=match):
        q4hifi.quantize_file(source, tmp_path / "out.gguf", progress=never, **options)  # type: ignore[arg-type]
    assert names_in(tmp_path) == {"in.gguf"}


# ---- the folder and other runs --------------------------------------------------------------------


def test_a_folder_that_disappears_meanwhile_is_reported(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()

    def remove(*_: object) -> None:
        shutil.rmtree(folder, ignore_errors=True)

    with pytest.raises(Q4HifiError, match=r"out\.gguf: (cannot be completed|the folder .* was removed)"):
        q4hifi.quantize_file(source, folder / "out.gguf", progress=remove)
    assert names_in(tmp_path) == {"in.gguf"}


def test_a_source_that_is_replaced_meanwhile_is_read_to_its_end(tmp_path: Path) -> None:
    source = write_small_model(tmp_path / "in.gguf")
    q4hifi.quantize_file(source, tmp_path / "expected.gguf", "Q8_0")

    def replace(*_: object) -> None:
        (tmp_path / "other").write_bytes(b"other")
        os.replace(tmp_path / "other", source)

    q4hifi.quantize_file(source, tmp_path / "out.gguf", "Q8_0", progress=replace)
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "expected.gguf").read_bytes()


def test_of_two_runs_at_once_one_wins_and_the_file_is_whole(source: Path, tmp_path: Path) -> None:
    q4hifi.quantize_file(source, tmp_path / "expected.gguf", "Q8_0")
    expected = (tmp_path / "expected.gguf").read_bytes()
    command = [sys.executable, "-m", "q4hifi", "quantize", source, tmp_path / "out.gguf", "Q8_0"]
    for options, statuses in (([], [0, 2]), (["--overwrite"], [0, 0])):
        runs = [subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL) for _ in range(2)]
        assert sorted(run.wait(60) for run in runs) == statuses
        assert (tmp_path / "out.gguf").read_bytes() == expected
    assert names_in(tmp_path) == {"in.gguf", "expected.gguf", "out.gguf"}


# ---- memory --------------------------------------------------------------------------------------

SPARSE_BYTES = 1_200_000_000
MOST_MEMORY_KIB = 300 << 10
"""Half of what is promised for any model."""

QUANTIZE_AND_REPORT_PEAK = """
import sys, q4hifi
q4hifi.quantize_file(sys.argv[1], sys.argv[2], "Q4_0", overwrite=True)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """The peak is the child's own: getrusage would add what this process had when it forked."""
    rows = SPARSE_BYTES // 3 // (2 * 4096)
    tensors = [StoredTensor(f"blk.{i}.ffn_up.weight", (4096, rows), F16) for i in range(3)]
    pairs = Metadata().with_value("general.architecture", "llama", GGUFValueType.STRING)
    pairs = pairs.with_value("llama.block_count", 3, GGUFValueType.UINT32)
    header = header_bytes(pairs, tensors, 32)
    source, dst = tmp_path / "sparse.gguf", tmp_path / "out.gguf"
    source.write_bytes(header)
    os.truncate(source, len(header) + data_offsets(tensors, 32)[-1])
    command = [sys.executable, "-c", QUANTIZE_AND_REPORT_PEAK, str(source), str(dst)]
    peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert dst.stat().st_size > SPARSE_BYTES * 18 // 64 * 0.99
    assert peak < MOST_MEMORY_KIB
