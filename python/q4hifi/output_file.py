"""Output files other than models: they appear complete, or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .gguf_io import os_errors
from .gguf_write import check_destination


@contextmanager
def new_file(
    path: str | os.PathLike[str], *, overwrite: bool = False, sources: Sequence[Path] = ()
) -> Iterator[BinaryIO]:
    """Give a file to write that takes the place of ``path`` when the block ends well.

    It must not be one of ``sources``. Raises :class:`BadOptionError` for a destination that cannot
    be used, :class:`Q4HifiError` where the disk fails.
    """
    target = Path(path)
    with os_errors(target, "be written"):
        check_destination(target, overwrite, sources)
        part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
        try:
            with part.open("xb") as file:
                yield file
            check_destination(target, overwrite, sources)  # it may have appeared since
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
