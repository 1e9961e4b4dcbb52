"""The search for a pattern in a tensor's name.

The matcher works on sets of positions. Each part of a pattern is a function. It takes the set of positions
where it may begin and returns the set of positions where it may end. A set is an int: bit i is the position
before byte i. All positions advance together, so no position is tried twice and no pattern takes exponential
time.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from functools import lru_cache

WORD = frozenset(string.ascii_letters + string.digits + "_")
"""The characters of words, for ``\\w`` and ``\\b``."""

Part = Callable[["Name", int], int]
"""(name, set of positions where the part begins) -> set of positions where it ends."""


class TooManySteps(Exception):
    """A search would take too long."""


class Name:
    """A tensor's name: for each byte value, the set of positions before it.

    ``text`` has one character per byte. ``steps`` is the number of steps that the search has left.
    """

    def __init__(self, name: str) -> None:
        """Private: use :func:`name_of`, which keeps the names that it has seen."""
        self.text = name.encode("utf-8", "surrogateescape").decode("latin-1")
        self.length, self.steps = len(self.text), 0
        self._before: dict[str, int] = {}
        for i, c in enumerate(self.text):
            self._before[c] = self._before.get(c, 0) | 1 << i
        self._classes: dict[frozenset[str], int] = {}
        words = self.before(WORD)
        self.boundaries = words ^ words << 1

    def before(self, members: frozenset[str]) -> int:
        """Return the set of positions before a byte that is one of ``members``."""
        positions = self._classes.get(members)
        if positions is None:
            positions = sum(bits for c, bits in self._before.items() if c in members)
            self._classes[members] = positions
        return positions

    def spend(self, steps: int) -> None:
        """Use up ``steps`` steps. Raises :class:`TooManySteps` if fewer are left."""
        self.steps -= steps
        if self.steps < 0:
            raise TooManySteps


name_of = lru_cache(maxsize=4096)(Name)


def word(text: str) -> Part:
    """Find this text, one character per byte."""

    def run(name: Name, begins: int) -> int:
        matched, start = 0, name.text.find(text)
        while start >= 0:
            matched |= begins & 1 << start
            start = name.text.find(text, start + 1)
        return matched << len(text)

    return run


def member(members: frozenset[str]) -> Part:
    """Match one byte that is one of ``members``."""
    return lambda name, begins: (begins & name.before(members)) << 1


def sequence(parts: list[Part]) -> Part:
    """Match all parts, one after the other."""

    def run(name: Name, positions: int) -> int:
        for part in parts:
            positions = part(name, positions)
            if not positions:
                break
        return positions

    return parts[0] if len(parts) == 1 else run


def either(branches: list[Part]) -> Part:
    """Match one of the branches."""

    def run(name: Name, begins: int) -> int:
        ends = 0
        for branch in branches:
            ends |= branch(name, begins)
        return ends

    return branches[0] if len(branches) == 1 else run


def repeat(part: Part, least: int, most: int | None, size: int) -> Part:
    """Repeat ``part`` ``least`` to ``most`` times; None is without limit. A repeat takes ``size`` steps."""

    def run(name: Name, positions: int) -> int:
        for _ in range(least):
            if not positions:
                return 0
            name.spend(size)
            positions = part(name, positions)
        ends = new = positions
        more = 0
        while new and (most is None or more < most - least):
            name.spend(size)
            new = part(name, new) & ~ends
            ends |= new
            more += 1
        return ends

    return run


def look(part: Part, wanted: bool, size: int) -> Part:
    """Keep the positions at which ``part`` matches if ``wanted``, or those at which it does not."""

    def run(name: Name, begins: int) -> int:
        kept = 0
        while begins:
            position = begins & -begins  # the lowest bit
            begins ^= position
            name.spend(size)
            if (part(name, position) != 0) == wanted:
                kept |= position
        return kept

    return run


def _begin(name: Name, positions: int) -> int:
    return positions & 1


def _end(name: Name, positions: int) -> int:
    return positions & 1 << name.length


def _boundary(name: Name, positions: int) -> int:
    return positions & name.boundaries


def _no_boundary(name: Name, positions: int) -> int:
    return positions & ~name.boundaries


ASSERTIONS: Mapping[str, Part] = {"^": _begin, "$": _end, r"\b": _boundary, r"\B": _no_boundary}
"""Sign in a pattern -> the part that keeps the positions at which it holds."""
