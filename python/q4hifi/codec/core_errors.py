"""Translates the exceptions of the Rust core into those of q4hifi, with :func:`core_errors`.

Most of the core's exceptions are subclasses of ValueError, so the order of the ``except`` clauses matters.
The first argument of such an exception is its message; ``_core.pyi`` lists the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .. import _core
from ..errors import BadFileError, BadOptionError, NotFiniteError, Q4HifiError
from ..formats.types import Q4_HIFI

BadModel = Callable[[str, str, str | None, int | None], Q4HifiError]
"""(message, fault, role, layer) -> error. ``fault`` is "missing", "unknown" or "other"; a tensor has the role
and layer."""


@contextmanager
def core_errors(
    misfit: type[Q4HifiError],
    *,
    bad_model: BadModel | None = None,
    row_length: int = 1,
    first_row: int = 0,
) -> Iterator[None]:
    """Turn the core's exceptions inside the block into subclasses of :class:`Q4HifiError`.

    ``misfit`` is the class for invalid lengths and values. ``bad_model`` makes the error for a model that
    cannot be built or evaluated; by default that is a ``misfit`` too. ``row_length`` (weights) and
    ``first_row`` (the number of the first row that the core received) are used to state positions in
    messages.
    """
    try:
        yield
    except _core.NotFinite as cause:
        row, column = divmod(int(cause.args[1]), row_length)
        raise NotFiniteError(
            f"the weight in row {first_row + row}, column {column} is NaN or infinite;"
            " a model with such a weight does not work, convert it again"
        ) from None
    except _core.BadBlock as cause:
        _, block, fault = cause.args
        first_block = first_row * (row_length // Q4_HIFI.block_size)
        raise BadFileError(f"block {first_block + block}: {fault}") from None
    except _core.BadModel as cause:
        message, fault, role, layer = cause.args
        raise (bad_model(message, fault, role, layer) if bad_model else misfit(message)) from None
    except (ValueError, OverflowError) as cause:
        if isinstance(cause, Q4HifiError):
            raise
        raise misfit(str(cause)) from cause
    except _core.Unavailable as cause:
        raise BadOptionError(str(cause)) from cause
