"""Files that a command is given: no output may be one of its inputs, checked before any work begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import BadOptionError


class InputFile(click.types.StringParamType):
    """The name of a file that the command reads."""

    name = "file"


class OutputFile(click.types.StringParamType):
    """The name of a file that the command writes."""

    name = "file"


INPUT, OUTPUT = InputFile(), OutputFile()

_CHECKED = "q4hifi.outputs"


class FileCommand(click.Command):
    """A command whose arguments and options of type :data:`OUTPUT` are checked before it runs."""

    def invoke(self, ctx: click.Context) -> Any:
        """Check the outputs, then run."""
        for name, value in _named(ctx, OutputFile):
            check_output(name, value)
        return super().invoke(ctx)


def check_output(name: str, path: str, *, overwrite: bool | None = None) -> Path:
    """Return the file that ``path`` stands for; raise :class:`Q4HifiError` where it cannot be written.

    It must be none of the running command's inputs and no other output of it, and a file can be made there
    (:func:`~q4hifi.files.output_file.check_writable`). ``name`` is what the command calls it; ``overwrite``
    None is the option of that name.
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
            f"{path} is given for {other} and for {name}; choose another destination for one"
        )
    return target


def _named(ctx: click.Context, kind: type[click.types.StringParamType]) -> list[tuple[str, str]]:
    """The command's arguments and options of a type that have a value: their names and values."""
    found = []
    for param in ctx.command.params:
        value = ctx.params.get(param.name or "")
        if isinstance(param.type, kind) and value is not None:
            values = value if isinstance(value, tuple) else (value,)
            found += [
                (param.opts[-1] if param.opts[-1].startswith("-") else param.human_readable_name, str(v))
                for v in values
            ]
    return found
