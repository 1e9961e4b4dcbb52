"""Files that no output may replace, whatever name it gets: :func:`reserved`.

This module loads quickly: every command uses it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from ..errors import BadOptionError

Named = Sequence[tuple[str, Path]]
"""Files with their names in messages, such as the option that names a file."""

_reserved: ContextVar[tuple[Callable[[], Named], Named]] = ContextVar("_reserved", default=(tuple, ()))


@contextmanager
def reserved(inputs: Callable[[], Named], outputs: Named) -> Iterator[None]:
    """Protect files inside the ``with`` block.

    :func:`check_reserved` refuses the files that ``inputs`` returns; it is called when an output is about to
    be made. ``outputs`` are the destinations that the user named; :func:`check_derived` refuses them for
    shards.
    """
    token = _reserved.set((inputs, outputs))
    try:
        yield
    finally:
        _reserved.reset(token)


def check_reserved(path: str | os.PathLike[str], target: Path) -> None:
    """Raise :class:`BadOptionError` if ``target``, to which ``path`` leads, is a protected input."""
    for name, source in _reserved.get()[0]():
        if os.path.exists(source) and os.path.samefile(target, source):
            raise BadOptionError(
                f"{path} is the source {source} itself, given for {name}; choose another destination"
            )


def check_derived(path: Path) -> None:
    """Raise :class:`BadOptionError` if ``path``, a shard's path, is another output that the user named."""
    for name, other in _reserved.get()[1]:
        if os.path.realpath(path) == os.path.realpath(other):
            raise BadOptionError(
                f"{path} is the name of a shard, and is given for {name}; choose another file for {name}"
            )
