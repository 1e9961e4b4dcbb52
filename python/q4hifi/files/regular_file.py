"""Checks of files to read, and reading at most a given size, in a module that loads quickly."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import IO

from ..errors import BadFileError
from .file_kinds import CONVERT, MODEL, Pipes, Purpose
from .gguf_name import is_gguf_name

_OPENED = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")
"""Beginnings of the names of files that are open already. The shell makes such a name for <(...)."""

PIECE = 1 << 20
"""Bytes that :func:`read_up_to` reads at a time."""


def read_up_to(file: IO[bytes], size: int) -> bytes:
    """Return the next ``size`` bytes of a file, or all remaining bytes if these are fewer.

    ``file.read(size)`` would allocate ``size`` bytes even for a small file. Raises plain OSError.
    """
    pieces = []
    while size > 0 and (piece := file.read(min(size, PIECE))):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def check_regular_file(
    path: str | os.PathLike[str], purpose: Purpose = MODEL, *, action: str = "be opened"
) -> None:
    """Raise :class:`BadFileError` if ``path`` is missing, a folder, a device, or a pipe that is not accepted.

    Opening a named pipe would wait for its writer, and a device may never end. ``purpose`` is what the file
    is wanted as, and says which pipes are accepted. ``action`` is what cannot be done with a missing file.
    """
    file = os.fspath(path)
    try:
        mode = os.stat(file).st_mode
        if stat.S_ISDIR(mode):
            raise BadFileError(f"{file}: not a file but a folder; {_advice_on_folder(Path(file), purpose)}")
    except OSError as cause:
        advice = _advice_on_missing(Path(file), purpose, cause)
        raise BadFileError(f"{file}: cannot {action}: {cause.strerror or cause}{advice}") from cause
    if stat.S_ISREG(mode) or (stat.S_ISFIFO(mode) and purpose.pipes in _accepting(file)):
        return
    raise BadFileError(
        f"{file}: not a regular file, but a device or pipe; save its contents to a file, and name that"
    )


def _accepting(pipe: str) -> tuple[Pipes, ...]:
    """Return the values of :attr:`Purpose.pipes` that accept the pipe with this name."""
    return (Pipes.ALL, Pipes.OPENED) if os.path.abspath(pipe).startswith(_OPENED) else (Pipes.ALL,)


def _advice_on_missing(path: Path, purpose: Purpose, cause: OSError) -> str:
    """Return the advice for a user who named a file that does not exist; "" for other errors."""
    if not isinstance(cause, FileNotFoundError):
        return ""
    if path == Path("-"):
        return f"; {purpose.name} cannot be read from standard input or a pipe: save it to a file"
    if not path.parent.is_dir():
        return f"; there is no folder {path.parent}"
    from difflib import get_close_matches

    names: list[str] = []
    with suppress(OSError):  # the folder may be one that this user cannot list
        names = os.listdir(path.parent)
    similar = get_close_matches(path.name, names, n=1, cutoff=0.7)
    return f"; did you mean {path.with_name(similar[0])}?" if similar else "; check its name and its folder"


def _advice_on_folder(path: Path, purpose: Purpose) -> str:
    """Return the advice for a user who named a folder instead of a file."""
    if purpose is not MODEL:
        return f"name the file in it that is {purpose.name}"
    names = sorted(os.listdir(path))
    models = [name for name in names if is_gguf_name(name)]
    if models:
        return f"name the model in it, such as {path / models[0]}"
    if any(name.endswith((".safetensors", ".bin")) for name in names):
        return CONVERT
    return "name a GGUF file"
