"""The ``q4hifi`` command itself: its version, and how it ends when something goes wrong."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from .. import __version__
from ..errors import BadOptionError, Q4HifiError
from ..report import printable
from ..rows import cpu_features
from .files import FileCommand

INTERRUPTED = 130
"""Exit status after Ctrl-C, as of shells."""


class _Group(click.Group):
    """Turns q4hifi's errors into messages and exit statuses."""

    command_class = FileCommand

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with _messages():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        with _messages():
            return super().invoke(ctx)


@contextmanager
def _messages() -> Iterator[None]:
    try:
        yield
    except Q4HifiError as error:
        kind = click.UsageError if isinstance(error, BadOptionError) else click.ClickException
        raise kind(printable(error)) from error
    except KeyboardInterrupt:
        click.echo("\nInterrupted.", err=True)
        sys.exit(INTERRUPTED)


def _note_verbose(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    ctx.meta["verbose"] = wanted


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    click.echo(f"q4hifi {__version__}")
    if ctx.meta["verbose"]:
        cpu = cpu_features()
        click.echo(f"kernels: {cpu.active} (this CPU has {', '.join(cpu.available)})")
    ctx.exit()


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "-v", "--verbose", is_flag=True, is_eager=True, expose_value=False, callback=_note_verbose,
    help="With --version: the instruction sets that the kernels use, too.",
)  # fmt: skip
@click.option(
    "--version", is_flag=True, expose_value=False, callback=_print_version,
    help="Show the version and exit.",
)  # fmt: skip
def main() -> None:
    """Turn 16-bit GGUF language models into ~4-bit ones, and see what it cost."""
    signal.signal(signal.SIGTERM, _terminate)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names and metadata may be in any script


def _terminate(*_: object) -> None:
    """End as after Ctrl-C, so that a half-written file is removed."""
    raise KeyboardInterrupt
