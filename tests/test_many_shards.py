"""Models of more shards than a process may open files."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import q4hifi
from q4hifi.errors import BadFileError
from q4hifi.files.file_pool import MAX_OPEN, FilePool
from q4hifi.files.positioned_file import PositionedFile
from q4hifi.gguf_io.reader import GgufFile
from q4hifi.gguf_io.writer import GgufWriter
from synthetic import read_tensors, write_runnable

resource = pytest.importorskip("resource")

LIMIT = 256


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of about 330 tensors that can be run."""
    path = tmp_path_factory.mktemp("whole") / "model.gguf"
    return write_runnable(path, "llama", n_layer=36, n_embd=32, n_ff=32, heads=(2, 2), head_size=16)


@pytest.fixture(scope="module")
def shards(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in a shard for each tensor; the first shard."""
    with GgufFile.open(whole) as model:
        tensors = list(model.tensors.values())
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4 * len(tensors)), hard))
        dst = tmp_path_factory.mktemp("shards") / "model.gguf"
        with GgufWriter(dst, model.metadata, tensors, shard_of=range(len(tensors))) as writer:
            for tensor in tensors:
                writer.write_at(tensor.name, 0, model.read(tensor))
            writer.commit()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(writer.paths) > LIMIT + 50
    return writer.paths[0]


LIMITED = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, ({LIMIT}, {LIMIT}))
from q4hifi.cli import main
main(sys.argv[1:])
"""


def limited(*words: object) -> subprocess.CompletedProcess[str]:
    """Run the command with a limit of open files."""
    command = [sys.executable, "-c", LIMITED, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "words",
    [
        ("inspect", "{}"),
        ("verify", "{}"),
        ("quantize", "{}", "out.gguf", "Q8_0", "--overwrite"),
        ("dequantize", "{}", "out.gguf", "F16", "--overwrite"),
    ],
    ids=lambda words: words[0],
)
def test_commands_need_few_open_files(words: tuple[str, ...], shards: Path, tmp_path: Path) -> None:
    outcome = limited(*(str(tmp_path / w) if w == "out.gguf" else w.format(shards) for w in words))
    assert (outcome.returncode, outcome.stderr) == (0, "")


RUN = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, ({LIMIT}, {LIMIT}))
import q4hifi
print(q4hifi.Model(sys.argv[1]).logits([1, 2, 3]).tobytes().hex())
"""


def test_a_model_of_many_shards_runs(shards: Path, whole: Path) -> None:
    done = subprocess.run([sys.executable, "-c", RUN, shards], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout == f"{q4hifi.Model(whole).logits([1, 2, 3]).tobytes().hex()}\n"


def test_many_shards_are_quantized_as_one_file(shards: Path, whole: Path, tmp_path: Path) -> None:
    assert limited("quantize", shards, tmp_path / "shards.gguf", "Q8_0").returncode == 0
    q4hifi.quantize_file(whole, tmp_path / "whole.gguf", "Q8_0")
    assert read_tensors(tmp_path / "shards.gguf") == read_tensors(tmp_path / "whole.gguf")


def test_too_many_outputs_are_an_error_with_a_remedy(shards: Path, tmp_path: Path) -> None:
    outcome = limited("quantize", shards, tmp_path / "out.gguf", "Q8_0", "--keep-split")
    assert outcome.returncode == 1
    assert "Too many open files; allow more open files, as with 'ulimit -n" in outcome.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="mappings cannot be listed here")
def test_a_mapping_lives_as_long_as_its_arrays(tmp_path: Path) -> None:
    path = tmp_path / "mapped"
    path.write_bytes(bytes(range(256)) * 64)

    def is_mapped() -> bool:
        return str(path) in Path("/proc/self/maps").read_text()

    with PositionedFile(path, "rb") as file:
        mapping = file.map()
    assert mapping is not None
    before = open_files()
    part = mapping.view(5000, 3)
    mapping.forget(0, 1 << 14)
    del mapping
    assert part.tolist() == [5000 % 256, 5001 % 256, 5002 % 256] and not part.flags.writeable
    assert is_mapped() and open_files() == before
    del part
    assert not is_mapped()


# ---- the pool ------------------------------------------------------------------------------------


@pytest.fixture
def pool(tmp_path: Path) -> FilePool:
    """A pool of more files than it keeps open; each holds its index."""
    paths = [tmp_path / str(i) for i in range(2 * MAX_OPEN)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes([i]))
    return FilePool(paths, lambda path: PositionedFile(path, "rb"))


def read(pool: FilePool, index: int) -> int:
    byte = bytearray(1)
    with pool.use(index) as file:
        file.read_into(0, memoryview(byte))
    return byte[0]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open files cannot be counted here")
def test_few_files_stay_open(pool: FilePool) -> None:
    before = open_files()
    for _ in range(2):
        assert [read(pool, i) for i in range(len(pool.paths))] == list(range(len(pool.paths)))
    assert open_files() == before + MAX_OPEN
    pool.close()
    assert open_files() == before
    with pytest.raises(ValueError, match="closed"):
        read(pool, 0)


def test_threads_share_the_files(pool: FilePool) -> None:
    wrong: list[int] = []

    def work(seed: int) -> None:
        for index in np.random.default_rng(seed).integers(0, len(pool.paths), 2000).tolist():
            if read(pool, index) != index:
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    pool.close()


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(b"xy"),
        lambda path: path.rename(path.with_name("old")) and path.write_bytes(b"x"),
        lambda path: os.utime(path, (1, 1)),
    ],
)
def test_a_file_that_was_changed_while_it_was_closed_is_an_error(
    change: Callable[[Path], object], pool: FilePool
) -> None:
    for i in range(len(pool.paths)):
        read(pool, i)
    change(pool.paths[0])
    with pytest.raises(BadFileError, match="was changed while it was read"):
        read(pool, 0)
    pool.close()
