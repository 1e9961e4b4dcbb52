"""Output files: each appears at its destination complete, or not at all.

Every command and function that writes a file goes through :class:`NewFile`, so the rules stand here once:

- A destination is never one of the files that the caller reads (:func:`check_destination`).
- A destination that is a symbolic link keeps the link: its target is replaced.
- What is no regular file (a device, a pipe, a folder) is refused.
- Data is written to a file without a name where the system has that (``O_TMPFILE`` of Linux), so that
  nothing is left of a run that is killed. Elsewhere it is a hidden file beside the destination,
  ``.NAME.q4hifi-XXXXXXXX.part``, locked while its owner lives: the next run to the same destination
  removes those without an owner.
- Work that can be resumed is written to ``NAME.partial`` instead (:class:`PartialFile`), which stays.
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

from ..errors import BadOptionError
from .positioned_file import PositionedFile, os_errors

if sys.platform != "win32":
    import fcntl

MAX_LINKS = 40
"""Links that are followed to a destination, as Linux does."""

_NAME_BYTES = 200  # of the destination's name in a temporary one: file systems allow 255 in all
_ATTEMPTS = 8


def check_destination(
    path: str | os.PathLike[str], overwrite: bool = False, sources: Sequence[str | os.PathLike[str]] = ()
) -> Path:
    """Return the file that a destination stands for, all links followed.

    Raises :class:`BadOptionError` where it is one of ``sources`` under any name, is no regular file, has no
    folder, or exists and ``overwrite`` is not given.
    """
    if os.fspath(path) == "-":
        raise _not_streamed(path)
    if os.fspath(path).endswith(("/", os.sep)):  # Path would leave it out, and a file get the folder's name
        raise BadOptionError(f"{path}: is the name of a folder; add that of the file")
    with os_errors(Path(path), "be the destination", BadOptionError):
        target = _resolved(Path(path))
        if not target.parent.is_dir():
            raise BadOptionError(f"{path}: there is no folder {target.parent}; make it first")
        if target.exists():
            for source in sources:
                if os.path.exists(source) and os.path.samefile(target, source):
                    raise BadOptionError(f"{path} is the source {source} itself; choose another destination")
            if not target.is_file():
                raise BadOptionError(f"{path}: exists and is not a file; choose another destination")
            if not overwrite:
                raise _exists(path)
    return target


def _resolved(path: Path) -> Path:
    """The path with its last component's links followed, one by one: devices must not be passed unseen."""
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


def _exists(path: str | os.PathLike[str]) -> BadOptionError:
    return BadOptionError(
        f"{path}: exists already; choose another destination, or allow to replace it with `overwrite=True`"
    )


