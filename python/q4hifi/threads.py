"""The number of threads to use: the number that the user asks for, limited to the usable cores."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from .errors import BadOptionError

CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Return how many cores this process may use, by its CPU affinity and its container's limit (cgroup)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _container_limit() or cores)


def used_threads(threads: int | None) -> int:
    """Return the number of threads to run: ``threads``, but at most :func:`usable_cores`.

    None and 0 mean one thread per core. The limit exists because more threads than cores only wait for each
    other. Raises :class:`BadOptionError` for a negative number.
    """
    if threads is not None and threads < 0:
        raise BadOptionError(f"`threads` is {threads}; give a number of threads, or 0 for one per core")
    return min(threads or usable_cores(), usable_cores())


def thread_count(threads: int | None) -> int:
    """Return :func:`used_threads` in the form that the Rust core takes: 0 means one thread per core.

    The core keeps one thread pool per number and reuses it, so one per core is always passed as 0.
    Raises :class:`BadOptionError` for a negative number.
    """
    used = used_threads(threads)
    return 0 if used == usable_cores() else used


@cache
def _container_limit() -> int | None:
    """Cores that the Linux control groups (cgroups) allow this process, rounded down; None if unlimited."""
    limits = [quota / period for quota, period in _quotas() if quota > 0 and period > 0]
    return max(1, int(min(limits))) if limits else None


def _quotas() -> Iterator[tuple[int, int]]:
    """Yield (quota, period) in microseconds for this process's control groups and all their parents.

    The processes of a group may use ``quota`` of CPU time in every ``period`` of real time.
    """
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
