"""A long sequence merged window by window, with the result of merging it as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

WITHIN = -1
"""In place of where a token begins, if that is within a character."""

Merged = tuple[list[int], list[int]]
"""The tokens of a part of the sequence, and where in that part each begins or :data:`WITHIN`."""


class Place(NamedTuple):
    """Where a window may end: at ``first`` to ``last``, counted from the window's start.

    ``is_border``: nothing merges across ``last``, whatever comes after it.
    """

    first: int
    last: int
    is_border: bool = False


def merged_in_windows(
    n: int, size: int, merge: Callable[[int, int], Merged], place: Callable[[int, int], Place | None]
) -> Iterator[list[int]]:
    """Yield the tokens of a sequence of length ``n``, window after window of about ``size``.

    ``merge(start, end)`` merges a part: always the best pair first, of equals the leftmost.
    ``place(start, end)`` says where this window may end; None asks for a larger window. What is before that
    must be much longer than any token.

    The last tokens of a window are not sure, because what follows could merge with them. So the window is
    cut between two tokens before its end, and the next window begins there. The cut is right if that window
    begins with the token that this one had there; else the cut moves back by a token. Why that suffices:
    neighbours that stay apart when merged alone stay apart in the whole, for the first merge across their
    border would also happen between the two alone.
    """
    start, room = 0, size
    tokens: list[int] = []  # of the window before, until its cut is known to be right
    starts: list[int] = []
    expected: int | None = None
    while start < n:
        end = min(start + room, n)
        new, at = merge(start, end)
        if tokens and expected is not None and new[:1] != [expected]:
            start = WITHIN
            while start == WITHIN:
                expected, start = tokens.pop(), starts.pop()
            room = room if tokens else 2 * room
            continue
        if tokens:
            yield tokens
            tokens, starts, room = [], [], size
        if end == n:
            yield new
            return
        cut = place(start, end)
        count = _last_in(cut, at) if cut else 0
        if not cut or not count:
            room *= 2
            continue
        tokens, starts = new[:count], [i if i == WITHIN else start + i for i in at[:count]]
        expected = None if cut.is_border else new[count]
        start += at[count]


def _last_in(place: Place, starts: list[int]) -> int:
    """Number of the last token that begins in the place; 0 where none does."""
    first = place.last if place.is_border else place.first
    within = (i for i in range(len(starts) - 1, 0, -1) if first <= starts[i] <= place.last)
    return next(within, 0)
