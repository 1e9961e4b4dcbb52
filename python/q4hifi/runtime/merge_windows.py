"""Merging a long sequence window by window, with the same tokens as merging it at once.

BPE and SentencePiece merge neighbours until no pair forms a token. A word may be as long as the text, and
merging all of it at once would need a lot of memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

WITHIN = -1
"""Start of a token that begins within a character, not at the start of one."""

Merged = tuple[list[int], list[int]]
"""The tokens of a part of the sequence, and the index in the part where each begins, or :data:`WITHIN`."""


class CutRange(NamedTuple):
    """Indices at which a window may be cut, from ``first`` to ``last``, relative to its start.

    ``is_border``: no merge crosses ``last``, whatever follows.
    """

    first: int
    last: int
    is_border: bool = False


def merged_in_windows(
    n: int,
    size: int,
    merge: Callable[[int, int], Merged],
    cut_range: Callable[[int, int], CutRange | None],
) -> Iterator[list[int]]:
    """Yield the tokens of a sequence of length ``n``, one window of about ``size`` elements after another.

    ``merge(start, end)`` returns the tokens of a part. It must always merge the best pair first, and of
    equal pairs the leftmost. ``cut_range(start, end)`` returns where the window may be cut, or None to get
    a larger window. The part before the cut must be much longer than any token.

    The last tokens of a window are uncertain, because they could merge with what follows. So each window is
    cut between two tokens before its end, and the next window begins at the cut. The cut is correct if the
    next window begins with the same token that this one had after the cut. Otherwise the cut moves back by
    one token.

    Why this suffices: take two neighbouring tokens, and suppose that merging only their elements gives
    these two tokens again. Then no merge crosses the border between them in the whole sequence either,
    because the first one that does would also happen in the two alone.
    """
    start, room = 0, size
    tokens: list[int] = []  # of the previous window, kept until its cut is known to be correct
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
        allowed = cut_range(start, end)
        count = _tokens_before_cut(allowed, at) if allowed else 0
        if not allowed or not count:
            room *= 2
            continue
        tokens, starts = new[:count], [i if i == WITHIN else start + i for i in at[:count]]
        expected = None if allowed.is_border else new[count]
        start += at[count]


def _tokens_before_cut(allowed: CutRange, starts: list[int]) -> int:
    """Return the number of tokens before the last cut that is allowed, 0 if there is none."""
    first = allowed.last if allowed.is_border else allowed.first
    cuts = (i for i in range(len(starts) - 1, 0, -1) if first <= starts[i] <= allowed.last)
    return next(cuts, 0)
