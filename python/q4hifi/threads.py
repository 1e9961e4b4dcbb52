"""How many threads are used: those that were asked for, but never more than there are cores for them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from .errors import BadOptionError

CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Return how many cores this process may use: its CPU affinity, and the limit of its container if any."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _container_limit() or cores)


def used_threads(threads: int | None) -> int:
    """Return how many threads work where ``threads`` were asked for.

    None and 0 stand for one per core. More threads than cores only wait for each other, so there are never
    more than :func:`usable_cores`. Raises :class:`BadOptionError` for a negative number.
    """
    if threads is not None and threads < 0:
        raise BadOptionError(f"`threads` is {threads}; give a number of threads, or 0 for one per core")
    return min(threads or usable_cores(), usable_cores())


def thread_count(threads: int | None) -> int:
    """Return :func:`used_threads` as the Rust core takes it, in which 0 is one per core.

    The core keeps its threads for the next call that gives the same number.
    """
    used = used_threads(threads)
    return 0 if used == usable_cores() else used


@cache
def _container_limit() -> int | None:
    """The cores that a Linux control group leaves to this process, rounded down; None without a limit."""
    limits = [quota / period for quota, period in _quotas() if quota > 0 and period > 0]
    return max(1, int(min(limits))) if limits else None


def _quotas() -> Iterator[tuple[int, int]]:
    """CPU time and the time in which it may be spent, of this process's groups and those around them."""
    try:
        groups = OWN_CGROUPS.read_text().splitlines()
    except OSError:
        return
    for line in groups:
        _, controllers, path = line.split(":", 2)
        version_1 = "cpu" in controllers.split(",")
        root = CGROUPS / "cpu" if version_1 else CGROUPS
        if controllers and not version_1:
            continue
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if version_1 else ("cpu.max",)
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root):
                break
            try:
                quota, period = " ".join((folder / name).read_text() for name in names).split()
                yield int(quota), int(period)
            except (OSError, ValueError):  # no such file, or "max"
                continue
