"""The rules ``REGEX=TYPE`` that give single tensors a type: read from the command line and from files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from ..errors import BadOptionError
from ..files.text_file import read_text_bytes

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


def parse_tensor_type(text: str) -> tuple[str, str]:
    """Split ``REGEX=TYPE`` at its first ``=``, and lower the case of the pattern, as llama-quantize does.

    Blanks around both sides are dropped. Raises :class:`BadOptionError` if a side is missing, and for an
    escape with a capital letter, which has another meaning in lower case.
    """
    pattern, _, kind = (side.strip() for side in text.partition("="))
    if not (pattern and kind):
        raise BadOptionError(f"--tensor-type {text!r}: write REGEX=TYPE, for example attn_v=q6_k")
    if "=" in kind:
        raise BadOptionError(
            f"--tensor-type {text!r}: the first = ends the pattern, so {kind!r} would be the type;"
            r" write \x3d for the character in a pattern"
        )
    for escape in re.findall(r"\\.", pattern):
        if "A" <= escape[1] <= "Z":
            remedy = f"write {_CAPITAL_ESCAPES[escape]}" if escape in _CAPITAL_ESCAPES else "leave it out"
            raise BadOptionError(
                f"--tensor-type {text!r}: llama-quantize lowers the case of a pattern, and {escape} would"
                f" become {escape.lower()}; {remedy}"
            )
    return re.sub("[A-Z]", lambda letter: letter[0].lower(), pattern), kind


def read_tensor_type_file(path: str | Path) -> tuple[tuple[str, str], ...]:
    """Read a ``--tensor-type-file``: ``REGEX=TYPE`` rules, separated by spaces or line ends, in UTF-8.

    Raises :class:`BadOptionError` for a file that cannot be read or holds something else.
    """
    try:
        return tuple(_rules_in(read_text_bytes(path), os.fspath(path)))
    except BadOptionError as error:
        raise BadOptionError(f"--tensor-type-file {error}") from error


def _rules_in(data: bytes, file: str) -> Iterator[tuple[str, str]]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadOptionError(f"{file}: {error}; save it as UTF-8") from error
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
