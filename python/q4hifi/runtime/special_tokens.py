"""Finding special tokens in a text, in one pass over it.

The result equals llama.cpp's, which takes one special token after another, longest first, and searches the
text that is left for it. So a token wins over all shorter ones that overlap it. Of tokens with equal
lengths the one with the smaller id wins, and of overlapping occurrences of one token the first.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

_PREFIX = 4
"""Number of first bytes of a token that the pass searches for; only there it compares whole tokens."""

_WHITESPACE = re.compile(rb"[ \t\n\v\f\r]*")


class Found(NamedTuple):
    """The special token ``token`` in ``data[start:end]``. The search continues at index ``resume``."""

    start: int
    end: int
    token: int
    resume: int


class SpecialTokens:
    """Finds a fixed set of special tokens in texts."""

    def __init__(self, tokens: Mapping[bytes, int], stripping: Collection[int] = ()) -> None:
        """``tokens`` maps texts to token ids. ``stripping``: tokens that remove the whitespace after them."""
        self._tokens = tokens
        self._stripping = stripping
        prefixes = {text[:_PREFIX] for text in tokens}
        self._lengths = _lengths(tokens, prefixes)
        # A lookahead, so that overlapping matches are found as well.
        self._prefix = re.compile(b"(?=(%s))" % _any_of(prefixes)) if tokens else None

    def find(self, data: bytes, start: int = 0, end: int | None = None) -> Iterator[Found]:
        """Yield the special tokens in ``data[start:end]`` from left to right, lazily."""
        end = len(data) if end is None else end
        while first := self._first(data, start, end):
            best = first
            while better := list(self._better(data, best.start + 1, best.end, end, best)):
                best = min(better, key=_rank)
            if best is not first:  # tokens that lost may still fit before the best one
                yield from self.find(data, first.start, best.start)
            resume = best.end
            if best.token in self._stripping:
                resume = self._after_whitespace(data, best, end)
            yield best._replace(resume=resume)
            start = resume

    def starts(self, data: bytes) -> Iterator[int]:
        """Yield every index where a special token begins, even inside another one."""
        if self._prefix:
            for match in self._prefix.finditer(data):
                if self._longest(data, match.start(), len(data), match[1]):
                    yield match.start()

    def _first(self, data: bytes, start: int, end: int) -> Found | None:
        """Return the longest token at the first index where one begins."""
        if self._prefix:
            for match in self._prefix.finditer(data, start, end):
                if found := self._longest(data, match.start(), end, match[1]):
                    return found
        return None

    def _better(self, data: bytes, start: int, stop: int, end: int, than: Found) -> Iterator[Found]:
        """Yield the tokens that begin in ``data[start:stop]`` and win over ``than``."""
        assert self._prefix
        for match in self._prefix.finditer(data, start, min(stop + _PREFIX, end)):
            if match.start() >= stop:
                break
            found = self._longest(data, match.start(), end, match[1], than.end - than.start)
            if found and _rank(found) < _rank(than):
                yield found

    def _longest(self, data: bytes, at: int, end: int, prefix: bytes, least: int = 0) -> Found | None:
        """Return the longest token in ``data[at:end]`` that begins at ``at`` and has ``least`` bytes or more.

        ``prefix`` is what the prefix expression matched at ``at``.
        """
        for length in self._lengths[prefix]:
            if length < least:
                return None
            token = self._tokens.get(data[at : at + length]) if at + length <= end else None
            if token is not None:
                return Found(at, at + length, token, at + length)
        return None

    def _after_whitespace(self, data: bytes, found: Found, end: int) -> int:
        """Return the end of the whitespace after a token, or the start of a better token in it."""
        whitespace = _WHITESPACE.match(data, found.end, end)
        assert whitespace
        better = next(self._better(data, found.end, whitespace.end(), end, found), None)
        return better.start if better else whitespace.end()


def _rank(found: Found) -> tuple[int, int]:
    """Return a key that sorts winning tokens first: longer ones, then smaller ids."""
    return found.start - found.end, found.token


def _lengths(tokens: Iterable[bytes], prefixes: Collection[bytes]) -> Mapping[bytes, list[int]]:
    """Map each prefix to the lengths of the tokens that may begin where it matches, longest first."""
    lengths: defaultdict[bytes, set[int]] = defaultdict(set)
    for text in tokens:
        lengths[text[:_PREFIX]].add(len(text))
    for prefix in prefixes:
        for n in range(1, len(prefix)):  # tokens shorter than _PREFIX, which this prefix begins with
            if prefix[:n] in prefixes:
                lengths[prefix].add(n)
    return {prefix: sorted(of_prefix, reverse=True) for prefix, of_prefix in lengths.items()}


def _any_of(texts: Collection[bytes]) -> bytes:
    """Return a regular expression that matches the longest of ``texts``.

    It is a prefix tree, so that the search looks at each byte only once.
    """
    branches: defaultdict[bytes, set[bytes]] = defaultdict(set)
    for text in texts:
        branches[text[:1]].add(text[1:])
    ends = bool(branches.pop(b"", None))
    expressions = [re.escape(first) + _any_of(rest) for first, rest in sorted(branches.items())]
    if not expressions:
        return b""
    return b"(?:%s)%s" % (b"|".join(expressions), b"?" if ends else b"")
