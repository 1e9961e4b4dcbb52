"""Output files: each appears at its destination complete, or not at all.

Every command and function that writes a file uses :class:`NewFile`. Its rules are:

- A destination must not be one of the files that the caller reads (:func:`check_destination`,
  :func:`~q4hifi.files.reserved_files.reserved`).
- If a destination is a symbolic link, the target of the link is replaced and the link stays.
- A destination must be a regular file, not a device, a pipe or a folder.
- Data is first written to a temporary file. On Linux this is a file without a name (``O_TMPFILE``), so that a
  killed run leaves nothing behind. Elsewhere it is the hidden file ``.NAME.q4hifi-XXXXXXXX.part`` beside the
  destination. The process that writes it holds a lock on it. The next run with the same destination removes
  temporary files that nobody has locked.
- Work that can be resumed is written to ``NAME.partial`` instead, which stays
  (:mod:`q4hifi.files.partial_file`).
"""

from __future__ import annotations

import glob
import io
import os
import secrets
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from ..errors import BadOptionError, Q4HifiError
from .positioned_file import PositionedFile, os_errors
from .reserved_files import check_reserved

if sys.platform != "win32":
    import fcntl

MAX_LINKS = 40
"""Symbolic links that are followed to a destination; the limit of Linux."""

_NAME_BYTES = 200
"""Bytes of the destination's name that a temporary name contains: file systems allow 255 in total."""

_ATTEMPTS = 8
"""Attempts to create a temporary file that no other run removes."""


def check_destination(
    path: str | os.PathLike[str], overwrite: bool = False, sources: Sequence[str | os.PathLike[str]] = ()
) -> Path:
    """Check that a file may be written to ``path``; return the path with all symbolic links followed.

    Raises :class:`BadOptionError` where the destination is one of ``sources`` or of the files that
    :func:`~q4hifi.files.reserved_files.reserved` protects (under any name), exists and is not a regular file,
    is in a folder that does not exist, or exists and ``overwrite`` is false.
    """
    if os.fspath(path) == "-":
        raise _not_streamed(path)
    if os.fspath(path).endswith(("/", os.sep)):  # Path drops the slash, so a file would get the folder's name
        raise BadOptionError(f"{path}: is the name of a folder; add that of the file")
    with os_errors(Path(path), "be the destination", BadOptionError):
        target = _resolved(Path(path))
        if not target.parent.is_dir():
            if target.parent.exists():
                raise BadOptionError(f"{path}: {target.parent} is not a folder; choose another destination")
            raise BadOptionError(f"{path}: there is no folder {target.parent}; make it first")
        if target.exists():
            for source in sources:
                if os.path.exists(source) and os.path.samefile(target, source):
                    raise BadOptionError(f"{path} is the source {source} itself; choose another destination")
            check_reserved(path, target)
            if not target.is_file():
                raise BadOptionError(f"{path}: exists and is not a file; choose another destination")
            if not overwrite:
                raise _exists(path)
    return target


def _resolved(path: Path) -> Path:
    """Follow the links of the path's last component, one by one, so that links to devices are noticed."""
    at = path
    for _ in range(MAX_LINKS):
        folder = Path(os.path.realpath(at.parent))
        if folder == Path("/dev") or folder.parts[:2] == ("/", "proc"):
            raise _not_streamed(path)
        at = folder / at.name
        if not at.is_symlink():
            return at
        at = folder / os.readlink(at)
    raise BadOptionError(f"{path}: its links lead in a circle; choose another destination")


def _not_streamed(path: str | os.PathLike[str]) -> BadOptionError:
    return BadOptionError(
        f"{path}: the output cannot be streamed, because it is not written from its beginning to its end;"
        " name a file"
    )


class DestinationExistsError(BadOptionError):
    """A destination exists already, and the caller has not allowed to replace it."""


def _exists(path: str | os.PathLike[str]) -> DestinationExistsError:
    return DestinationExistsError(
        f"{path}: exists already; choose another destination, or allow to replace it with `overwrite=True`"
    )


