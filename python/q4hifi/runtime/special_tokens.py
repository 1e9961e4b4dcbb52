"""Finding special tokens in a text, in one pass.

The result is llama.cpp's, which searches the whole text for the longest token, then what is left for
the next: a longer token wins over all shorter ones that overlap it, of equal lengths the smaller number,
and of a token's own places the first.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

_PREFIX = 4  # bytes of a token by which the pass finds places where it may begin
_BLANKS = re.compile(rb"[ \t\n\v\f\r]*")


class Found(NamedTuple):
    """A special token in ``data[start:end]``; ``resume`` is where the text goes on."""

    start: int
    end: int
    token: int
    resume: int


class SpecialTokens:
    """A set of special tokens to look for."""

    def __init__(self, tokens: Mapping[bytes, int], stripping: Collection[int] = ()) -> None:
        """``tokens``: token by text. ``stripping``: those that swallow the blanks after them."""
        self._tokens = tokens
        self._stripping = stripping
        prefixes = {text[:_PREFIX] for text in tokens}
        self._lengths = _lengths(tokens, prefixes)
        self._place = re.compile(b"(?=(%s))" % _any_of(prefixes)) if tokens else None

    def find(self, data: bytes, start: int = 0, end: int | None = None) -> Iterator[Found]:
        """Yield the special tokens in ``data[start:end]`` from left to right, as they are needed."""
        end = len(data) if end is None else end
        while first := self._first(data, start, end):
            best = first
            while better := list(self._better(data, best.start + 1, best.end, end, best)):
                best = min(better, key=_rank)
            if best is not first:  # shorter ones have what is left before it
                yield from self.find(data, first.start, best.start)
            resume = best.end
            if best.token in self._stripping:
                resume = self._after_blanks(data, best, end)
            yield best._replace(resume=resume)
            start = resume

    def starts(self, data: bytes) -> Iterator[int]:
        """Yield every place where a special token begins, also where they overlap."""
        if self._place:
            for place in self._place.finditer(data):
                if self._longest(data, place.start(), len(data), place[1]):
                    yield place.start()

    def _first(self, data: bytes, start: int, end: int) -> Found | None:
        """The longest of the tokens that begin first."""
        if self._place:
            for place in self._place.finditer(data, start, end):
                if found := self._longest(data, place.start(), end, place[1]):
                    return found
        return None

    def _better(self, data: bytes, start: int, stop: int, end: int, than: Found) -> Iterator[Found]:
        """The tokens that win over another and begin before ``stop``."""
        assert self._place
        for place in self._place.finditer(data, start, min(stop + _PREFIX, end)):
            if place.start() >= stop:
                break
            found = self._longest(data, place.start(), end, place[1], than.end - than.start)
            if found and _rank(found) < _rank(than):
                yield found

    def _longest(self, data: bytes, at: int, end: int, prefix: bytes, least: int = 0) -> Found | None:
        """The longest token at a place, of at least ``least`` bytes."""
        for length in self._lengths[prefix]:
            if length < least:
                return None
            token = self._tokens.get(data[at : at + length]) if at + length <= end else None
            if token is not None:
                return Found(at, at + length, token, at + length)
        return None

    def _after_blanks(self, data: bytes, found: Found, end: int) -> int:
        blanks = _BLANKS.match(data, found.end, end)
        assert blanks
        better = next(self._better(data, found.end, blanks.end(), end, found), None)
        return better.start if better else blanks.end()


def _rank(found: Found) -> tuple[int, int]:
    return found.start - found.end, found.token


def _lengths(tokens: Iterable[bytes], prefixes: Collection[bytes]) -> Mapping[bytes, list[int]]:
    """Lengths of the tokens that may begin with each prefix, the longest first."""
    lengths: defaultdict[bytes, set[int]] = defaultdict(set)
    for text in tokens:
        lengths[text[:_PREFIX]].add(len(text))
    for prefix in prefixes:
        for n in range(1, len(prefix)):  # shorter tokens begin alike
            if prefix[:n] in prefixes:
                lengths[prefix].add(n)
    return {prefix: sorted(of_prefix, reverse=True) for prefix, of_prefix in lengths.items()}


def _any_of(texts: Collection[bytes]) -> bytes:
    """An expression for the longest of some short texts, as a tree: each byte is looked at once."""
    branches: defaultdict[bytes, set[bytes]] = defaultdict(set)
    for text in texts:
        branches[text[:1]].add(text[1:])
    ends = bool(branches.pop(b"", None))
    expressions = [re.escape(first) + _any_of(rest) for first, rest in sorted(branches.items())]
    if not expressions:
        return b""
    return b"(?:%s)%s" % (b"|".join(expressions), b"?" if ends else b"")
