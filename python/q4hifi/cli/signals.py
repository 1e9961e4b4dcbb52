"""Signal handling: Ctrl-C, SIGTERM and SIGHUP end the command without a traceback.

The exit status is 128 + the number of the signal. Before and after the work there is nothing to clean up, and
the process ends at once. During the work, the signal raises an exception, so that incomplete files are
removed.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # as in q4hifi/__init__.py

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from types import FrameType, TracebackType
else:
    import _signal as signal  # starts faster than the module signal, which adds enums

INTERRUPTED = 130
"""Exit status after Ctrl-C."""

_ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_RETRY_SECONDS = 0.001


def leave_at_once() -> None:
    """From now on, a signal ends the process at once."""
    _handle(_leave)


def ignore() -> None:
    """From now on, ignore signals. The exit status is decided, and the process is about to end."""
    _handle(signal.SIG_IGN)


def _handle(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    try:
        for number in _ENDING:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
                signal.signal(number, handler)
    except ValueError:  # only the main thread may set handlers
        pass


def _leave(number: int, _: FrameType | None) -> None:
    try:
        if number == signal.SIGINT:
            os.write(2, b"\nInterrupted.\n")
    finally:
        os._exit(128 + number)


class Raising:
    """A context in which SIGINT raises KeyboardInterrupt, and the other signals raise SystemExit.

    During an import, an exception could leave a module half loaded. In functions that Python itself calls,
    such as ``__del__``, an exception is lost. In both cases the exception is raised a little later instead. A
    second signal during an import raises at once.
    """

    def __init__(self) -> None:
        """Begin without a pending signal."""
        self._number: int = signal.SIGINT  # of the last signal
        self._waiting = False  # for a better moment to raise

    def __enter__(self) -> None:
        """Let signals raise exceptions from now on."""
        self._hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        _handle(self._signal)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let signals end the process again. A pending signal ends it now."""
        waits = self._waiting
        leave_at_once()
        self._wait(0)
        sys.unraisablehook = self._hook
        if waits and error is None:
            _leave(self._number, None)

    def _signal(self, number: int, frame: FrameType | None) -> None:
        self._number = number
        if not self._waiting and _is_importing(frame):
            self._wait(_RETRY_SECONDS)
        else:
            self._wait(0)
            self._raise()

    def _alarm(self, _: int, frame: FrameType | None) -> None:
        if not self._waiting:
            return
        if _is_importing(frame):
            self._wait(_RETRY_SECONDS)
        else:
            self._wait(0)
            self._raise()

    def _unraisable(self, what: sys.UnraisableHookArgs) -> None:
        if isinstance(what.exc_value, (KeyboardInterrupt, SystemExit)):
            self._wait(_RETRY_SECONDS)
        else:
            self._hook(what)

    def _raise(self) -> None:
        if self._number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + self._number)

    def _wait(self, seconds: float) -> None:
        """Call :meth:`_alarm` after this time; 0 cancels a pending call."""
        if not hasattr(signal, "setitimer"):
            return
        if seconds and not self._waiting:
            signal.signal(signal.SIGALRM, self._alarm)
        if seconds or self._waiting:
            self._waiting = bool(seconds)
            signal.setitimer(signal.ITIMER_REAL, seconds)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
