"""Long work keeps what it has: it is saved every few minutes, when it fails and when it is interrupted."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

from ..errors import Q4HifiError
from .output_file import NewFile
from .positioned_file import os_errors

SAVE_SECONDS = 300.0
"""Seconds between two saves."""

OnSave = Callable[[int], None]
"""Called after each save with how much of the work the file holds, in chunks."""


class Saver:
    """Saves the state of some work to a file; a context manager around the work.

    Entering it makes sure that the file can be written: the destination is checked and its space reserved
    until the first save. Leaving it saves what is not saved yet, also after an exception.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        save: Callable[[bool], None],
        *,
        n_bytes: int,
        overwrite: bool = False,
        sources: Sequence[str | os.PathLike[str]] = (),
        seconds: float = SAVE_SECONDS,
        on_save: OnSave | None = None,
    ) -> None:
        """``save`` writes the file, with its argument as ``overwrite``; ``n_bytes`` is about its size.

        ``overwrite`` and ``sources`` as for :func:`q4hifi.files.output_file.check_destination`.
        """
        self._path = Path(path)
        self._save = save
        self._n_bytes = n_bytes
        self._overwrite = overwrite
        self._sources = sources
        self._seconds = seconds
        self._on_save = on_save
        self._reserved = ExitStack()
        self._done = self._saved = 0
        self._last = time.monotonic()

    def __enter__(self) -> Saver:
        with os_errors(self._path, f"be written, which takes about {self._n_bytes} bytes"):
            new = NewFile(self._path, overwrite=self._overwrite, sources=self._sources)
            with ExitStack() as stack:
                stack.enter_context(new).file.reserve(self._n_bytes)
                self._reserved = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._reserved:
            if error is None:
                self._save_now()
            else:
                with suppress(Q4HifiError):  # the error that ended the work is the one to report
                    self._save_now()

    def done(self, n_chunks: int) -> None:
        """Note how many chunks are done; save them if the last save is some minutes ago."""
        self._done = n_chunks
        if time.monotonic() - self._last >= self._seconds:
            self._save_now()

    def _save_now(self) -> None:
        if self._done == self._saved:
            return
        self._reserved.close()  # its space is needed now
        self._save(self._overwrite)
        self._overwrite = True  # of what was saved here
        self._saved, self._last = self._done, time.monotonic()
        if self._on_save is not None:
            self._on_save(self._done)
