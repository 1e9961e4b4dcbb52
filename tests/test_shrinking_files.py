"""Files that become shorter while they are in use end in an error, not in a signal."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import q4hifi
from q4hifi import BadFileError, Model
from q4hifi.evaluate.log_probs_file import LogProbsFile
from q4hifi.gguf_io.reader import GgufFile
from synthetic import EXAMPLE, ROOT

pytestmark = pytest.mark.skipif(os.name == "nt", reason="a mapped file cannot become shorter there")

TEXT = (ROOT / "tests/golden/text.txt").read_text()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return Path(shutil.copy(EXAMPLE, tmp_path / "model.gguf"))


@pytest.mark.parametrize("left", [0, 4096, 100_001, EXAMPLE.stat().st_size - 1])
@pytest.mark.parametrize(
    "use",
    [
        lambda model: model.logits([1, 2, 3]),
        lambda model: list(model.generate_tokens([1, 2], n=3)),
        lambda model: model.fisher([1, 2, 3]),
        lambda model: model.trace([1, 2, 3]),
    ],
)
def test_a_model_that_shrinks_is_an_error(path: Path, use: Callable[[Model], object], left: int) -> None:
    model = Model(path)
    os.truncate(path, left)
    with pytest.raises(BadFileError, match=f"{path}: the file became shorter while it was in use"):
        use(model)


def test_a_model_that_is_written_anew_meanwhile_is_an_error_once_something_of_it_was_lost(path: Path) -> None:
    data = path.read_bytes()
    model = Model(path)
    os.truncate(path, 0)
    with pytest.raises(BadFileError):
        model.logits([1, 2, 3])
    path.write_bytes(data)  # as long as before, but not what is mapped any more
    with pytest.raises(BadFileError, match="became shorter"):
        model.logits([1, 2, 3])
    assert np.isfinite(Model(path).logits([1, 2, 3])).all()


@pytest.mark.parametrize("left", [0, 1])
def test_a_model_that_shrinks_before_it_is_mapped_is_an_error(path: Path, left: int) -> None:
    with GgufFile.open(path) as file:
        os.truncate(path, left)
        with pytest.raises(BadFileError, match="has become shorter since it was opened"):
            file.map()


def test_models_come_and_go(path: Path) -> None:
    """What is watched of one that is gone does not count for the next."""
    expected = Model(path).logits([1, 2, 3])
    for _ in range(20):
        lost = Model(path)
        data = path.read_bytes()
        os.truncate(path, 50_000)
        with pytest.raises(BadFileError):
            lost.logits([1, 2, 3])
        del lost
        path.write_bytes(data)
        assert np.array_equal(Model(path).logits([1, 2, 3]), expected)


# Truncates the model at the first progress, in a process of its own, as a SIGBUS would end it.
COMMAND = """
import os, sys
import q4hifi.runtime.model
evaluate = q4hifi.runtime.model.Sequence.evaluate
def shrink(self, *arguments, **options):
    os.truncate(sys.argv[2], 70_000)
    return evaluate(self, *arguments, **options)
q4hifi.runtime.model.Sequence.evaluate = shrink
from q4hifi.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("options", [["perplexity"], ["imatrix", "-o", "sums.gguf"]])
def test_the_command_ends_with_status_1(path: Path, options: list[str]) -> None:
    (path.parent / "text.txt").write_text(TEXT)
    name, *rest = options
    run = subprocess.run(
        [sys.executable, "-c", COMMAND, name, path, "-f", "text.txt", "-c", "64", *rest],
        cwd=path.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1, run.stderr
    assert "the file became shorter while it was in use" in " ".join(run.stderr.split())
    assert "Traceback" not in run.stderr


def test_another_bus_error_ends_the_process_as_before(path: Path) -> None:
    """The handler minds its own mappings only; with faulthandler the traceback comes, too."""
    script = """if True:
        import faulthandler, mmap, os, sys
        if sys.argv[2] == "on":
            faulthandler.enable()
        import q4hifi
        model = q4hifi.Model(sys.argv[1])
        with open("other", "w+b") as file:
            file.truncate(1 << 16)
            other = mmap.mmap(file.fileno(), 0)
            file.truncate(0)
            other[5]
    """
    for faulthandler in ("off", "on"):
        run = subprocess.run(
            [sys.executable, "-c", script, path, faulthandler],
            cwd=path.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == -7 or "Bus error" in run.stderr, run
        assert ("Fatal Python error" in run.stderr) == (faulthandler == "on")


def test_a_base_file_that_shrinks_is_an_error(tmp_path: Path, path: Path) -> None:
    base = tmp_path / "base.kld"
    q4hifi.perplexity(path, TEXT, n_ctx=32, n_chunks=2, save_log_probs=base)
    opened = LogProbsFile.open(base)
    os.truncate(base, base.stat().st_size - 1000)
    with pytest.raises(BadFileError, match="shorter while it was in use"):
        opened.codes(1)
