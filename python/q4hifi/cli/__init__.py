"""The ``q4hifi`` command: options and printing only.

Exit status:

- 0 after success
- 1 if the work failed
- 2 if an argument or option is wrong
- 128 + N after signal N, as in shells: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP, 141 if the
  program that reads the output has ended

This file and ``signals.py`` import very little. Before them, Python's own start prints a traceback at Ctrl-C.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # starts faster than the module signal
import os
import sys

if os.path.basename(sys.argv[0]) in ("q4hifi", "q4hifi.exe", "-m"):  # not where other programs import this
    _signal.signal(_signal.SIGINT, lambda *_: os._exit(130))

from . import signals

TYPE_CHECKING = False  # as in q4hifi/__init__.py

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command and end the process. ``arguments`` are by default those of the process."""
    signals.leave_at_once()
    from .ending import run

    run(arguments)
