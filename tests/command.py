"""Running the command: in this process, or in a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import shutil
import signal
import struct
import subprocess
import sysconfig
import termios
from collections.abc import Callable
from typing import NamedTuple

import pytest

from q4hifi.cli import main


class Outcome(NamedTuple):
    """How a run of the command ended, and what it printed."""

    status: object
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in this process, not connected to a terminal."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def run_main(*arguments: object) -> Outcome:
        capsys.readouterr()
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code or 0
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return Outcome(status, *capsys.readouterr())

    return run_main


def script() -> str:
    """Return the path of the installed command."""
    return shutil.which("q4hifi", path=sysconfig.get_path("scripts")) or "q4hifi"


def in_terminal(width: int, *arguments: str) -> str:
    """Run the command in a terminal of that width; return what it printed."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    environment["TERM"] = "xterm-256color"
    with subprocess.Popen(
        [script(), *arguments], stdin=follower, stdout=follower, stderr=follower, env=environment
    ) as process:
        os.close(follower)
        printed = b""
        try:
            while chunk := os.read(leader, 65536):
                printed += chunk
        except OSError:  # Linux ends a terminal that nobody else has open so
            pass
        os.close(leader)
    assert process.returncode == 0
    return printed.decode()
