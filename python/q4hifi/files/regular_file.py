"""Whether a path names a file that can be read, in a module that loads quickly."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ..errors import BadFileError
from .file_kinds import CONVERT, MODEL, Purpose
from .gguf_name import is_gguf_name


def check_regular_file(path: str | os.PathLike[str], purpose: Purpose = MODEL) -> None:
    """Raise :class:`BadFileError` if ``path`` is missing, a folder, a device or a pipe.

    Opening a pipe would wait for its writer. ``purpose`` is what the file is wanted as.
    """
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise BadFileError(f"{path}: not a file but a folder; {_advice_on_folder(Path(path), purpose)}")
    except OSError as cause:
        raise BadFileError(f"{path}: cannot be opened: {cause.strerror or cause}") from cause
    if not stat.S_ISREG(mode):
        raise BadFileError(
            f"{path}: not a regular file, but a device or pipe; save its contents to a file, and name that"
        )


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
