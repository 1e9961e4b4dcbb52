"""Checks of the files of a command, before any work begins: no output may be one of its inputs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from ..errors import BadOptionError
from ..files.reserved_files import reserved


class _FileName(click.types.StringParamType):
    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse an empty name, which a variable of the shell that is not set gives."""
        if value == "":
            self.fail("the file name is empty", param, ctx)
        return super().convert(value, param, ctx)


class InputFile(_FileName):
    """The type of an argument or option that names a file to read."""


class OutputFile(_FileName):
    """The type of an argument or option that names a file to write."""


INPUT, OUTPUT = InputFile(), OutputFile()

_CHECKED = "q4hifi.outputs"


class FileCommand(click.Command):
    """A command that checks all arguments and options of type :data:`OUTPUT` before it runs."""

    def invoke(self, ctx: click.Context) -> Any:
        """Check the outputs, run the command, and protect its inputs while it runs."""
        outputs = _named(ctx, OutputFile)
        for name, value in outputs:
            check_output(name, value)
        with reserved(lambda: _inputs(ctx), [(name, Path(value)) for name, value in outputs]):
            return super().invoke(ctx)


def check_output(name: str, path: str, *, overwrite: bool | None = None, resumable: bool = False) -> Path:
    """Check that the running command may write the file ``path``, and return the path with links resolved.

    The file must not be an input or another output of the command, and it must be possible to create it
    (:func:`~q4hifi.files.output_file.check_writable`). ``name`` is the argument or option in messages.
    ``overwrite`` allows an existing file to be replaced; None takes the command's option ``--overwrite``.
    ``resumable`` says that the command can continue an existing file.
    Raises :class:`Q4HifiError` if the file must not or cannot be written.
    """
    from ..files.output_file import DestinationExistsError, check_writable

    ctx = click.get_current_context()
    if overwrite is None:
        overwrite = bool(ctx.params.get("overwrite"))
    try:
        target = check_writable(path, overwrite, [file for _, file in _inputs(ctx)])
    except DestinationExistsError as error:
        if not resumable:
            raise
        raise BadOptionError(f"{error}, or continue an interrupted run with --resume") from error
    check_distinct(name, path)
    return target


def check_distinct(name: str, path: str) -> None:
    """Raise :class:`BadOptionError` if ``path`` leads to another output of the running command.

    Use this alone for a file that a command with these arguments would write, but this run does not.
    """
    outputs: dict[str, str] = click.get_current_context().meta.setdefault(_CHECKED, {})
    for other_path, other in outputs.items():
        if other != name and _is_same(path, other_path):
            raise BadOptionError(
                f"{path} is given for both {other} and {name}; choose another file for one of them"
            )
    outputs[path] = name


def _is_same(path: str, other: str) -> bool:
    """Return whether two paths lead to one file, through links or as hard links, or would if it existed."""
    if os.path.exists(path) and os.path.exists(other):
        return os.path.samefile(path, other)
    return os.path.realpath(path) == os.path.realpath(other)


def _inputs(ctx: click.Context) -> list[tuple[str, Path]]:
    """Return all files that the command reads, with the argument or option that names them."""
    from ..gguf_io.split import files_of

    named = ((name, "/dev/stdin" if value == "-" else value) for name, value in _named(ctx, InputFile))
    return [(name, file) for name, value in named for file in files_of(Path(value))]


def _named(ctx: click.Context, kind: type[click.types.StringParamType]) -> list[tuple[str, str]]:
    """Return the names and values of the command's arguments and options of a type, if they have a value."""
    named = []
    for param in ctx.command.params:
        value = ctx.params.get(param.name or "")
        if isinstance(param.type, kind) and value is not None:
            values = value if isinstance(value, tuple) else (value,)
            named += [
                (param.opts[-1] if param.opts[-1].startswith("-") else param.human_readable_name, str(v))
                for v in values
            ]
    return named
