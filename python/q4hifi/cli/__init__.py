"""The ``q4hifi`` command: options and printing only, a file for each kind of command.

Exit status: 0; 1 where the work failed; 2 where an argument or option does not fit; as in shells, 128 + N
after signal N: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP, 141 where nobody reads the output.

What this file and ``signals.py`` import is loaded before Ctrl-C ends the command quietly, so it is little.
"""

from __future__ import annotations

from . import signals

TYPE_CHECKING = False  # as in q4hifi/__init__.py

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command and end the process; ``arguments`` default to those of the process."""
    signals.leave_at_once()
    from .ending import run

    run(arguments)
