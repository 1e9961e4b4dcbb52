"""Runs q4hifi commands with faults, each in a fork of this process, which only has loaded what they need.

Reads a line of JSON for each run from standard input::

    {"arguments": [...], "at": N, "error": E, "named": B}

``faults.c`` says what N and E mean; B makes temporary files have names. Answers with a line::

    {"status": S, "calls": C, "err": TEXT}

The status is negative for a signal.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import tempfile
from typing import Any

import q4hifi
from q4hifi.cli import evaluate, main, quantize  # all that commands need is loaded before the forks
from q4hifi.files.output_file import NewFile

LOADED = (evaluate, quantize, *(getattr(q4hifi, name) for name in q4hifi.__all__))


def child(run: dict[str, Any], err: int) -> None:
    """Run the command and end the process with its status."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(err, 2)
    sys.stdin, sys.stdout = open(os.devnull), os.fdopen(1, "w")  # noqa: SIM115
    if run["named"]:
        NewFile._unnamed = lambda _: None  # type: ignore[method-assign]
    faults = ctypes.CDLL(None)
    faults.faults_arm(ctypes.c_long(run["at"]), ctypes.c_int(run["error"]))
    status = 0
    try:
        main(run["arguments"])
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0
    calls = ctypes.c_long(faults.faults_count()).value
    faults.faults_arm(ctypes.c_long(0), 0)
    os.pwrite(err, calls.to_bytes(8, "little"), 1 << 20)
    os._exit(status)


def serve() -> None:
    """Answer every line of standard input."""
    for line in sys.stdin:
        with tempfile.TemporaryFile() as err:
            process = os.fork()
            if not process:
                child(json.loads(line), err.fileno())
            _, ended = os.waitpid(process, 0)
            err.seek(0)
            data = err.read()
        calls = int.from_bytes(data[1 << 20 :], "little")
        text = data[: 1 << 20].rstrip(b"\0").decode("utf-8", "replace")
        answer = {"status": os.waitstatus_to_exitcode(ended), "calls": calls, "err": text}
        print(json.dumps(answer), flush=True)


serve()
