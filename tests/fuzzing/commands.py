"""Running the ``q4hifi`` command on damaged files, in processes with limits on memory and time."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import q4hifi

from . import seeds
from .kinds import Kind
from .run import BLOCK, inputs

ADDRESS_SPACE = 6_000_000 * 1024
"""Bytes that a command may map, as after ``ulimit -v 6000000``."""

SECONDS = 60.0
"""Time limit of a command."""

FORBIDDEN = (
    "Traceback",
    "panicked",
    "internal error",
    "Warning:",
    "memory allocation of",
    "not enough memory",
)
"""Texts that the command must not print."""

STATUSES = (0, 1, 2)
"""Exit statuses that are not faults."""


@dataclass
class Ended:
    """A command that has ended. ``status`` is None after a timeout; ``data`` is the damaged file."""

    arguments: list[str]
    status: int | None
    seconds: float
    output: str
    data: bytes = field(repr=False)

    @property
    def fault(self) -> str | None:
        """The fault of the command; None if there was none."""
        if self.status is None:
            return f"it took more than {SECONDS} s"
        if self.status not in STATUSES:
            return f"exit status {self.status}"
        return next((f"it printed {word!r}" for word in FORBIDDEN if word in self.output), None)


def run_commands(kind: Kind, folder: Path, *, seed: int, n: int) -> Iterator[Ended]:
    """Run the kind's commands in turn on ``n`` damaged files, and yield how each ended.

    First, every command must accept an undamaged file.
    """
    valid = {
        "model": (folder / "valid.gguf", seeds.models()[0].data),
        "imatrix": (folder / "valid-imatrix.gguf", seeds.imatrices()[0].data),
        "text": (folder / "valid.txt", seeds.TEXT.encode()),
    }
    for path, data in valid.values():
        path.write_bytes(data)
    damaged = kind.path_in(folder)
    names = {name: str(path) for name, (path, _) in valid.items()}
    names |= {"f": str(damaged), "stem": str(damaged.with_suffix("")), "out": str(folder / "out.gguf")}

    def run(command: str, data: bytes) -> Ended:
        for file in (damaged, damaged.with_suffix("")):  # also the file that a command completed
            file.unlink(missing_ok=True)
        if data:
            damaged.write_bytes(data)
        return _run(command.format(**names).split(), folder, data)

    originals = kind.seeds()
    if kind.made_by:
        made = run(kind.made_by, b"")
        assert made.status == 0, made
        originals = [kind.adapt(damaged.read_bytes())]
    for command in kind.commands:
        ended = run(command, originals[0].data)
        assert ended.status == 0, ended
    for block in count():
        for i, data in enumerate(inputs(kind, seed, block, originals)):
            number = block * BLOCK + i
            if number == n:
                return
            yield run(kind.commands[number % len(kind.commands)], data)


def _run(arguments: list[str], folder: Path, data: bytes) -> Ended:
    start, status = time.perf_counter(), None
    package = str(Path(q4hifi.__file__).parents[1])  # of this package, whichever is installed
    environment = {**os.environ, "PYTHONPATH": package, "PYTHONWARNINGS": "default"}
    with (folder / "output").open("w+b") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "q4hifi", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment,
            preexec_fn=_limit_memory,
        )
        try:
            status = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        output.seek(0)
        text = output.read().decode("utf-8", "replace")
    return Ended(arguments, status, time.perf_counter() - start, text, data)


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
