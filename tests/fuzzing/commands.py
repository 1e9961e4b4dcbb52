"""Damaged files given to the real command, each in a process of its own with little memory and time."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import seeds
from .kinds import Kind
from .run import BLOCK, inputs

ADDRESS_SPACE = 6_000_000 * 1024
"""Bytes: ``ulimit -v 6000000``."""

SECONDS = 60.0

FORBIDDEN = (
    "Traceback",
    "panicked",
    "internal error",
    "Warning:",
    "memory allocation of",
    "not enough memory",
)
"""What the command must not print."""

STATUSES = (0, 1, 2)


@dataclass
class Ended:
    """How a command ended; ``fault`` says what was wrong with that, None if nothing."""

    arguments: list[str]
    status: int | None
    seconds: float
    output: str
    data: bytes

    @property
    def fault(self) -> str | None:
        """What is wrong."""
        if self.status is None:
            return f"it took more than {SECONDS} s"
        if self.status not in STATUSES:
            return f"exit status {self.status}"
        return next((f"it printed {word!r}" for word in FORBIDDEN if word in self.output), None)


def run_commands(kind: Kind, folder: Path, *, seed: int, n: int) -> Iterator[Ended]:
    """Give ``n`` damaged files to the kind's commands in turn."""
    sound = {
        "model": (folder / "sound.gguf", seeds.models()[0].data),
        "imatrix": (folder / "sound-imatrix.gguf", seeds.imatrices()[0].data),
        "text": (folder / "sound.txt", seeds.TEXT.encode()),
    }
    for path, data in sound.values():
        path.write_bytes(data)
    names = {name: str(path) for name, (path, _) in sound.items()}
    damaged = folder / f"damaged{kind.suffix}"
    names |= {"f": str(damaged), "stem": str(damaged.with_suffix("")), "out": str(folder / "out.gguf")}
    for i in range(n):
        block, number = divmod(i, BLOCK)
        if number == 0:
            made = inputs(kind, seed, block)
        data = next(made)
        damaged.unlink(missing_ok=True)
        damaged.write_bytes(data)
        yield _run(kind.commands[i % len(kind.commands)].format(**names).split(), folder, data)


def _run(arguments: list[str], folder: Path, data: bytes) -> Ended:
    start, status = time.perf_counter(), None
    environment = {**os.environ, "PYTHONWARNINGS": "default"}
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
