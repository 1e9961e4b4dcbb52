"""Options as fields of a dataclass, each with the text from which its help and its documentation are made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import Field, dataclass, field, fields
from textwrap import fill, indent
from typing import Any

_KEY = "option"

_WIDTH = 96
"""Columns of a text in a docstring."""


@dataclass(frozen=True, slots=True)
class OptionText:
    """What is said of an option.

    ``help`` is one or more sentences for the command line and the documentation, ``details`` sentences for
    the documentation only. ``unset`` says what None means. ``section`` is the heading under which the option
    is listed; "" is the general one. ``metavar``, ``choices`` and ``between`` (smallest and largest value)
    describe the value.
    """

    help: str
    section: str = ""
    details: str = ""
    unset: str = ""
    metavar: str | None = None
    choices: Sequence[str] = ()
    between: tuple[float, float] | None = None


def option(default: Any, help: str, **text: Any) -> Any:
    """Return a dataclass field with this default and an :class:`OptionText` of the other arguments."""
    return field(default=default, metadata={_KEY: OptionText(help, **text)})


def text_of(option: Field[Any]) -> OptionText:
    """Return what is said of a field that :func:`option` made."""
    text: OptionText = option.metadata[_KEY]
    return text


def by_section(cls: type, sections: Sequence[str]) -> Iterator[tuple[str, list[Field[Any]]]]:
    """Yield each of the ``sections`` that a dataclass has options in, and these options."""
    for section in sections:
        found = [f for f in fields(cls) if text_of(f).section == section]
        if found:
            yield section, found


def document(target: Any, cls: type, sections: Sequence[str]) -> None:
    """Add a list of the options of the dataclass ``cls`` to the docstring of ``target``."""
    target.__doc__ = f"{(target.__doc__ or '').rstrip()}\n\n{indent(_list(cls, sections), '    ')}    "


def _list(cls: type, sections: Sequence[str]) -> str:
    """The options of a dataclass, section by section, in the style of numpy's docstrings."""
    parts = []
    for section, found in by_section(cls, sections):
        title = section or "General"
        parts.append("\n".join([title, "-" * len(title), *map(_entry, found)]))
    return "\n\n".join(parts) + "\n"


def _entry(option: Field[Any]) -> str:
    text = text_of(option)
    sentences = [text.help, text.details]
    if text.choices:
        sentences.append(f"One of: {', '.join(text.choices)}.")
    if text.between:
        sentences.append("{:g} to {:g}.".format(*text.between))
    if text.unset:
        sentences.append(f"None: {text.unset}.")
    default = "" if option.default is None else f", default {option.default!r}"
    words = fill(" ".join(filter(None, sentences)), _WIDTH, initial_indent="    ", subsequent_indent="    ")
    return f"{option.name} : {option.type}{default}\n{words}"
