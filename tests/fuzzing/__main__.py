"""Damage valid files of every kind at random, and check that q4hifi reads or rejects them cleanly."""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

from .commands import run_commands
from .kinds import KINDS
from .run import fuzz, limit_memory

MEMORY_DISK = Path("/dev/shm")


def main() -> int:
    """Fuzz, print a summary of each kind of file, and return 1 if there were faults."""
    parser = argparse.ArgumentParser(prog="python -m fuzzing", description=__doc__)
    parser.add_argument("--kind", action="append", choices=KINDS, help="kind of file; default: all")
    parser.add_argument("--seconds", type=float, default=10.0, help="time for each kind; default 10")
    parser.add_argument("--runs", type=int, help="inputs of each kind, instead of a time")
    parser.add_argument("--seed", type=int, default=0, help="seed of the damage; default 0")
    parser.add_argument("--first", type=int, default=0, help="number of the first block of inputs")
    parser.add_argument("--cli", type=int, metavar="N", help="run N commands on inputs of each kind")
    parser.add_argument("--faults", type=Path, metavar="FOLDER", help="save inputs that cause faults here")
    parser.add_argument("files", nargs="*", type=Path, help="read only these files; needs --kind")
    options = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory(dir=MEMORY_DISK if MEMORY_DISK.is_dir() else None) as name:
        folder = Path(name)
        if options.files:
            kind = KINDS[options.kind[0]]
            for file in options.files:
                kind.read(file.read_bytes(), kind.path_in(folder))
            return 0
        for name in options.kind or KINDS:
            if options.cli:
                failed |= _in_commands(name, folder, options)
            else:
                failed |= _in_children(name, folder, options)
    return int(failed)


def _in_commands(name: str, folder: Path, options: argparse.Namespace) -> bool:
    statuses: dict[int | None, int] = {}
    slowest, n_faults = 0.0, 0
    for ended in run_commands(KINDS[name], folder, seed=options.seed, n=options.cli):
        statuses[ended.status] = statuses.get(ended.status, 0) + 1
        slowest = max(slowest, ended.seconds)
        if ended.fault:
            n_faults += 1
            _keep(options.faults, name, ended.data)
            print(f"FAULT in {name}: {ended.fault}: {' '.join(ended.arguments)}\n{ended.output[-2000:]}")
    counts = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items(), key=str))
    print(
        f"{name}: {options.cli} commands, {n_faults} faults; exit statuses {counts}; slowest {slowest:.1f} s",
        flush=True,
    )
    return n_faults > 0


def _in_children(name: str, folder: Path, options: argparse.Namespace) -> bool:
    """Fuzz in a child process, so that a crash ends only that process. Return whether there were faults."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            limit_memory()
            os._exit(_in_process(name, folder, options))
        except BaseException:
            traceback.print_exc()
            os._exit(2)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status < 0:
        print(f"FAULT in {name}: signal {-status} ended the process while it read the last input")
        last: Sequence[Path] = sorted(folder.glob("damaged*"))
        for path in last:
            _keep(options.faults, name, path.read_bytes())
    return status != 0


def _in_process(name: str, folder: Path, options: argparse.Namespace) -> int:
    seconds = None if options.runs is not None else options.seconds
    tally = fuzz(
        KINDS[name], folder, seed=options.seed, runs=options.runs, seconds=seconds, first=options.first
    )
    for fault in tally.faults:
        saved = _keep(options.faults, name, fault.data)
        print(f"FAULT in {name}, block {fault.block}, input {fault.number}{saved}:")
        traceback.print_exception(fault.error, limit=-4)
    rate = tally.runs / tally.seconds
    print(
        f"{name}: {tally.runs:,} inputs in {tally.seconds:,.0f} s ({rate:,.0f} a second),"
        f" {tally.rejected / tally.runs:.0%} rejected, {len(tally.faults)} faults",
        flush=True,
    )
    return int(bool(tally.faults))


def _keep(folder: Path | None, name: str, data: bytes) -> str:
    if folder is None:
        return ""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name.replace(' ', '-')}-{hashlib.sha256(data).hexdigest()[:12]}{KINDS[name].suffix}"
    path.write_bytes(data)
    return f", {path}"


if __name__ == "__main__":
    sys.exit(main())
