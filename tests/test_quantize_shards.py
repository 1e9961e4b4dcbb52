"""Models in several files: read as one, and written as the user wants them cut."""

from __future__ import annotations

from pathlib import Path

import pytest

import oracle
import q4hifi
from q4hifi.errors import BadOptionError
from q4hifi.gguf_io.reader import GgufFile
from synthetic import EXAMPLE, names_in, read_pairs, read_tensors, write_small_model

LIMIT = 60_000
"""Bytes of data per file; the embeddings alone are more, all the other tensors less."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("whole") / "model.gguf")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same model, cut into files by the gguf package."""
    folder = tmp_path_factory.mktemp("shards")
    write_small_model(folder / "model.gguf", split_max_tensors=4)
    paths = sorted(folder.iterdir())
    assert [path.name for path in paths] == [f"model-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    return paths


@pytest.mark.parametrize("opened", [0, 2])
@pytest.mark.parametrize("recipe", ["Q4_HIFI", "Q4_K_M", "COPY"])
def test_a_split_model_gives_the_file_of_the_whole_one(
    recipe: str, opened: int, whole: Path, shards: list[Path], tmp_path: Path
) -> None:
    q4hifi.quantize_file(whole, tmp_path / "whole.gguf", recipe)
    report = q4hifi.quantize_file(shards[opened], tmp_path / "merged.gguf", recipe)
    assert report.source == tuple(shards)
    assert report.source_bytes == sum(path.stat().st_size for path in shards)
    assert (tmp_path / "merged.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_the_split_can_be_kept(whole: Path, shards: list[Path], tmp_path: Path) -> None:
    q4hifi.quantize_file(whole, tmp_path / "whole.gguf")
    plan = q4hifi.plan_file(shards[0], keep_split=True)
    report = q4hifi.quantize_file(shards[1], tmp_path / "kept.gguf", keep_split=True)
    assert [path.name for path in report.destination] == [f"kept-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    assert plan.file_bytes == report.file_bytes == sum(path.stat().st_size for path in report.destination)
    assert read_tensors(report.destination[1]) == read_tensors(tmp_path / "whole.gguf")
    with GgufFile.open(shards[0]) as source, GgufFile.open(report.destination[0]) as kept:
        assert len(kept.tensors) > len(source.tensors) == 9
        for name, tensor in kept.tensors.items():
            assert tensor.shard == source.tensors[name.split(".outlier_")[0]].shard, name
    assert q4hifi.verify_file(report.destination[2]) == []


def test_a_model_in_one_file_has_no_split_to_keep(whole: Path, tmp_path: Path) -> None:
    report = q4hifi.quantize_file(whole, tmp_path / "out.gguf", keep_split=True)
    assert report.destination == (tmp_path / "out.gguf",)


@pytest.mark.parametrize("recipe", ["Q4_HIFI", "Q4_K_M"])
def test_the_output_can_be_cut_by_size(recipe: str, whole: Path, tmp_path: Path) -> None:
    q4hifi.quantize_file(whole, tmp_path / "whole.gguf", recipe)
    plan = q4hifi.plan_file(whole, recipe, split_max_size=LIMIT)
    report = q4hifi.quantize_file(whole, tmp_path / "cut.gguf", recipe, split_max_size=LIMIT)
    assert len(report.destination) == 3
    assert plan.file_bytes == report.file_bytes == sum(path.stat().st_size for path in report.destination)
    with GgufFile.open(report.destination[0]) as cut:
        data = [sum(t.nbytes for t in cut.tensors.values() if t.shard == i) for i in range(3)]
        assert data[0] > LIMIT >= max(data[1:])
        assert [name for name, t in cut.tensors.items() if t.shard == 0] == ["token_embd.weight"]
    assert read_tensors(report.destination[2]) == read_tensors(tmp_path / "whole.gguf")
    q4hifi.quantize_file(report.destination[1], tmp_path / "merged.gguf", "COPY")
    assert read_tensors(tmp_path / "merged.gguf") == read_tensors(tmp_path / "whole.gguf")
    assert read_pairs(tmp_path / "merged.gguf") == read_pairs(tmp_path / "whole.gguf")


def test_the_stock_engine_runs_a_cut_model(tmp_path: Path) -> None:
    prompt = "To install the package, run"
    q4hifi.quantize_file(EXAMPLE, tmp_path / "whole.gguf", "Q8_0")
    report = q4hifi.quantize_file(EXAMPLE, tmp_path / "cut.gguf", "Q8_0", split_max_size=2_000_000)
    assert len(report.destination) == 4
    text = oracle.llama_generate(tmp_path / "whole.gguf", prompt, 12, threads=1)
    assert text
    assert oracle.llama_generate(report.destination[0], prompt, 12, threads=1) == text


def test_one_existing_file_is_enough_to_refuse(whole: Path, tmp_path: Path) -> None:
    taken = tmp_path / "cut-00002-of-00003.gguf"
    taken.write_bytes(b"precious")
    with pytest.raises(BadOptionError, match=r"cut-00002-of-00003\.gguf: exists"):
        q4hifi.quantize_file(whole, tmp_path / "cut.gguf", split_max_size=LIMIT)
    assert names_in(tmp_path) == {taken.name} and taken.read_bytes() == b"precious"
    q4hifi.quantize_file(whole, tmp_path / "cut.gguf", split_max_size=LIMIT, overwrite=True)
    assert names_in(tmp_path) == {f"cut-0000{i}-of-00003.gguf" for i in (1, 2, 3)}


def test_the_source_is_not_replaced_by_its_own_split(shards: list[Path]) -> None:
    before = [path.read_bytes() for path in shards]
    with pytest.raises(BadOptionError, match="is the source"):
        q4hifi.quantize_file(shards[0], shards[0].with_name("model.gguf"), keep_split=True, overwrite=True)
    assert [path.read_bytes() for path in shards] == before


def test_keeping_and_cutting_exclude_each_other(shards: list[Path], tmp_path: Path) -> None:
    with pytest.raises(BadOptionError, match="choose one"):
        q4hifi.quantize_file(shards[0], tmp_path / "out.gguf", keep_split=True, split_max_size=LIMIT)
