"""Damaged files read in this process, as many as time allows; and what counts as a fault.

A reader may raise :class:`~q4hifi.errors.Q4HifiError` and nothing else, and warn of nothing. It may allocate
a few times the bytes of the file, which is measured of a sample of the inputs; of all, what is far too much
ends in MemoryError under :func:`limited_memory`. It may take :data:`SECONDS`.
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
"""What one input may take; any takes milliseconds."""

BLOCK = 500
"""Inputs that one state of the generator makes; the first of them is looked at more closely."""

ALLOCATED = (40, 2_000_000)
"""Bytes that may be allocated: by byte of the file, and besides."""

ADDRESS_SPACE = 2 << 30
"""Bytes beyond those that the process has before it begins."""


class TooSlow(BaseException):
    """An input took too long. No Exception, so that no reader catches it."""


@dataclass
class Fault:
    """An input that something went wrong with. ``block`` and ``number`` are where it can be made again."""

    data: bytes
    error: BaseException
    block: int
    number: int


@dataclass
class Tally:
    """How many inputs were read, how many of them were refused, and those that were faults."""

    runs: int = 0
    refused: int = 0
    seconds: float = 0.0
    faults: list[Fault] = field(default_factory=list)


def inputs(kind: Kind, seed: int, block: int, sound: Sequence[Seed]) -> Iterator[bytes]:
    """The damaged files of a block."""
    rng = random.Random(seed * 1_000_003 + block)
    for i in range(BLOCK):
        yield kind.mutate(sound[(block + i) % len(sound)], sound, rng)


def fuzz(
    kind: Kind, folder: Path, *, seed: int = 0, runs: int | None = None, seconds: float | None = None,
    first: int = 0, step: int = 1, most_faults: int = 20,
) -> Tally:  # fmt: skip
    """Read damaged files until ``runs`` or ``seconds`` are over, every ``step``-th block."""
    path = kind.path_in(folder)
    tally, start, originals = Tally(), time.perf_counter(), kind.seeds()
    for original in originals[: 1 if kind.beside else None]:
        kind.eat(original.data, path)  # whatever this raises is a fault of the seeds
    with _alarms(), warnings.catch_warnings():
        warnings.simplefilter("error")
        for block in count(first, step):
            for i, data in enumerate(inputs(kind, seed, block, originals)):
                if tally.runs == runs:
                    break
                tally.runs += 1
                error = (_eat_measured if i == 0 else _eat)(kind, data, path)
                if isinstance(error, Q4HifiError):
                    tally.refused += 1
                elif error is not None:
                    tally.faults.append(Fault(data, error, block, i))
            tally.seconds = time.perf_counter() - start
            over = tally.runs == runs or (seconds is not None and tally.seconds >= seconds)
            if over or len(tally.faults) >= most_faults:
                return tally
    raise AssertionError("the blocks have no end")


def _eat(kind: Kind, data: bytes, path: Path) -> BaseException | None:
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        kind.eat(data, path)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of the core is none of Exception's children
        return error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return None


def _eat_measured(kind: Kind, data: bytes, path: Path) -> BaseException | None:
    tracemalloc.start()
    try:
        error = _eat(kind, data, path)
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


def limited_memory() -> None:
    """Let this process have only :data:`ADDRESS_SPACE` more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
