r"""Regular expressions for tensor names, in llama-quantize's dialect: C++'s ``std::regex`` of GCC's library.

Only one question matters: is a pattern found in a name? So groups capture nothing, and lazy repeats are
treated as greedy ones. :mod:`q4hifi.plan.pattern_parts` does the search.

Syntax that other programs with such patterns interpret differently is an error, with a remedy.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from functools import lru_cache

from ..errors import BadOptionError
from ..wording import shortened
from .pattern_parts import (
    ASSERTIONS,
    WORD,
    Part,
    TooManySteps,
    either,
    look,
    member,
    name_of,
    repeat,
    sequence,
    word,
)

MAX_LENGTH = 10_000
"""Characters of the longest pattern. The name of a tensor has 63 at most."""

MAX_REPEATS = 1000
"""The largest count in ``{n,m}``."""

MAX_DEPTH = 50
"""The largest depth of nested parentheses."""

MAX_STEPS = 100_000
"""Steps of one search: parts of the pattern run by repeats and lookaheads. Real patterns need hundreds."""

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
    "w": WORD,
    "xdigit": frozenset(string.hexdigits),
}
"""Name of a character class, as in ``[[:alpha:]]`` or ``\\d`` -> its characters."""

_BYTES = frozenset(map(chr, range(256)))
_CONTROLS = {"t": "\t", "n": "\n", "r": "\r", "f": "\f", "v": "\v", "0": "\0"}
_HEX_DIGITS = {"x": 2, "u": 4}
_QUANTIFIERS = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_COUNTS = re.compile(r"\{([0-9]+)(,([0-9]*))?\}")
_LONE_CLASS = re.compile(r"\[(\^?):(\^?)([A-Za-z]+):\]")
_NOT_SUPPORTED = {
    "<": "lookbehinds and named groups are not supported; write a plain group (...)",
    "p": "named groups are not supported; write a plain group (...)",
    ">": "atomic groups are not supported; write a plain group (...)",
    "#": "comments are not supported; leave it out",
}
"""Character after ``(?``, in lower case -> why the group is an error."""

_FLAGS = "flags such as (?i) are not supported; write the pattern in lower case, as tensors are named"


class Pattern:
    """A compiled pattern; see :func:`compile_pattern`."""

    def __init__(self, typed: str, part: Part, word: str) -> None:
        """Private: use :func:`compile_pattern`. Every match contains the string ``word``."""
        self._typed, self._part, self._word = typed, part, word

    def search(self, name: str) -> bool:
        """Return whether the pattern is found anywhere in ``name``.

        Raises :class:`BadOptionError` where the search would take too long.
        """
        if self._word not in name:  # much faster than the search
            return False
        subject = name_of(name)
        subject.steps = MAX_STEPS
        try:
            return self._part(subject, (2 << subject.length) - 1) != 0
        except TooManySteps:
            raise BadOptionError(
                f"`tensor_types`: '{shortened(self._typed)}' takes too long on the tensor '{name}';"
                " write it with fewer repeats inside repeats"
            ) from None


@lru_cache(maxsize=4096)
def compile_pattern(pattern: str, typed: str = "") -> Pattern:
    """Compile a regular expression of llama-quantize's dialect.

    ``typed`` is the pattern as messages show it, where that differs in case. Raises :class:`BadOptionError`
    for a syntax error, for syntax that other programs interpret differently, and for a pattern of more than
    :data:`MAX_LENGTH` characters.
    """
    if len(pattern) > MAX_LENGTH:
        raise BadOptionError(
            f"`tensor_types`: '{shortened(typed or pattern)}' has {len(pattern)} characters; a pattern has"
            f" {MAX_LENGTH} at most"
        )
    reader = _Reader(pattern, typed or pattern)
    part = reader.whole()
    return Pattern(reader.typed, part, max(filter(str.isascii, reader.words), key=len, default=""))


class _Reader:
    """A recursive descent parser: it reads a pattern from left to right and builds its parts.

    ``at`` is the index of the next character, ``size`` the number of parts read so far, ``depth`` the number
    of open parentheses. ``words`` are strings that every match contains.
    """

    def __init__(self, text: str, typed: str) -> None:
        self.text, self.typed, self.at, self.size, self.depth = text, typed, 0, 0, 0
        self.words: list[str] = []

    def whole(self) -> Part:
        part = self.alternatives()
        if self.at < len(self.text):
            raise self.error("nothing opens this parenthesis; write \\) for the character")
        return part

    def alternatives(self) -> Part:
        branches = [self.terms()]
        while self.take("|"):
            branches.append(self.terms())
            if self.depth == 0:
                self.words = []
        return either(branches)

    def terms(self) -> Part:
        parts: list[Part] = []
        word = ""
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            term = self.term()
            if isinstance(term, str):
                word += term
                continue
            parts += [self.word(word), term] if word else [term]
            word = ""
        return sequence([*parts, self.word(word)] if word or not parts else parts)

    def word(self, text: str) -> Part:
        if self.depth == 0:
            self.words.append(text)
        return word(text)

    def term(self) -> str | Part:
        """Read an atom with its quantifier, or an assertion; plain text is returned as a string of bytes."""
        size_before = self.size
        self.size += 1
        for sign, part in ASSERTIONS.items():
            if self.take(sign):
                return self.unrepeated(part)
        for sign, wanted in (("(?=", True), ("(?!", False)):
            if self.take(sign):
                part = self.group()
                return self.unrepeated(look(part, wanted, self.size - size_before))
        start = self.at
        atom = self.atom()
        several_bytes = not self.text[start].isascii()
        counts = self.counts()
        if counts is None:
            return atom
        if several_bytes:  # std::regex would repeat only the last byte of the character
            self.at = start
            raise self.error(
                f"only a part of {self.text[start]!r} would be repeated; write (?:...) around it"
            )
        self.take("?")  # lazy
        if self.text[self.at : self.at + 1] in {*_QUANTIFIERS, "{"}:
            raise self.error("two quantifiers in a row; write (?:...) around the first")
        part = word(atom) if isinstance(atom, str) else atom
        return repeat(part, *counts, self.size - size_before)

    def unrepeated(self, part: Part) -> Part:
        if self.text[self.at : self.at + 1] in {*_QUANTIFIERS, "{"}:
            raise self.error("an assertion cannot be repeated; leave the quantifier out")
        return part

    def counts(self) -> tuple[int, int | None] | None:
        """Read a quantifier: the least and the largest count (None: no limit). None if there is none."""
        sign = self.text[self.at : self.at + 1]
        if sign in _QUANTIFIERS:
            self.at += 1
            return _QUANTIFIERS[sign]
        if sign != "{":
            return None
        match = _COUNTS.match(self.text, self.at)
        if match is None:
            raise self.error("a brace begins {n}, {n,} or {n,m}; write \\{ for the character")
        least = int(match[1][:9])
        most = least if match[2] is None else int(match[3][:9]) if match[3] else None
        if max(least, most or 0) > MAX_REPEATS or (most is not None and most < least):
            raise self.error(f"counts are at most {MAX_REPEATS}, the smaller one first")
        self.at = match.end()
        return least, most

    def atom(self) -> str | Part:
        if self.take("("):
            if self.text.startswith("?", self.at) and not self.text.startswith("?:", self.at):
                kind = self.text[self.at + 1 : self.at + 2]
                self.at -= 1
                raise self.error(_NOT_SUPPORTED.get(kind.lower(), _FLAGS))
            self.take("?:")
            return self.group()
        if self.take("["):
            return member(self.bracket())
        if self.take("."):
            return member(_BYTES - frozenset("\n\r"))
        c = self.text[self.at]
        if c in _QUANTIFIERS or c == "{":
            raise self.error(f"there is nothing to repeat; write \\{c} for the character")
        if c == "\\":
            escaped = self.escape()
            return escaped if isinstance(escaped, str) else member(escaped)
        self.at += 1
        return c.encode("utf-8", "surrogateescape").decode("latin-1")

    def group(self) -> Part:
        """Read the rest of a group, after its opening parenthesis."""
        start = self.at
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.error(f"more than {MAX_DEPTH} nested parentheses; write it with fewer")
        part = self.alternatives()
        self.depth -= 1
        if not self.take(")"):
            self.at = start - 1
            raise self.error("nothing closes this parenthesis; write \\( for the character")
        return part

    def escape(self) -> str | frozenset[str]:
        """Read an escape sequence: return its byte, or the characters of its class."""
        c = self.text[self.at + 1 : self.at + 2]
        if c.lower() in ("d", "s", "w") and c:
            self.at += 2
            members = _CLASSES[c.lower()]
            return members if c.islower() else _BYTES - members
        if c in _HEX_DIGITS:
            digits = self.text[self.at + 2 : self.at + 2 + _HEX_DIGITS[c]]
            if len(digits) < _HEX_DIGITS[c] or not _CLASSES["xdigit"].issuperset(digits):
                raise self.error(f"{_HEX_DIGITS[c]} hexadecimal digits must follow \\{c}")
            if int(digits, 16) > 127:
                raise self.error("it is beyond ASCII; write the character itself")
            self.at += 2 + len(digits)
            return chr(int(digits, 16))
        if c in "123456789" and c:
            raise self.error("back-references are not supported; write the repeated text again")
        if c not in _CONTROLS and (c.isalnum() or not c or not c.isascii()):
            raise self.error(
                "it ends in a backslash; write \\\\ for the character"
                if not c
                else f"\\{c} is not supported; write {c} for the character"
            )
        self.at += 2
        return _CONTROLS.get(c, c)

    def bracket(self) -> frozenset[str]:
        """Read the rest of a bracket expression, after its opening bracket; return its characters."""
        start = self.at - 1
        if match := _LONE_CLASS.match(self.text, start):
            self.at = start
            whole = f"[{match[1] or match[2]}[:{match[3]}:]]"
            raise self.error(f"a class of characters needs brackets of its own; write {whole}")
        negated = self.take("^")
        if self.text.startswith("]", self.at):
            self.at = start
            raise self.error("there is nothing in the brackets; write \\] for the character")
        members: set[str] = set()
        while not self.take("]"):
            if self.at >= len(self.text):
                self.at = start
                raise self.error("nothing closes this bracket; write \\[ for the character")
            first = self.item()
            if not self.text.startswith("-", self.at) or self.text.startswith("-]", self.at):
                members |= set(first)
                continue
            dash = self.at
            self.at += 1
            last = self.item() if self.at < len(self.text) else ""
            if not (isinstance(first, str) and isinstance(last, str) and first <= last):
                self.at = dash
                raise self.error("a range goes from one character up to another; write \\- for the character")
            members |= set(map(chr, range(ord(first), ord(last) + 1)))
        return _BYTES - members if negated else frozenset(members)

    def item(self) -> str | frozenset[str]:
        """Read one item of a bracket expression: a character, or the characters of a class."""
        for sign in (":", ".", "="):
            if self.text.startswith("[" + sign, self.at):
                end = self.text.find(sign + "]", self.at + 2)
                members = _CLASSES.get(self.text[self.at + 2 : end].lower()) if sign == ":" else None
                if members is None or end < 0:
                    names = ", ".join(name for name in _CLASSES if len(name) > 1)
                    raise self.error(f"classes are written [:name:]; the names are {names}")
                self.at = end + 2
                return members
        if self.text.startswith("\\b", self.at):
            self.at += 2
            return "\b"
        if self.text.startswith("\\", self.at):
            return self.escape()
        c = self.text[self.at]
        if not c.isascii():
            raise self.error("brackets hold ASCII characters only; write (?:x|y) for others")
        self.at += 1
        return c

    def take(self, sign: str) -> bool:
        """Skip ``sign`` if it is next; return whether it was."""
        is_next = self.text.startswith(sign, self.at)
        self.at += len(sign) * is_next
        return is_next

    def error(self, why: str) -> BadOptionError:
        """Return the error for the current position."""
        return BadOptionError(
            f"`tensor_types`: '{shortened(self.typed)}' is no regular expression that llama-quantize"
            f" supports: at '{self.typed[self.at :][:12]}' (character {self.at + 1}): {why}"
        )
