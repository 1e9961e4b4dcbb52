"""Parts that several commands share: options, console output, progress bar, JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from typing import TYPE_CHECKING, Any

import click

from ..progress import Progress
from ..threads import usable_cores, used_threads
from ..wording import counted, human_time, printable
from .numbers import Whole

if TYPE_CHECKING:
    from rich.console import Console

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")


def usable_threads(_: click.Context, __: click.Parameter | None, threads: int | None) -> int | None:
    """Return the number of threads to use, at most one per core, and print a note if ``threads`` is larger.

    None or 0 becomes None, which is one per core.
    """
    if not threads:
        return None
    used = used_threads(threads)
    if used < threads:
        cores = counted(usable_cores(), "core")
        click.echo(f"using {counted(used, 'thread')}: this machine has {cores}", err=True)
    return used


threads_option = click.option(
    "-t",
    "--threads",
    type=Whole(0),
    metavar="N",
    callback=usable_threads,
    help="Number of threads, at most one per core. 0 means one per core. [default: 0]",
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace DST if it exists.")
tensors_option = click.option("--tensors", is_flag=True, help="List every tensor.")


@contextmanager
def progress_bar(unit: str = "M weights", scale: float = 1e6) -> Iterator[Progress]:
    """Show a progress bar with rate and remaining time on standard error, if that is a terminal.

    Yields the function to call with progress. ``scale`` is the amount of work in one ``unit``.
    """
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<28.28}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[left]}"),
    )
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None, rate="", left="")

        def on_progress(done: int, total: int, name: str) -> None:
            if done < bar.tasks[task].completed:
                bar.reset(task)  # a new stage of the work has begun
            elapsed = bar.tasks[task].elapsed or 0.0
            speed = done / elapsed / scale if elapsed else 0.0
            rate = f"{speed:>6.{'1f' if speed >= 0.1 else '1g'}} {unit}/s" if speed else ""
            left = f"{human_time(elapsed * (total - done) / done)} left" if done else ""
            bar.update(task, completed=done, total=total, description=printable(name), rate=rate, left=left)

        yield on_progress


def console() -> Console:
    """Return a console on standard output.

    Only on a terminal it breaks long lines, and fills the cells of tables with blanks at the end of a line.
    """
    from rich.console import Console

    class Output(Console):
        def on_broken_pipe(self) -> None:
            raise  # ending.py handles it; Console would end the process

        def print(self, *objects: Any, **options: Any) -> None:
            if self.is_terminal:
                super().print(*objects, **options)
                return
            with self.capture() as captured:
                super().print(*objects, **options)
            self.file.write(re.sub(r" +$", "", captured.get(), flags=re.MULTILINE))

    output = Output(highlight=False)
    return output if output.is_terminal else Output(highlight=False, soft_wrap=True, width=1000)


def print_json(value: Any) -> None:
    """Print JSON to standard output. Infinities and NaN, which JSON does not have, become null."""
    click.echo(json.dumps(_json(value), indent=2, ensure_ascii=True, allow_nan=False))


def _json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value
