"""The rules ``REGEX=TYPE`` that give single tensors a type: read from the command line and from files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeAlias

from ..errors import BadOptionError
from ..files.file_kinds import Pipes, Purpose
from ..files.text_file import read_text_bytes
from ..formats.types import TensorType, tensor_type
from ..wording import invisible, shortened
from .recipes import RECIPES
from .tensor_patterns import Pattern, compile_pattern

TensorTypes: TypeAlias = Sequence[tuple[str, str]]
"""(regular expression, type) pairs; the first whose expression matches a tensor's name gives its type."""

_CAPITAL_ESCAPES = {
    r"\A": "^",
    r"\B": r"(?!\b)",
    r"\D": "[^0-9]",
    r"\N": ".",
    r"\S": "[^[:space:]]",
    r"\W": "[^[:w:]]",
    r"\Z": "$",
}
"""Escapes with a capital letter -> a pattern without one that means the same."""

RULES = Purpose(
    "a file of rules REGEX=TYPE",
    "name a UTF-8 text file with such rules",
    "write it again",
    Pipes.OPENED,
    4 << 20,
)

MAX_RULES = 16384
"""Rules of the longest file. A model has fewer tensors, and a rule can match many of them."""


class TypedPattern(str):
    """A pattern in lower case. ``typed`` is what the user typed, for messages."""

    typed: str


def parse_tensor_type(text: str) -> tuple[str, str]:
    """Split ``REGEX=TYPE`` at its first ``=``, and lower the case of the pattern, as llama-quantize does.

    Blanks around both sides are dropped. Raises :class:`BadOptionError` if a side is missing or invalid, and
    for an escape with a capital letter, which has another meaning in lower case.
    """
    pattern, _, kind = (side.strip() for side in text.partition("="))
    rule = f"--tensor-type '{shortened(text)}'"
    if not (pattern and kind):
        raise BadOptionError(f"{rule}: write REGEX=TYPE, for example attn_v=q6_k{invisible(text)}")
    if pattern.endswith("(?"):
        raise BadOptionError(
            f"{rule}: the first = ends the pattern, so (?=...) cannot be written in it;"
            " write (?!(?!...)), which means the same"
        )
    if "=" in kind:
        raise BadOptionError(
            f"{rule}: the first = ends the pattern, so '{shortened(kind)}' would be the type;"
            r" write \x3d for the character in a pattern"
        )
    for escape in re.findall(r"\\.", pattern):
        if "A" <= escape[1] <= "Z":
            remedy = f"write {_CAPITAL_ESCAPES[escape]}" if escape in _CAPITAL_ESCAPES else "leave it out"
            raise BadOptionError(
                f"{rule}: llama-quantize lowers the case of a pattern, and {escape} would"
                f" become {escape.lower()}; {remedy}"
            )
    lowered = TypedPattern(re.sub("[A-Z]", lambda letter: letter[0].lower(), pattern))
    lowered.typed = pattern
    checked_rule(lowered, kind)
    return lowered, kind


def as_typed(pattern: str) -> str:
    """Return a pattern as the user typed it."""
    return pattern.typed if isinstance(pattern, TypedPattern) else pattern


def compiled(pattern: str) -> Pattern:
    """Compile the pattern of a rule. Raises :class:`BadOptionError`, which shows it as it was typed."""
    return compile_pattern(pattern, as_typed(pattern))


def checked_rule(pattern: str, kind: str) -> TensorType:
    """Return the type of a rule. Raises :class:`BadOptionError` for a bad pattern or type."""
    compiled(pattern)
    return checked_type(f"--tensor-type {shortened(f'{as_typed(pattern)}={kind}')}", kind)


def checked_type(option: str, kind: str) -> TensorType:
    """Return the tensor type that an option names.

    Raises :class:`BadOptionError`, which names the option, if there is no such type.
    """
    try:
        return tensor_type(kind, codec=False)  # what cannot be encoded can be kept
    except BadOptionError as error:
        mix = f"; {kind} is a mix of types, for a whole file" if kind.upper() in RECIPES else ""
        raise BadOptionError(f"{option}: {error}{mix}{invisible(kind)}") from None


def read_tensor_type_file(path: str | Path) -> tuple[tuple[str, str], ...]:
    """Read a ``--tensor-type-file``: ``REGEX=TYPE`` rules, separated by spaces or line ends, in UTF-8.

    Raises :class:`BadOptionError` for a file that cannot be read or holds something else.
    """
    try:
        rules = tuple(islice(_rules_in(read_text_bytes(path, RULES), os.fspath(path)), MAX_RULES + 1))
        if len(rules) > MAX_RULES:
            raise BadOptionError(
                f"{os.fspath(path)}: holds more than {MAX_RULES} rules; write them with fewer"
            )
        return rules
    except BadOptionError as error:
        raise BadOptionError(f"--tensor-type-file {error}") from error


def _rules_in(data: bytes, file: str) -> Iterator[tuple[str, str]]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = error.object[: error.start].count(b"\n") + 1
        raise BadOptionError(
            f"{file}, line {number}: not UTF-8 (byte {error.object[error.start]:02X}); save it as UTF-8"
        ) from error
    if not text.strip():
        raise BadOptionError(f"{file}: holds no rules; write REGEX=TYPE into it, for example attn_v=q6_k")
    for number, line in enumerate(text.split("\n"), 1):
        for rule in re.split(r"[ \t\r\v\f]+", re.sub(r"[ \t]*=[ \t]*", "=", line)):
            try:
                if rule:
                    yield parse_tensor_type(rule)
            except BadOptionError as error:
                comment = "; such a file has no comments" if rule.startswith("#") else ""
                raise BadOptionError(f"{file}, line {number}: {error}{comment}") from error
