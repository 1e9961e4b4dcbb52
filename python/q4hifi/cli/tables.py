"""How tables and messages of all commands look."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..wording import printable


def paragraphs(*groups: Iterable[RenderableType]) -> Group:
    """Return the groups that are not empty, one below the other, with an empty line between two."""
    parts: list[RenderableType] = []
    for group in groups:
        lines = list(group)
        parts += [Text(), *lines] if parts and lines else lines
    return Group(*parts)


def unbroken(text: str) -> Text:
    """Return a line that only the terminal itself breaks, so that a path in it can be copied."""
    return Text(text, no_wrap=True, overflow="ignore")


def warning(text: str) -> Text:
    """Return a line in the colour of warnings."""
    return Text(text, style="yellow")


def some(names: Iterable[str], limit: int = 3) -> str:
    """Return the first names, and how many more there are."""
    names = [printable(name) for name in names]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def new_table(first: str, *others: str, title: str | None = None) -> Table:
    """Return an empty table, the first column to the left and the others to the right.

    Where the terminal is too narrow, the first column is shortened.
    """
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column(first, overflow="ellipsis")
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table
