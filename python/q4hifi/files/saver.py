"""Saves the state of long work: every few minutes, at its end, and when it fails or is interrupted."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

from ..errors import Q4HifiError
from ..wording import counted
from .output_file import NewFile
from .positioned_file import os_errors

SAVE_SECONDS = 300.0
"""Seconds between two saves."""

OnSave = Callable[[int], None]
"""Called after each save with the number of chunks whose results the file holds."""


class Saver:
    """A context manager around work that saves its state to a file.

    Entering it checks the destination and reserves disk space, so that long work does not fail at its end.
    Leaving it saves the remaining state, also after an exception.
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
        chunks: int | None = None,
        on_save: OnSave | None = None,
    ) -> None:
        """Prepare to save; nothing is checked or written yet.

        ``save(overwrite)`` writes the state to ``path``. ``n_bytes`` is the expected size of the file,
        ``seconds`` the time between two saves, and ``chunks`` the largest number of chunks between them.
        ``overwrite`` and ``sources`` have the meaning that they have
        in :func:`q4hifi.files.output_file.check_destination`.
        """
        self._path = Path(path)
        self._save = save
        self._n_bytes = n_bytes
        self._overwrite = overwrite
        self._sources = sources
        self._seconds, self._chunks = seconds, chunks
        self._on_save = on_save
        self._reserved = ExitStack()
        self._done = self._saved = 0
        self._last = time.monotonic()

    def __enter__(self) -> Saver:
        with os_errors(self._path, f"be written, which takes about {counted(self._n_bytes, 'byte')}"):
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
                with suppress(Q4HifiError):  # report the error that ended the work, not this one
                    self._save_now()

    def done(self, n_chunks: int) -> None:
        """Record that ``n_chunks`` chunks are done, and save if the last save was long enough ago."""
        self._done = n_chunks
        many = self._chunks is not None and n_chunks - self._saved >= self._chunks
        if many or time.monotonic() - self._last >= self._seconds:
            self._save_now()

    def _save_now(self) -> None:
        if self._done == self._saved:
            return
        self._reserved.close()  # frees the reserved space for the file itself
        self._save(self._overwrite)
        self._overwrite = True  # the next save replaces this one
        self._saved, self._last = self._done, time.monotonic()
        if self._on_save is not None:
            self._on_save(self._done)
