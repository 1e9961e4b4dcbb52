"""JSON files that users give: calibrations, sensitivities, shapes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ..errors import BadFileError
from .positioned_file import os_errors, read_up_to

MAX_BYTES = 256 << 20
"""More than any of these files needs. A model that is given by mistake is not read into memory."""

Found = TypeVar("Found")


def read_json(path: str | os.PathLike[str], what: str, fault: str, parse: Callable[[Any], Found]) -> Found:
    """Return what ``parse`` makes of the JSON value in a file; ``what`` it is, for messages.

    Raises :class:`BadFileError` where the file cannot be read. It says ``fault`` where the file is larger
    than :data:`MAX_BYTES`, is not JSON or nested too deep, and where ``parse`` meets a value that is missing
    or of another type.
    """
    file = Path(path)
    with os_errors(file, f"read {what}", BadFileError), file.open("rb") as stream:
        text = read_up_to(stream, MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
        raise BadFileError(f"{file}: {fault}; it is larger than {MAX_BYTES >> 20} MiB")
    try:
        return parse(json.loads(text))
    except RecursionError:
        raise BadFileError(f"{file}: {fault}; it is nested too deep") from None
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as cause:
        raise BadFileError(f"{file}: {fault}") from cause
