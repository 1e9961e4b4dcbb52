"""Accidents at every system call that changes files: a kill, a full disk, an error of the disk.

``tests/faults/faults.c`` lets the Nth such call fail, or kills the process there. Whatever happens, the
inputs stay as they were, an output is the old file or the new one, whole, and the next run ends well.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import q4hifi
from synthetic import ROOT, names_in, write_small_model

FAULTS = ROOT / "tests" / "faults"
COMPILER = shutil.which("cc") or shutil.which("gcc")

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or COMPILER is None, reason="needs Linux and a C compiler"
)

KILL = 0
POINTS = int(os.environ.get("Q4HIFI_ACCIDENTS", "2"))
"""Calls at which each command is tried with each error, spread over all; every second over old outputs."""

COMMANDS = {
    "quantize": "quantize model.gguf out.gguf Q4_K_M --write-tensor-types types.txt",
    "shards": "quantize model.gguf out.gguf Q8_0 --split-max-size 100KiB",
    "dequantize": "dequantize model.gguf out.gguf F32",
    "imatrix": "imatrix example.gguf -f text.txt -c 8 --chunks 3 --fisher-chunks 1 -o out.gguf",
    "imatrix.dat": "imatrix example.gguf -f text.txt -c 8 --chunks 3 -o out.dat",
    "base": "perplexity example.gguf -f text.txt -c 8 --chunks 3 --kl-divergence-base out.kld",
    "compare": "compare example.gguf example.gguf -f text.txt -c 8 --chunks 3 --save out.gguf",
    "calibrate": "calibrate example.gguf -f text.txt -c 8 --chunks 1 --group 9 -o out.json",
}
INPUTS = ("model.gguf", "example.gguf", "text.txt")


class Zygote:
    """A process that has loaded the package, whose forks run commands with faults."""

    def __init__(self, folder: Path) -> None:
        library = folder / "faults.so"
        subprocess.run(
            [str(COMPILER), "-shared", "-fPIC", "-O1", "-o", library, FAULTS / "faults.c", "-ldl"], check=True
        )
        environment = os.environ | {"LD_PRELOAD": str(library), "PYTHONDONTWRITEBYTECODE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, FAULTS / "zygote.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(self, folder: Path, command: str, at: int = 0, error: int = 0, **options: Any) -> dict[str, Any]:
        """Run a command, whose files are in ``folder``; see ``tests/faults/zygote.py``."""
        words = [str(folder / word) if "." in word else word for word in command.split()]
        line = {"arguments": words, "at": at, "error": error, "named": False} | options
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(line) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    found = Zygote(tmp_path_factory.mktemp("faults"))
    with found.process:  # at the end its pipes are closed, and it ends
        yield found
    assert found.process.returncode == 0


@pytest.fixture(scope="module")
def inputs(short_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_small_model(folder / "model.gguf")
    shutil.copy(short_model, folder / "example.gguf")
    shutil.copy(ROOT / "tests" / "golden" / "text.txt", folder / "text.txt")
    return folder


@dataclass
class Scene:
    """A folder with the inputs, which nobody may change, and what a command makes of them."""

    folder: Path
    command: str
    calls: int
    expected: dict[str, bytes]

    def outputs(self) -> dict[str, bytes]:
        return {name: (self.folder / name).read_bytes() for name in names_in(self.folder) - set(INPUTS)}


def fresh(folder: Path, inputs: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in INPUTS:
        (folder / name).hardlink_to(inputs / name)
    return folder


@pytest.fixture(params=list(COMMANDS), scope="module")
def scene(
    request: pytest.FixtureRequest,
    zygote: Zygote,
    inputs: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Scene:
    """The command, run once without faults."""
    command = COMMANDS[request.param]
    folder = fresh(tmp_path_factory.mktemp("scene") / "files", inputs)
    found = zygote.run(folder, command)
    assert found["status"] == 0, found["err"]
    scene = Scene(folder, command, found["calls"], {})
    scene.expected = scene.outputs()
    return scene


@pytest.mark.parametrize("error", [KILL, errno.ENOSPC, errno.EIO], ids=["kill", "full", "disk error"])
def test_whatever_happens_files_are_whole(error: int, scene: Scene, zygote: Zygote, inputs: Path) -> None:
    before = {name: (inputs / name).read_bytes() for name in INPUTS}
    shift = {KILL: 0.1, errno.ENOSPC: 0.5, errno.EIO: 0.9}[error]
    for number in range(POINTS):
        at = 1 + int((number + shift) * scene.calls / POINTS)
        there, named = number % 2 == 0 and "calibrate" not in scene.command, number % 4 < 2
        folder = fresh(scene.folder, inputs)
        command = scene.command + " --overwrite" * there
        for name in scene.expected if there else ():
            (folder / name).write_bytes(b"old")
        found = zygote.run(folder, command, at, error, named=named)
        if error == KILL:
            assert found["status"] == -9 or (found["status"], found["calls"] < at) == (0, True)
        else:
            assert found["status"] in (0, 1), found["err"]
            assert "Traceback" not in found["err"]
            assert found["status"] == 0 or "Error: " in found["err"]
        assert {name: (inputs / name).read_bytes() for name in INPUTS} == before
        for name, data in scene.outputs().items():
            if name in scene.expected:
                assert (
                    data == scene.expected[name]
                    or is_kept(folder / name, command)
                    or (there and data == b"old")
                )
            else:
                assert name.endswith((".part", ".partial")), name
        # and the next run ends well
        command = scene.command + " --overwrite" * ("calibrate" not in scene.command)
        again = zygote.run(folder, command, named=named)
        assert again["status"] == 0, again["err"]
        assert names_in(folder) - set(INPUTS) == scene.expected.keys()
        for name, data in scene.outputs().items():
            assert data == scene.expected[name] or "compare" in command


def is_kept(path: Path, command: str) -> bool:
    """Whether a file holds the part of the work that was done, as some commands leave it."""
    if path.read_bytes() == b"old":
        return False
    if command.startswith("imatrix"):
        return q4hifi.load_importance(path).chunk_count is not None
    if command.startswith("compare"):
        return path.read_bytes().startswith(b"GGUF")
    return command.startswith("calibrate") and "matrices" in json.loads(path.read_text())
