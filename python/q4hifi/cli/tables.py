"""The common look of all tables and messages."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text


def paragraphs(*groups: Iterable[RenderableType]) -> Group:
    """Return the groups that are not empty, below each other, with an empty line between them."""
    parts: list[RenderableType] = []
    for group in groups:
        lines = list(group)
        parts += [Text(), *lines] if parts and lines else lines
    return Group(*parts)


def unbroken(text: str) -> Text:
    """Return a line without line breaks of ours, so that a path in it can be copied from the terminal."""
    return Text(text, no_wrap=True, overflow="ignore")


def warning(text: str) -> Text:
    """Return a line in the colour for warnings."""
    return Text(text, style="yellow")


def new_table(first: str, *others: str, title: str | None = None) -> Table:
    """Return an empty table. The first column is aligned left, the others right.

    If the terminal is too narrow, the first column is shortened.
    """
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column(first, overflow="ellipsis")
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table
