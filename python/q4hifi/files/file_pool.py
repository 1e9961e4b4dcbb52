"""Many files to read, of which only some are open at a time: :class:`FilePool`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import BadFileError
from .positioned_file import FileState, PositionedFile, os_errors

MAX_OPEN = 32
"""Files of a pool that stay open. Systems allow at least 256 to a process."""


@dataclass(slots=True)
class _Open:
    file: PositionedFile
    users: int = 0


class FilePool:
    """Files by index. A file is opened when it is used, and closed when others need its descriptor.

    All methods are thread safe. A file that was replaced or changed before it is opened again is an error.
    """

    def __init__(self, paths: Sequence[Path], opener: Callable[[Path], PositionedFile]) -> None:
        """Hold the files ``paths``; none is opened yet. ``opener`` opens a file for reading."""
        self.paths = tuple(paths)
        self._opener = opener
        self._open: dict[int, _Open] = {}  # the one that was used last is at the end
        self._states: dict[int, FileState] = {}  # when the files were opened first
        self._lock = threading.Lock()
        self._closed = False

    @contextmanager
    def use(self, index: int) -> Iterator[PositionedFile]:
        """Yield the open file with this index.

        Raises the errors of the opener, :class:`BadFileError` if the file was replaced or changed since it
        was opened first, and ValueError after :meth:`close`.
        """
        with self._lock:
            if self._closed:
                raise ValueError(f"{self.paths[index]}: the file is closed")
            entry = self._open.pop(index, None) or self._opened(index)
            self._open[index] = entry
            entry.users += 1
        try:
            yield entry.file
        finally:
            with self._lock:
                entry.users -= 1

    def check_unchanged(self) -> None:
        """Raise :class:`BadFileError` if a file was changed since it was opened first."""
        for index, path in enumerate(self.paths):
            with self.use(index) as file, os_errors(path, "be read", BadFileError):
                state = file.state()
            self._check(index, state)

    def close(self) -> None:
        """Close all files. They cannot be used any more."""
        with self._lock:
            self._closed = True
            for entry in self._open.values():
                entry.file.close()
            self._open.clear()

    def _opened(self, index: int) -> _Open:
        idle = [i for i, entry in self._open.items() if not entry.users]
        for i in idle[: max(0, len(self._open) + 1 - MAX_OPEN)]:
            self._open.pop(i).file.close()
        file = self._opener(self.paths[index])
        try:
            with os_errors(file.path, "be read", BadFileError):
                state = file.state()
            self._states.setdefault(index, state)
            self._check(index, state)
        except BaseException:
            file.close()
            raise
        return _Open(file)

    def _check(self, index: int, state: FileState) -> None:
        if state != self._states[index]:
            raise BadFileError(f"{self.paths[index]}: was changed while it was read; start again")
