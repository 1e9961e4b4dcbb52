"""Whether a path names a file that can be read, in a module that loads quickly."""

from __future__ import annotations

import os

from ..errors import BadFileError


def check_regular_file(path: str | os.PathLike[str]) -> None:
    """Raise :class:`BadFileError` if ``path`` is missing, a folder, a device or a pipe.

    Opening a pipe would wait for its writer.
    """
    if os.path.isdir(path):
        raise BadFileError(f"{path}: this is a folder; name a file in it")
    if not os.path.exists(path):
        raise BadFileError(f"{path}: there is no such file")
    if not os.path.isfile(path):
        raise BadFileError(f"{path}: this is a device or a pipe; save its contents to a file first")
