"""The output of work that can be resumed: it stays on the disk as ``NAME.partial`` until it is complete."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import BadOptionError
from .output_file import NewFile, check_destination, lock
from .positioned_file import PositionedFile


def partial_path(target: Path) -> Path:
    """Return the path of the unfinished file of work that can be resumed; its final path is ``target``."""
    return target.with_name(f"{target.name}.partial")


class PartialFile(NewFile):
    """A :class:`NewFile` for work that can be resumed: it stays on the disk as ``PATH.partial``.

    ``resumed`` is whether the work continues an existing partial file. Set ``keep`` to False to remove the
    partial file at the end even if it was not published.
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
        """Check the destination, as :func:`check_destination` does. Nothing is written yet.

        ``begins``: a partial file of this format starts with one of these. Raises :class:`BadOptionError`
        where the destination cannot be used, and where the partial file exists, but neither ``resume`` nor
        ``overwrite`` is true.
        """
        super().__init__(path, overwrite=overwrite, sources=sources)
        self._begins = begins
        self.partial = partial_path(self.target)
        check_destination(self.partial, True, sources)
        if self.partial.is_symlink():
            raise BadOptionError(f"{self.partial}: is a link; remove it, or choose another destination")
        self.resumed = resume and self.partial.exists() and self.partial.stat().st_size > 0
        if self.partial.exists() and not (resume or overwrite):
            raise BadOptionError(
                f"{self.partial}: exists already, from a run that did not finish; continue it with"
                " `resume=True`, or start again with `overwrite=True`"
            )

    def __enter__(self) -> PartialFile:
        """Open the partial file.

        Raises OSError where that fails, and :class:`BadOptionError` where another run is writing the file, or
        where it is not a partial file: the user did not name it as an output, so it must not be replaced.
        """
        exists = self.partial.exists()
        self.file = PositionedFile(self.partial, "r+b" if exists else "x+b")
        if lock(self.file) is False:
            self.file.close()
            raise BadOptionError(f"{self.partial}: another run is writing it; wait, or choose another file")
        if exists:
            self._check_begin()
            if not self.resumed:
                self.file.truncate(0)
        self._part = self.partial
        return self

    def _check_begin(self) -> None:
        """Check that the file is a partial file of an earlier run."""
        begin = bytearray(max(map(len, self._begins)))
        size = self.file.read_into(0, memoryview(begin))
        if size and not begin.startswith(self._begins):
            self.file.close()
            raise BadOptionError(
                f"{self.partial}: this name is needed until the output is complete, and another file has it;"
                " move that file, or choose another destination"
            )

    def _remove_part(self) -> None:
        """Remove the partial name if the file was published, or if it is not to be kept."""
        if self._part is not None:
            published = self.target.exists() and os.path.samefile(self._part, self.target)
            if published or not self.keep:
                super()._remove_part()
        self._part = None
