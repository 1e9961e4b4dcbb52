"""Reading damaged files in this process, and finding faults of their readers.

A reader may raise :class:`~q4hifi.errors.Q4HifiError`; any other exception is a fault, and so is a warning.
It may take :data:`SECONDS`. It may allocate a few times the bytes of the file (:data:`ALLOCATED`), which is
measured for the first input of each block. After :func:`limit_memory`, any input that needs far too much
memory raises MemoryError.
"""

from __future__ import annotations

import random
import resource
import signal
import time
import tracemalloc
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import FrameType
from typing import NoReturn

from q4hifi.errors import Q4HifiError

from .kinds import Kind
from .mutate import Seed

SECONDS = 10.0
"""Time limit for one input. Milliseconds are usual."""

BLOCK = 500
"""Number of inputs that are made with one seed of the random generator."""

ALLOCATED = (40, 2_000_000)
"""Bytes that may be allocated: per byte of the file, and in addition."""

ADDRESS_SPACE = 2 << 30
"""Bytes that :func:`limit_memory` lets the process map in addition."""


class TooSlow(BaseException):
    """An input took too long. It is a BaseException, so that no reader catches it."""


@dataclass
class Fault:
    """An input that caused an error. ``block`` and ``number``, its index in the block, identify it."""

    data: bytes
    error: BaseException
    block: int
    number: int


@dataclass
class Tally:
    """Results: numbers of inputs that were read (``runs``) and rejected, the time, and the faults."""

    runs: int = 0
    rejected: int = 0
    seconds: float = 0.0
    faults: list[Fault] = field(default_factory=list)


def inputs(kind: Kind, seed: int, block: int, valid: Sequence[Seed]) -> Iterator[bytes]:
    """Yield the damaged files of a block."""
    rng = random.Random(seed * 1_000_003 + block)
    for i in range(BLOCK):
        yield kind.mutate(valid[(block + i) % len(valid)], valid, rng)


def fuzz(
    kind: Kind, folder: Path, *, seed: int = 0, runs: int | None = None, seconds: float | None = None,
    first: int = 0, step: int = 1, most_faults: int = 20,
) -> Tally:  # fmt: skip
    """Read damaged files, every ``step``-th block from ``first`` on.

    End after ``runs`` inputs, after ``seconds``, or with the block that reaches ``most_faults``.
    """
    path = kind.path_in(folder)
    tally, start, originals = Tally(), time.perf_counter(), kind.seeds()
    for original in originals[: 1 if kind.beside else None]:
        kind.read(original.data, path)  # if this raises, the seed is not valid
    with _alarms(), warnings.catch_warnings():
        warnings.simplefilter("error")
        for block in count(first, step):
            for i, data in enumerate(inputs(kind, seed, block, originals)):
                if tally.runs == runs:
                    break
                tally.runs += 1
                error = (_read_measured if i == 0 else _read)(kind, data, path)
                if isinstance(error, Q4HifiError):
                    tally.rejected += 1
                elif error is not None:
                    tally.faults.append(Fault(data, error, block, i))
            tally.seconds = time.perf_counter() - start
            over = tally.runs == runs or (seconds is not None and tally.seconds >= seconds)
            if over or len(tally.faults) >= most_faults:
                return tally
    raise AssertionError("unreachable: blocks are unlimited")


def _read(kind: Kind, data: bytes, path: Path) -> BaseException | None:
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        kind.read(data, path)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of the core is not an Exception
        return error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return None


def _read_measured(kind: Kind, data: bytes, path: Path) -> BaseException | None:
    tracemalloc.start()
    try:
        error = _read(kind, data, path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    factor, constant = ALLOCATED
    if peak > factor * len(data) + constant and (error is None or isinstance(error, Q4HifiError)):
        return MemoryError(f"{peak} bytes were allocated for a file of {len(data)}")
    return error


@contextmanager
def _alarms() -> Iterator[None]:
    def too_slow(_number: int, _frame: FrameType | None) -> NoReturn:
        raise TooSlow(f"it took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, too_slow)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)


def limit_memory() -> None:
    """Let this process map only :data:`ADDRESS_SPACE` bytes more than it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
