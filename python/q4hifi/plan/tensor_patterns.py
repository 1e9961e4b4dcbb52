r"""llama-quantize's regular expressions for tensor names: C++'s ``std::regex`` in GCC's library.

Only whether a pattern is found in a name matters. So groups keep nothing, and lazy repeats are greedy ones.

A part of a pattern takes a set of places in the name and returns the places where it can end. A set is
an int: bit i is the place before byte i. All places advance together, so nothing is tried twice, and no
pattern needs exponential time.

What the programs that read such patterns understand differently is refused, with a remedy.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping
from functools import lru_cache

from ..errors import BadOptionError

MAX_REPEATS = 1000
"""The highest number in ``{n,m}``."""

MAX_DEPTH = 50
"""Parentheses inside one another."""

MAX_STEPS = 100_000
"""Parts of a pattern that a search may visit again in repeats and lookaheads. Real ones visit hundreds."""

_WORD = frozenset(string.ascii_letters + string.digits + "_")
_CLASSES: Mapping[str, frozenset[str]] = {
    "alnum": frozenset(string.ascii_letters + string.digits),
    "alpha": frozenset(string.ascii_letters),
    "blank": frozenset(" \t"),
    "cntrl": frozenset(map(chr, [*range(32), 127])),
    "d": frozenset(string.digits),
    "digit": frozenset(string.digits),
    "graph": frozenset(map(chr, range(33, 127))),
    "lower": frozenset(string.ascii_lowercase),
    "print": frozenset(map(chr, range(32, 127))),
    "punct": frozenset(string.punctuation),
    "s": frozenset(" \t\n\v\f\r"),
    "space": frozenset(" \t\n\v\f\r"),
    "upper": frozenset(string.ascii_uppercase),
    "w": _WORD,
    "xdigit": frozenset(string.hexdigits),
}
"""Name of a class of characters, as in ``[[:alpha:]]`` or ``\\d`` -> its members."""

_BYTES = frozenset(map(chr, range(256)))
_CONTROLS = {"t": "\t", "n": "\n", "r": "\r", "f": "\f", "v": "\v", "0": "\0"}
_HEX_DIGITS = {"x": 2, "u": 4}
_QUANTIFIERS = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_COUNTS = re.compile(r"\{([0-9]+)(,([0-9]*))?\}")
_LONE_CLASS = re.compile(r"\[(\^?):(\^?)([A-Za-z]+):\]")
_NOT_KNOWN = {
    "<": "lookbehinds and named groups are not known; write a plain group (...)",
    "P": "named groups are not known; write a plain group (...)",
    ">": "atomic groups are not known; write a plain group (...)",
    "#": "comments are not known; leave it out",
}
_FLAGS = "flags such as (?i) are not known; write the pattern in lower case, as tensors are named"

_Part = Callable[["_Name", int], int]
"""(name, places before) -> places after."""


class Pattern:
    """A compiled pattern; see :func:`compile_pattern`."""

    def __init__(self, text: str, part: _Part, word: str) -> None:
        """Use :func:`compile_pattern`; every match contains ``word``."""
        self.text, self._part, self._word = text, part, word

    def search(self, name: str) -> bool:
        """Return whether the pattern is found anywhere in a tensor's name.

        Raises :class:`BadOptionError` where that would take too long.
        """
        if self._word not in name:  # far quicker than the search
            return False
        subject = _name(name)
        subject.steps = MAX_STEPS
        try:
            return self._part(subject, (2 << subject.length) - 1) != 0
        except _TooManySteps:
            raise BadOptionError(
                f"`tensor_types`: {self.text!r} takes too long on the tensor {name!r};"
                " write it with fewer repeats inside repeats"
            ) from None


class _TooManySteps(Exception):
    pass


class _Name:
    """A tensor's name: the places of its bytes, as sets."""

    def __init__(self, name: str) -> None:
        self.text = name.encode("utf-8", "surrogateescape").decode("latin-1")
        self.length, self.steps = len(self.text), 0
        self.places: dict[str, int] = {}
        for i, c in enumerate(self.text):
            self.places[c] = self.places.get(c, 0) | 1 << i
        self._classes: dict[frozenset[str], int] = {}
        words = self.of(_WORD)
        self.boundaries = words ^ words << 1

    def of(self, members: frozenset[str]) -> int:
        """The places before bytes that are among ``members``."""
        found = self._classes.get(members)
        if found is None:
            found = sum(bits for c, bits in self.places.items() if c in members)
            self._classes[members] = found
        return found

    def spend(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise _TooManySteps


_name = lru_cache(maxsize=4096)(_Name)


# ---- parts of a pattern -----------------------------------------------------------------------------


def _word(text: str) -> _Part:
    def run(name: _Name, places: int) -> int:
        found, start = 0, name.text.find(text)
        while start >= 0:
            found |= places & 1 << start
            start = name.text.find(text, start + 1)
        return found << len(text)

    return run


def _member(members: frozenset[str]) -> _Part:
    return lambda name, places: (places & name.of(members)) << 1


def _sequence(parts: list[_Part]) -> _Part:
    def run(name: _Name, places: int) -> int:
        for part in parts:
            places = part(name, places)
            if not places:
                break
        return places

    return parts[0] if len(parts) == 1 else run


def _either(branches: list[_Part]) -> _Part:
    def run(name: _Name, places: int) -> int:
        found = 0
        for branch in branches:
            found |= branch(name, places)
        return found

    return branches[0] if len(branches) == 1 else run


def _repeat(part: _Part, least: int, most: int | None, size: int) -> _Part:
    """``part``, which visits ``size`` parts, ``least`` to ``most`` times."""

    def run(name: _Name, places: int) -> int:
        for _ in range(least):
            if not places:
                return 0
            name.spend(size)
            places = part(name, places)
        found = new = places
        more = 0
        while new and (most is None or more < most - least):
            name.spend(size)
            new = part(name, new) & ~found
            found |= new
            more += 1
        return found

    return run


def _look(part: _Part, wanted: bool, size: int) -> _Part:
    """Keep the places from where ``part`` matches, or does not."""

    def run(name: _Name, places: int) -> int:
        kept = 0
        while places:
            place = places & -places
            places ^= place
            name.spend(size)
            if (part(name, place) != 0) == wanted:
                kept |= place
        return kept

    return run


def _begin(name: _Name, places: int) -> int:
    return places & 1


def _end(name: _Name, places: int) -> int:
    return places & 1 << name.length


def _boundary(name: _Name, places: int) -> int:
    return places & name.boundaries


def _no_boundary(name: _Name, places: int) -> int:
    return places & ~name.boundaries


_ASSERTIONS: Mapping[str, _Part] = {"^": _begin, "$": _end, r"\b": _boundary, r"\B": _no_boundary}


# ---- reading a pattern ------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def compile_pattern(pattern: str) -> Pattern:
    """Compile a regular expression of llama-quantize's dialect.

    Raises :class:`BadOptionError` for what is none, and for what other programs read differently.
    """
    reader = _Reader(pattern)
    part = reader.whole()
    return Pattern(pattern, part, max(filter(str.isascii, reader.words), key=len, default=""))


class _Reader:
    """Reads a pattern from left to right; ``at`` is the next character, ``size`` the parts read so far.

    ``words`` are strings that every match contains.
    """

    def __init__(self, text: str) -> None:
        self.text, self.at, self.size, self.depth = text, 0, 0, 0
        self.words: list[str] = []

    def whole(self) -> _Part:
        part = self.alternatives()
        if self.at < len(self.text):
            raise self.bad("nothing opens this parenthesis; write \\) for the character")
        return part

    def alternatives(self) -> _Part:
        branches = [self.terms()]
        while self.take("|"):
            branches.append(self.terms())
            if self.depth == 0:
                self.words = []
        return _either(branches)

    def terms(self) -> _Part:
        parts: list[_Part] = []
        word = ""
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            term = self.term()
            if isinstance(term, str):
                word += term
                continue
            parts += [self.word(word), term] if word else [term]
            word = ""
        return _sequence([*parts, self.word(word)] if word or not parts else parts)

    def word(self, text: str) -> _Part:
        if self.depth == 0:
            self.words.append(text)
        return _word(text)

    def term(self) -> str | _Part:
        """One or more bytes, or another part."""
        before = self.size
        self.size += 1
        for sign, part in _ASSERTIONS.items():
            if self.take(sign):
                return self.unrepeated(part)
        for sign, wanted in (("(?=", True), ("(?!", False)):
            if self.take(sign):
                part = self.group()
                return self.unrepeated(_look(part, wanted, self.size - before))
        start = self.at
        atom = self.atom()
        wide = not self.text[start].isascii()
        counts = self.counts()
        if counts is None:
            return atom
        if wide:
            self.at = start
            raise self.bad(f"only a part of {self.text[start]!r} would be repeated; write (?:...) around it")
        self.take("?")  # lazy
        if self.text[self.at : self.at + 1] in {*_QUANTIFIERS, "{"}:
            raise self.bad("two quantifiers in a row; write (?:...) around the first")
        part = _word(atom) if isinstance(atom, str) else atom
        return _repeat(part, *counts, self.size - before)

    def unrepeated(self, part: _Part) -> _Part:
        if self.text[self.at : self.at + 1] in {*_QUANTIFIERS, "{"}:
            raise self.bad("an assertion cannot be repeated; leave the quantifier out")
        return part

    def counts(self) -> tuple[int, int | None] | None:
        sign = self.text[self.at : self.at + 1]
        if sign in _QUANTIFIERS:
            self.at += 1
            return _QUANTIFIERS[sign]
        if sign != "{":
            return None
        found = _COUNTS.match(self.text, self.at)
        if found is None:
            raise self.bad("a brace begins {n}, {n,} or {n,m}; write \\{ for the character")
        least = int(found[1][:9])
        most = least if found[2] is None else int(found[3][:9]) if found[3] else None
        if max(least, most or 0) > MAX_REPEATS or (most is not None and most < least):
            raise self.bad(f"repeats are up to {MAX_REPEATS}, the smaller number first")
        self.at = found.end()
        return least, most

    def atom(self) -> str | _Part:
        if self.take("("):
            if self.text.startswith("?", self.at) and not self.text.startswith("?:", self.at):
                kind = self.text[self.at + 1 : self.at + 2]
                self.at -= 1
                raise self.bad(_NOT_KNOWN.get(kind, _FLAGS))
            self.take("?:")
            return self.group()
        if self.take("["):
            return _member(self.bracket())
        if self.take("."):
            return _member(_BYTES - frozenset("\n\r"))
        c = self.text[self.at]
        if c in _QUANTIFIERS or c == "{":
            raise self.bad(f"there is nothing to repeat; write \\{c} for the character")
        if c == "\\":
            found = self.escape()
            return found if isinstance(found, str) else _member(found)
        self.at += 1
        return c.encode("utf-8", "surrogateescape").decode("latin-1")

    def group(self) -> _Part:
        """What stands in parentheses, the first of which was read."""
        start = self.at
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.bad(f"more than {MAX_DEPTH} parentheses inside one another; write it with fewer")
        part = self.alternatives()
        self.depth -= 1
        if not self.take(")"):
            self.at = start - 1
            raise self.bad("nothing closes this parenthesis; write \\( for the character")
        return part

    def escape(self) -> str | frozenset[str]:
        """A backslash and what it stands for: a byte, or the members of a class."""
        c = self.text[self.at + 1 : self.at + 2]
        if c.lower() in ("d", "s", "w") and c:
            self.at += 2
            members = _CLASSES[c.lower()]
            return members if c.islower() else _BYTES - members
        if c in _HEX_DIGITS:
            digits = self.text[self.at + 2 : self.at + 2 + _HEX_DIGITS[c]]
            if len(digits) < _HEX_DIGITS[c] or not _CLASSES["xdigit"].issuperset(digits):
                raise self.bad(f"{_HEX_DIGITS[c]} hexadecimal digits must follow \\{c}")
            if int(digits, 16) > 127:
                raise self.bad("it is beyond ASCII; write the character itself")
            self.at += 2 + len(digits)
            return chr(int(digits, 16))
        if c in "123456789" and c:
            raise self.bad("back-references are not known; write out what is to be repeated")
        if c not in _CONTROLS and (c.isalnum() or not c or not c.isascii()):
            raise self.bad(
                "it ends in a backslash; write \\\\ for the character"
                if not c
                else f"\\{c} is not known; write {c} for the character"
            )
        self.at += 2
        return _CONTROLS.get(c, c)

    def bracket(self) -> frozenset[str]:
        """The members of a class in brackets, the first of which was read."""
        start = self.at - 1
        if found := _LONE_CLASS.match(self.text, start):
            self.at = start
            whole = f"[{found[1] or found[2]}[:{found[3]}:]]"
            raise self.bad(f"a class of characters needs brackets of its own; write {whole}")
        negated = self.take("^")
        if self.text.startswith("]", self.at):
            self.at = start
            raise self.bad("there is nothing in the brackets; write \\] for the character")
        members: set[str] = set()
        while not self.take("]"):
            if self.at >= len(self.text):
                self.at = start
                raise self.bad("nothing closes this bracket; write \\[ for the character")
            first = self.item()
            if not self.text.startswith("-", self.at) or self.text.startswith("-]", self.at):
                members |= set(first)
                continue
            dash = self.at
            self.at += 1
            last = self.item() if self.at < len(self.text) else ""
            if not (isinstance(first, str) and isinstance(last, str) and first <= last):
                self.at = dash
                raise self.bad("a range goes from one character up to another; write \\- for the character")
            members |= set(map(chr, range(ord(first), ord(last) + 1)))
        return _BYTES - members if negated else frozenset(members)

    def item(self) -> str | frozenset[str]:
        """A character in brackets, or the members of a class."""
        for sign in (":", ".", "="):
            if self.text.startswith("[" + sign, self.at):
                end = self.text.find(sign + "]", self.at + 2)
                members = _CLASSES.get(self.text[self.at + 2 : end].lower()) if sign == ":" else None
                if members is None or end < 0:
                    names = ", ".join(name for name in _CLASSES if len(name) > 1)
                    raise self.bad(f"classes are written [:name:], of the names {names}")
                self.at = end + 2
                return members
        if self.text.startswith("\\b", self.at):
            self.at += 2
            return "\b"
        if self.text.startswith("\\", self.at):
            return self.escape()
        c = self.text[self.at]
        if not c.isascii():
            raise self.bad("brackets hold ASCII characters only; write (?:x|y) for others")
        self.at += 1
        return c

    def take(self, sign: str) -> bool:
        found = self.text.startswith(sign, self.at)
        self.at += len(sign) * found
        return found

    def bad(self, why: str) -> BadOptionError:
        return BadOptionError(
            f"`tensor_types`: {self.text!r} is no regular expression that llama-quantize knows: at"
            f" {self.text[self.at :][:12]!r} (character {self.at + 1}): {why}"
        )
