"""Runs q4hifi commands in which system calls fail, each in a fork of this process.

This process only loads the modules that the commands need, so that each command starts fast. Every line of
standard input is a run, in JSON::

    {"arguments": [...], "at": N, "error": E, "named": B}

N and E are the arguments of ``faults_arm`` in ``faults.c``. If B is true, temporary files have names. The
answer is a line of standard output::

    {"status": S, "calls": C, "err": TEXT}

S is the exit status, or minus the signal that ended the command. C is the number of system calls that change
files. TEXT is what the command wrote to standard error.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import tempfile
from typing import Any

import rich.console
import rich.progress
import rich.table

import q4hifi
from q4hifi.cli import (
    calibrate,
    compare,
    ending,
    evaluation_tables,
    imatrix,
    main,
    perplexity,
    plan_tables,
    quantize,
    report_tables,
)
from q4hifi.files.output_file import NewFile

COMMANDS = (calibrate, compare, imatrix, perplexity, quantize)
TABLES = (ending, evaluation_tables, plan_tables, report_tables)
LOADED = (*COMMANDS, *TABLES, rich, *(getattr(q4hifi, name) for name in q4hifi.__all__))
"""All that commands need, loaded before the forks."""


def child(run: dict[str, Any], err: int) -> None:
    """Run a command and end this process with its exit status.

    ``err`` is a file for standard error; the number of calls is written to its offset 2^20.
    """
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
    """Run every line of standard input in a fork, and print its answer."""
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
