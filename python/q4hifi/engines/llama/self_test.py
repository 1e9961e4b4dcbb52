"""A check of a llama.cpp library in a process of its own, because a callback at a wrong place would crash
ours.

The process runs a tiny model of one layer, and compares the inputs of its first matrices with what they must
be: the normed embeddings. A library that passes is remembered with its size and time in the user's cache
folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from ...errors import UnavailableError
from .abi import StructOffsets, struct_offsets
from .library import load_library

SECONDS = 120
"""The longest time that the check may take."""

CHECK = "q4hifi.engines.llama.check"


@cache
def checked_offsets(library: Path) -> StructOffsets:
    """Return the offsets of a library that passed the check, now or earlier.

    Raises :class:`UnavailableError` if it does not pass.
    """
    offsets = struct_offsets(load_library(library))
    status = library.stat()
    identity = [str(library), status.st_size, status.st_mtime_ns]
    passed = _passed_file()
    with suppress(OSError, ValueError):
        if json.loads(passed.read_text()) == identity:
            return offsets
    _run_check(library)
    with suppress(OSError):  # it is only checked again
        passed.parent.mkdir(parents=True, exist_ok=True)
        passed.write_text(json.dumps(identity))
    return offsets


def _passed_file() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("q4hifi") / "llama-cpp.json"


def _run_check(library: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", CHECK, str(library), folder]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=SECONDS,
                env={**os.environ, "PYTHONSAFEPATH": "1"},
            )
        except subprocess.TimeoutExpired:
            problem = f"it did not end within {SECONDS} seconds"
        else:
            if done.returncode == 0:
                return
            problem = " ".join(done.stderr.split()[-40:]) or f"it ended with status {done.returncode}"
    raise UnavailableError(
        f"{library}: this llama.cpp does not pass q4hifi's check ({problem}); use another version"
    )
