"""The ``q4hifi`` command: options and printing only.

Exit status:

- 0 after success
- 1 if the work failed
- 2 if an argument or option is wrong
- 128 + N after signal N, as in shells: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP, 141 if the
  program that reads the output has ended

This file and ``signals.py`` import very little. Until they are loaded, Ctrl-C prints a traceback.
"""

from __future__ import annotations

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
