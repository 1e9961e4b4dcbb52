"""What a run over many chunks prints on its way: the results so far, and what was saved if it fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import click

from ..wording import counted, printable

if TYPE_CHECKING:
    from ..files.saver import OnSave

Result = TypeVar("Result")

VALUES_PER_LINE = 8
"""Results so far that are printed on one line."""


@contextmanager
def saved_chunks(file: str | None, *, can_resume: bool = True) -> Iterator[OnSave]:
    """Yield the function to call after each save. If the run fails, print how many chunks ``file`` has."""
    saved = 0

    def on_save(n_chunks: int) -> None:
        nonlocal saved
        saved = n_chunks

    try:
        yield on_save
    except BaseException:
        if saved:
            hint = "; --resume continues from there" if can_resume else ""
            click.echo(printable(f"saved {counted(saved, 'chunk')} in {file}{hint}"), err=True)
        raise


@contextmanager
def printed_results(
    show: Callable[[Result], str], *, quiet: bool, per_line: int
) -> Iterator[Callable[[Result], None]]:
    """Yield the function to call after each chunk with the result so far, which it prints."""
    line: list[str] = []

    def flush() -> None:
        if line:
            print("".join(line), flush=True)
            line.clear()

    def on_chunk(result: Result) -> None:
        if not quiet:
            line.append(show(result))
            if len(line) == per_line:
                flush()

    try:
        yield on_chunk
    finally:
        flush()  # also after an interruption
