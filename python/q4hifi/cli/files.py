"""Checks of the files of a command, before any work begins: no output may be one of its inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import BadOptionError


class InputFile(click.types.StringParamType):
    """The type of an argument or option that names a file to read."""

    name = "file"


class OutputFile(click.types.StringParamType):
    """The type of an argument or option that names a file to write."""

    name = "file"


INPUT, OUTPUT = InputFile(), OutputFile()

_CHECKED = "q4hifi.outputs"


class FileCommand(click.Command):
    """A command that checks all arguments and options of type :data:`OUTPUT` before it runs."""

    def invoke(self, ctx: click.Context) -> Any:
        """Check the outputs, then run the command."""
        for name, value in _named(ctx, OutputFile):
            check_output(name, value)
        return super().invoke(ctx)


def check_output(name: str, path: str, *, overwrite: bool | None = None) -> Path:
    """Check that the running command may write the file ``path``, and return the path with links resolved.

    The file must not be an input or another output of the command, and it must be possible to create it
    (:func:`~q4hifi.files.output_file.check_writable`). ``name`` is the argument or option in messages.
    ``overwrite`` allows an existing file to be replaced; None takes the command's option ``--overwrite``.
    Raises :class:`Q4HifiError` if the file must not or cannot be written.
    """
    from ..files.output_file import check_writable
    from ..gguf_io.split import files_of

    ctx = click.get_current_context()
    if overwrite is None:
        overwrite = bool(ctx.params.get("overwrite"))
    inputs = ["/dev/stdin" if value == "-" else value for _, value in _named(ctx, InputFile)]
    sources = [file for value in inputs for file in files_of(Path(value))]
    target = check_writable(path, overwrite, sources)
    outputs: dict[Path, str] = ctx.meta.setdefault(_CHECKED, {})
    other = outputs.setdefault(target, name)
    if other != name:
        raise BadOptionError(
            f"{path} is given for both {other} and {name}; choose another file for one of them"
        )
    return target


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
