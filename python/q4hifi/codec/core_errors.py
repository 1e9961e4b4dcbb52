"""The Rust core's exceptions as q4hifi's: :func:`core_errors`, the only place that tells them apart.

Most of the core's exceptions are children of ValueError, so their order matters here. Their first argument is
the message, the others say where and what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .. import _core
from ..errors import BadFileError, BadOptionError, NotFiniteError, Q4HifiError
from ..formats.types import Q4_HIFI

BadModel = Callable[[str, str, str | None, int | None], Q4HifiError]
"""Makes an error of a message, what is wrong ("missing", "unknown", "other"), a tensor's role and layer."""


@contextmanager
def core_errors(
    misfit: type[Q4HifiError],
    *,
    bad_model: BadModel | None = None,
    row_length: int = 1,
    first_row: int = 0,
) -> Iterator[None]:
    """Turn the core's exceptions inside the block into children of :class:`Q4HifiError`.

    ``misfit`` is the class for lengths and values that do not fit. ``bad_model`` makes the error of a model
    that cannot be built or evaluated; by default that is a ``misfit`` as well. Messages give positions in
    rows of ``row_length`` weights, counted from ``first_row``.
    """
    try:
        yield
    except _core.NotFinite as cause:
        row, column = divmod(int(cause.args[1]), row_length)
        raise NotFiniteError(
            f"the weight in row {first_row + row}, column {column} is NaN or infinite;"
            " a model with such weights cannot work, convert it again"
        ) from None
    except _core.BadBlock as cause:
        _, number, what = cause.args
        first_block = first_row * (row_length // Q4_HIFI.block_size)
        raise BadFileError(f"block {first_block + number}: {what}") from None
    except _core.BadModel as cause:
        message, what, role, layer = cause.args
        raise (bad_model(message, what, role, layer) if bad_model else misfit(message)) from None
    except (ValueError, OverflowError) as cause:
        if isinstance(cause, Q4HifiError):
            raise
        raise misfit(str(cause)) from cause
    except _core.Unavailable as cause:
        raise BadOptionError(str(cause)) from cause
