"""Checks that each option's value has the right type; the error names the option."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from numbers import Integral, Real
from typing import Any

from ..errors import BadOptionError


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _sequence_of(is_item: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def check(value: object) -> bool:
        return isinstance(value, Sequence) and not isinstance(value, str) and all(map(is_item, value))

    return check


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_rule(value: object) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(map(_is_text, value))


VALUES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "str": (_is_text, "a str"),
    "bool": (lambda value: isinstance(value, bool), "True or False"),
    "int": (_is_whole, "a whole number"),
    "float": (lambda value: isinstance(value, Real) and not isinstance(value, bool), "a number"),
    "Bytes": (_is_whole, "a number of bytes"),
    "FilePath": (lambda value: isinstance(value, (str, os.PathLike)), "a path"),
    "Sequence[str]": (_sequence_of(_is_text), "a list of str"),
    "Sequence[int]": (_sequence_of(_is_whole), "a list of whole numbers"),
    "TensorTypes": (_sequence_of(_is_rule), "a list of (pattern, type), such as [('attn_v', 'q8_0')]"),
}
"""Annotation of an option -> whether a value is of that type, and what to give."""


def check_values(options: Any) -> None:
    """Check the type of every field of a dataclass whose annotation is in :data:`VALUES`.

    Raises :class:`BadOptionError`, which names the option, for the first value of another type.
    """
    for field in fields(options):
        value, kind = getattr(options, field.name), str(field.type)
        if value is None and kind.endswith(" | None"):
            continue
        is_right, wanted = VALUES.get(kind.removesuffix(" | None"), (None, ""))
        if is_right is not None and not is_right(value):
            raise BadOptionError(f"`{field.name}` is {value!r:.80}; give {wanted}")
