"""Reads the JSON files that users provide: calibrations, sensitivities and shapes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ..errors import BadFileError
from .file_kinds import HEAD_BYTES, JSON, Pipes, Purpose, kind_of, mistaken
from .positioned_file import os_errors
from .regular_file import check_regular_file, read_up_to

MAX_BYTES = 64 << 20
"""The largest file that is read. Files of the largest models have a few megabytes, and a user may name a
model instead."""

Parsed = TypeVar("Parsed")


def read_json(
    path: str | os.PathLike[str], purpose: Purpose, fault: str, parse: Callable[[Any], Parsed]
) -> Parsed:
    """Read a JSON file and return ``parse(value)``.

    ``purpose`` is what the file is wanted as, and ``fault`` the message for wrong contents. ``parse`` may
    raise ValueError, TypeError, LookupError, AttributeError or OverflowError.

    Raises :class:`BadFileError` where the file cannot be read, has another format, is larger than
    :data:`MAX_BYTES`, is not JSON, is nested too deep, or where ``parse`` raises.
    """
    file = Path(path)
    check_regular_file(path, purpose._replace(pipes=Pipes.OPENED), action="be read")
    with os_errors(file, "be read", BadFileError), file.open("rb") as stream:
        head = read_up_to(stream, HEAD_BYTES)
        kind = kind_of(head)
        other = None if kind == JSON else mistaken(head, purpose)
        if kind is not None and other is not None and not kind.is_text:
            raise BadFileError(f"{file}: {other}")
        text = head + read_up_to(stream, MAX_BYTES + 1 - len(head))
    if len(text) > MAX_BYTES:
        raise BadFileError(f"{file}: {fault}; it is larger than {MAX_BYTES >> 20} MiB")
    try:
        return parse(json.loads(text))
    except RecursionError:
        raise BadFileError(f"{file}: {fault}; it is nested too deep") from None
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as cause:
        raise BadFileError(f"{file}: {other or fault}") from cause