class NewFile:
    """A context manager that writes a temporary file and then moves it to a destination.

    Entering it creates the temporary file, the attribute ``file``. :meth:`publish` moves it to the
    destination. Leaving it without :meth:`publish` removes the temporary file.
    """

    file: PositionedFile

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        sources: Sequence[str | os.PathLike[str]] = (),
    ) -> None:
        """Check the destination, as :func:`check_destination` does. Nothing is written yet.

        Raises :class:`BadOptionError` where the destination cannot be used.
        """
        self.path = Path(path)
        self.target = check_destination(path, overwrite, sources)
        self._overwrite = overwrite
        self._sources = tuple(sources)
        self._part: Path | None = None  # the temporary file's name, if it has one

    def __enter__(self) -> NewFile:
        """Create the temporary file. Raises OSError where that fails."""
        self._remove_abandoned()
        try:
            file = self._unnamed()
            self.file = self._named() if file is None else file
        except BaseException:
            self._remove_part()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file, and remove it if it was not published."""
        with suppress(OSError):  # an earlier error is the one that the user should see
            self.file.close()
        with suppress(OSError):
            self._remove_part()

    def check(self) -> None:
        """Check the destination again. Raises :class:`BadOptionError` where it cannot be used any more."""
        check_destination(self.path, self._overwrite, self._sources)

    def publish(self) -> bool:
        """Flush the file to the disk and move it to the destination.

        Returns whether the file is new: False where it replaces another file. Raises :class:`BadOptionError`
        where the destination cannot be used any more, for example because another file appeared there
        meanwhile, :class:`Q4HifiError` where its folder was removed, and OSError where the disk fails.
        """
        self.file.sync()
        if not self.target.parent.is_dir():
            raise Q4HifiError(
                f"{self.path}: the folder {self.target.parent} was removed meanwhile; try again"
            )
        self.check()
        self._copy_permissions()
        if self._part is not None:
            self.file.close()  # Windows cannot move an open file
        new = self._move_if_free()
        if not new:
            if not self._overwrite:
                raise _exists(self.path)
            os.replace(self._link(), self.target)
            self._part = None
        self._sync_folder()
        return new

    def _move_if_free(self) -> bool:
        """Move the file to the destination if nothing is there; return whether it was moved."""
        try:
            if self._part is None:
                self._link_unnamed(self.target)
            else:
                os.link(self._part, self.target)
        except FileExistsError:
            return False
        except OSError:  # the file system has no hard links
            if os.path.lexists(self.target):
                return False
            os.replace(self._link(), self.target)
            self._part = None
        self._remove_part()
        return True

    def _copy_permissions(self) -> None:
        """Give the new file the permissions of the file that it replaces."""
        if hasattr(os, "fchmod"):
            with suppress(OSError):  # nothing is replaced, or somebody else owns the file
                os.fchmod(self.file.fileno(), stat.S_IMODE(self.target.stat().st_mode))

    # ---- the temporary file --------------------------------------------------------------------------

    @property
    def _prefix(self) -> str:
        """The start of the names of all temporary files for this destination."""
        name = os.fsencode(self.target.name)[:_NAME_BYTES].decode(sys.getfilesystemencoding(), "ignore")
        return f".{name}.q4hifi-"

    def _new_part(self) -> Path:
        return self.target.with_name(f"{self._prefix}{secrets.token_hex(4)}.part")

    def _unnamed(self) -> PositionedFile | None:
        """Create a file without a name in the destination's folder; None where the system cannot."""
        flag = getattr(os, "O_TMPFILE", None)
        if flag is None or not os.path.isdir("/proc/self/fd"):
            return None
        try:
            return PositionedFile(
                self.target,
                "xb",
                opener=lambda *_: os.open(self.target.parent, flag | os.O_RDWR | os.O_CLOEXEC, 0o666),
            )
        except OSError:
            return None  # any other error will appear again when a named file is created

    def _named(self) -> PositionedFile:
        for _ in range(_ATTEMPTS):
            self._part = self._new_part()  # set before the file exists, so that an interrupt still removes it
            file = PositionedFile(self._part, "xb")
            if lock(file) is not False:
                with suppress(OSError):
                    if os.path.samestat(os.fstat(file.fileno()), os.stat(self._part)):
                        return file
            file.close()  # another run removed the file as abandoned, before it was locked
        raise OSError(f"another process removes the temporary files beside {self.path}")

    def _link_unnamed(self, name: Path) -> None:
        # With a descriptor as src_dir_fd Python calls linkat, which can follow the link in /proc. The path is
        # absolute, so the value of the descriptor does not matter.
        file = self.file.fileno()
        os.link(f"/proc/self/fd/{file}", name, src_dir_fd=file, follow_symlinks=True)

    def _link(self) -> Path:
        """Return the temporary file's name, after giving it one if it has none."""
        if self._part is None:
            part = self._new_part()
            self._part = part
            self._link_unnamed(part)
        return self._part

    def _remove_part(self) -> None:
        if self._part is not None:
            with suppress(OSError):
                self._part.unlink()
            self._part = None

    def _remove_abandoned(self) -> None:
        """Remove the temporary files that killed runs with the same destination left behind."""
        for name in glob.iglob(glob.escape(self._prefix) + "*.part", root_dir=self.target.parent):
            part = self.target.parent / name
            with suppress(OSError):
                if sys.platform == "win32":
                    part.unlink()  # fails while the file is open
                    continue
                with PositionedFile(part, "rb") as file:
                    if lock(file):
                        part.unlink()

    def _sync_folder(self) -> None:
        """Flush the folder, and so the new name, to the disk where the system can."""
        if sys.platform == "win32":
            return
        with suppress(OSError):
            folder = os.open(self.target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def lock(file: PositionedFile) -> bool | None:
    """Lock a file until it is closed.

    Returns True if it is locked now, False if another process holds the lock, None if the file system has no
    locks.
    """
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def check_writable(
    path: str | os.PathLike[str], overwrite: bool = False, sources: Sequence[str | os.PathLike[str]] = ()
) -> Path:
    """Check a destination as :func:`check_destination` does, and that a file can be created there.

    The file that this creates is removed again. Returns the path with all symbolic links followed. Raises
    :class:`BadOptionError` where the destination cannot be used, and :class:`Q4HifiError` where no file can
    be created.
    """
    with os_errors(Path(path), "be written"), NewFile(path, overwrite=overwrite, sources=sources) as new:
        return new.target


@contextmanager
def new_file(
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    sources: Sequence[str | os.PathLike[str]] = (),
) -> Iterator[BinaryIO]:
    """Open a binary stream to a temporary file that becomes ``path`` when the block ends without an error.

    Raises :class:`BadOptionError` for a destination that cannot be used (:func:`check_destination`), and
    :class:`Q4HifiError` where the disk fails.
    """
    with os_errors(Path(path), "be written"), NewFile(path, overwrite=overwrite, sources=sources) as new:
        stream = io.BufferedWriter(new.file.raw)
        try:
            yield stream
            stream.flush()
        finally:
            with suppress(OSError):
                stream.detach()
        new.publish()
