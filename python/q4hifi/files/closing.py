"""A base class for objects that free files or memory at the end of a ``with`` block."""

from __future__ import annotations

from typing import TypeVar

Self = TypeVar("Self", bound="Closing")


class Closing:
    """Closes itself at the end of a ``with`` block."""

    def close(self) -> None:
        """Free what it holds."""
        raise NotImplementedError

    def __enter__(self: Self) -> Self:
        """Return the object itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()
