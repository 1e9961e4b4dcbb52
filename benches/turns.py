"""Timing of several calls in turns, so that the state of the machine is the same for all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from math import ceil

TURN = 0.2
"""Least seconds of a turn, so that the system can spread the threads over the cores."""


def medians(rounds: int, *calls: Callable[[], object]) -> list[float]:
    """Return the median seconds of each call. The calls take turns of at least :data:`TURN` seconds."""
    repeats = []
    for call in calls:
        call()
        started = time.perf_counter()
        call()
        repeats.append(ceil(TURN / (time.perf_counter() - started)))
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, repeat, seconds in zip(calls, repeats, times, strict=True):
            started = time.perf_counter()
            for _ in range(repeat):
                call()
            seconds.append((time.perf_counter() - started) / repeat)
    return [statistics.median(seconds) for seconds in times]
