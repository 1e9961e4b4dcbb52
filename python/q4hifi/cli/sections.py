"""Headings for the options in the help of a command with many options."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

GENERAL = "Options"


class _Option(click.Option):
    """An option that the help shows under the heading ``section``."""

    def __init__(self, *args: Any, section: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


def options_of(section: str) -> Callable[..., Callable[[Command], Command]]:
    """Return a function like :func:`click.option` whose options appear under the heading ``section``."""
    return partial(click.option, cls=_Option, section=section)


def write_options(command: click.Command, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    """Write the help of a command's options. Options without a heading come first."""
    sections: dict[str, list[tuple[str, str]]] = {GENERAL: []}
    for param in command.get_params(ctx):
        if isinstance(param, click.Option) and (record := param.get_help_record(ctx)):
            sections.setdefault(getattr(param, "section", GENERAL), []).append(record)
    for section, records in sections.items():
        with formatter.section(section):
            formatter.write_dl(records)