class NewFile:
    """A file on its way to a destination; a context manager.

    Entering it makes the temporary file, ``file``. :meth:`publish` puts it in its place. Leaving it without
    that removes it.
    """

    file: PositionedFile

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        sources: Sequence[str | os.PathLike[str]] = (),
    ) -> None:
        """Check the destination, as :func:`check_destination` does; nothing is written yet."""
        self.path = Path(path)
        self.target = check_destination(path, overwrite, sources)
        self._overwrite = overwrite
        self._sources = tuple(sources)
        self._part: Path | None = None  # the temporary file's name, if it has one

    def __enter__(self) -> NewFile:
        """Make the temporary file. Raises OSError where that fails."""
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
        with suppress(OSError):  # what went wrong before is what the user should hear of
            self.file.close()
        with suppress(OSError):
            self._remove_part()

    def check(self) -> None:
        """Raise :class:`BadOptionError` where the destination cannot be used any more."""
        check_destination(self.path, self._overwrite, self._sources)

    def publish(self) -> bool:
        """Bring the file to the disk and put it in its place; return whether the place was empty before.

        Raises :class:`BadOptionError` where the destination cannot be used any more, such as a file that
        appeared there since and must not be replaced, and OSError where the disk fails.
        """
        self.file.sync()
        self.check()
        self._copy_permissions()
        if self._part is not None:
            self.file.close()  # Windows moves closed files only
        new = self._place()
        if not new:
            if not self._overwrite:
                raise _exists(self.path)
            os.replace(self._link(), self.target)
            self._part = None
        self._sync_folder()
        return new

    def _place(self) -> bool:
        """Give the file the destination's name, unless something has it; return whether that was done."""
        try:
            if self._part is None:
                self._link_unnamed(self.target)
            else:
                os.link(self._part, self.target)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            if os.path.lexists(self.target):
                return False
            os.replace(self._link(), self.target)
            self._part = None
        self._remove_part()
        return True

    def _copy_permissions(self) -> None:
        """A file that is replaced keeps its permissions."""
        if hasattr(os, "fchmod"):
            with suppress(OSError):  # there is none, or its owner is another
                os.fchmod(self.file.fileno(), stat.S_IMODE(self.target.stat().st_mode))

    # ---- the temporary file --------------------------------------------------------------------------

    @property
    def _prefix(self) -> str:
        """With which the names of temporary files for this destination begin."""
        name = os.fsencode(self.target.name)[:_NAME_BYTES].decode("utf-8", "ignore")
        return f".{name}.q4hifi-"

    def _new_part(self) -> Path:
        return self.target.with_name(f"{self._prefix}{secrets.token_hex(4)}.part")

    def _unnamed(self) -> PositionedFile | None:
        """A file without a name in the destination's folder; None where the system has no such files."""
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
            return None  # if it was for another reason, a file with a name will meet it again

    def _named(self) -> PositionedFile:
        for _ in range(_ATTEMPTS):
            self._part = self._new_part()  # before it exists, so that no interrupt comes between
            file = PositionedFile(self._part, "xb")
            if _lock(file) is not False:
                with suppress(OSError):
                    if os.path.samestat(os.fstat(file.fileno()), os.stat(self._part)):
                        return file
            file.close()  # another run took it for abandoned before it was locked
        raise OSError(f"temporary files beside {self.path} disappear")

    def _link_unnamed(self, name: Path) -> None:
        # With any descriptor Python calls linkat, which follows the link that /proc has. The path is
        # absolute, so the descriptor itself does not matter.
        file = self.file.fileno()
        os.link(f"/proc/self/fd/{file}", name, src_dir_fd=file, follow_symlinks=True)

    def _link(self) -> Path:
        """The temporary file's name; it gets one if it has none."""
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
        """Remove what killed runs to the same destination left."""
        for name in glob.iglob(glob.escape(self._prefix) + "*.part", root_dir=self.target.parent):
            part = self.target.parent / name
            with suppress(OSError):
                if sys.platform == "win32":
                    part.unlink()  # fails where it is open
                    continue
                with PositionedFile(part, "rb") as file:
                    if _lock(file):
                        part.unlink()

    def _sync_folder(self) -> None:
        """Bring the new name to the disk, where the system can."""
        if sys.platform == "win32":
            return
        with suppress(OSError):
            folder = os.open(self.target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def _lock(file: PositionedFile) -> bool | None:
    """Lock a file for as long as it is open; return whether that could be done.

    False where somebody else has locked it; None where the file system has no locks.
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
    """Do as :func:`check_destination`, and make sure that a file can be made there; it is removed again.

    Raises :class:`Q4HifiError` where that fails.
    """
    with os_errors(Path(path), "be written"), NewFile(path, overwrite=overwrite, sources=sources) as new:
        return new.target


def partial_path(target: Path) -> Path:
    """Return what a file that can be resumed is called until it is complete and becomes ``target``."""
    return target.with_name(f"{target.name}.partial")


class PartialFile(NewFile):
    """A file on its way to a destination that can be resumed: until then it is ``PATH.partial``, and stays.

    ``resumed`` says whether it was there before, ``keep`` whether it stays if it is not published.
    """

    keep = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        begins: tuple[bytes, ...],
        overwrite: bool = False,
        resume: bool = False,
        sources: Sequence[str | os.PathLike[str]] = (),
    ) -> None:
        """Check the destination, as :func:`check_destination` does; nothing is written yet.

        ``begins`` is how partial files of this kind begin. Raises :class:`BadOptionError`, too, where
        the partial file is there and neither ``resume`` nor ``overwrite`` is given.
        """
        super().__init__(path, overwrite=overwrite, sources=sources)
        self._begins = begins
        self.partial = partial_path(self.target)
        check_destination(self.partial, True, sources)
        if self.partial.is_symlink():
            raise BadOptionError(f"{self.partial}: is a link; remove it, or choose another destination")
        self.resumed = resume and self.partial.exists()
        if self.partial.exists() and not (resume or overwrite):
            raise BadOptionError(
                f"{self.partial}: is there from a run that did not end; go on from it with"
                " `resume=True`, or begin anew with `overwrite=True`"
            )

    def __enter__(self) -> PartialFile:
        """Open the partial file.

        Raises OSError where that fails, and BadOptionError where it is in use, or where a file of that name
        would be replaced that is no partial file: nobody named it as an output.
        """
        there = self.partial.exists()
        self.file = PositionedFile(self.partial, "r+b" if there else "x+b")
        if _lock(self.file) is False:
            self.file.close()
            raise BadOptionError(f"{self.partial}: another run is writing it; wait, or choose another file")
        if there and not self.resumed:
            self._clear()
        self._part = self.partial
        return self

    def _clear(self) -> None:
        """Empty the partial file of another run."""
        begin = bytearray(max(map(len, self._begins)))
        size = self.file.read_into(0, memoryview(begin))
        if size and not begin.startswith(self._begins):
            self.file.close()
            raise BadOptionError(
                f"{self.partial}: this name is needed until the output is complete, and another file has it;"
                " move that file, or choose another destination"
            )
        self.file.truncate(0)

    def _remove_part(self) -> None:
        """Remove the name if the file has the destination's, too, or is not to be kept."""
        if self._part is not None:
            placed = self.target.exists() and os.path.samefile(self._part, self.target)
            if placed or not self.keep:
                super()._remove_part()
        self._part = None


@contextmanager
def new_file(
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    sources: Sequence[str | os.PathLike[str]] = (),
) -> Iterator[BinaryIO]:
    """Give a binary stream that becomes the file ``path`` when the block ends well.

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
