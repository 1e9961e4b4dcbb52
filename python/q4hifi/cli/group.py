"""The ``q4hifi`` command itself: its list of commands, each loaded when it is used, and its version."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click

from ..errors import Q4HifiError
from ..files.gguf_name import is_gguf_name
from . import signals
from .files import FileCommand
from .sections import write_options

COMMANDS = {
    "bench": ("bench", "Measure the speed of MODELs in tokens per second: reading (pp) and writing (tg)."),
    "calibrate": ("calibrate", "Measure how much an error in each matrix of MODEL harms its predictions."),
    "compare": ("compare", "Compare quantized MODELs with their reference model REF: size, quality, speed."),
    "dequantize": ("quantize", "Decode a quantized model SRC to F16 (default), BF16 or F32."),
    "export": ("quantize", "Convert a Q4_HIFI model SRC so that other programs load it."),
    "generate": ("generate", "Let MODEL continue a text, or chat with it."),
    "imatrix": (
        "imatrix",
        "Make an importance matrix: measure on a text which columns of the weights matter most.",
    ),
    "inspect": ("inspect", "Show what a model FILE holds: metadata, tensors, types, sizes."),
    "perplexity": ("perplexity", "Measure how well MODEL predicts a text, as llama-perplexity does."),
    "plan": ("quantize", "Show what 'quantize' would write: the type of each tensor, and the exact size."),
    "quantize": ("quantize", "Quantize the model SRC to DST."),
    "verify": ("inspect", "Check a model FILE for damage: structure, sizes, weights that are not finite."),
}
"""Name -> the module with the command, and the first sentence of its help.

They are here, so that the list of commands is shown without loading the modules.
"""

OTHER_NAMES = {
    "chat": "generate --chat",
    "check": "verify",
    "completion": "generate",
    "convert": "quantize",
    "info": "inspect",
    "kl-divergence": "perplexity --kl-divergence",
    "kld": "perplexity --kl-divergence",
    "ppl": "perplexity",
    "run": "generate",
    "show": "inspect",
}
"""Names that users of other programs may try -> the command that does this here."""


class _Group(click.Group):
    """Knows the names of the commands, and loads a command's module when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            import_module(f".{COMMANDS[cmd_name][0]}", __package__)
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches

            similar = [OTHER_NAMES.get(args[0]), *get_close_matches(args[0], COMMANDS, n=1)]
            if command := next(filter(None, similar), None):
                raise click.UsageError(f"{error.message} Did you mean '{command}'?", ctx) from error
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


class _Command(FileCommand):
    """A command in which signals raise exceptions, and whose messages name options as on the command line."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_options(self, ctx, formatter)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words = list(args)  # click empties the list
        try:
            with self._option_names():
                rest = super().parse_args(ctx, args)
                self._refuse_empty_values(ctx)
                return rest
        except click.UsageError as error:
            message = error.format_message().rstrip(".")
            if file := next(filter(_is_file_like_an_option, words), None):
                raise click.UsageError(f"{message}; to name the file {file}, write ./{file}", ctx) from error
            if isinstance(error, click.NoSuchOption) and error.option_name[1:].isdecimal():
                hint = "; THREADS must be 0 or more" if ctx.info_name == "quantize" else ""
                raise click.UsageError(f"{message}{hint}", ctx) from error
            raise

    def _refuse_empty_values(self, ctx: click.Context) -> None:
        """Raise a usage error for an option with an empty value, as from an unset variable of the shell."""
        for param in self.params:
            value = ctx.params.get(param.name or "")
            is_empty = "" in value if isinstance(value, tuple) else value == ""
            if is_empty and isinstance(param, click.Option) and param.name not in _MAY_BE_EMPTY:
                raise click.BadParameter("it is empty", ctx, param)

    def invoke(self, ctx: click.Context) -> Any:
        with signals.Raising(), self._option_names():
            return super().invoke(ctx)

    @contextmanager
    def _option_names(self) -> Iterator[None]:
        """Replace `` `keyword=value` `` in q4hifi's errors by the option with that keyword."""
        try:
            yield
        except Q4HifiError as error:
            named = _KEYWORD.sub(self._option_name, str(error))
            raise type(error)(named) from error

    def _option_name(self, found: re.Match[str]) -> str:
        for option in self.params:
            if option.name == found["name"] and isinstance(option, click.Option):
                value = found["value"] or ""
                flag = next(name for name in option.opts if name.startswith("--"))
                return flag if value in ("", "True", "...") else f"{flag} {value.strip(_QUOTES)}"
        return found[0]


def _is_file_like_an_option(word: str) -> bool:
    """Return whether the word begins as an option does, but names a file or a model to write."""
    return word.startswith("-") and (os.path.isfile(word) or is_gguf_name(word))


_MAY_BE_EMPTY = ("prompt", "system")
_QUOTES = "'\""
_KEYWORD = re.compile(r"`(?P<name>\w+)(=(?P<value>[^`]*))?`")
_Group.command_class = _Command


def _note_verbose(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    ctx.meta["verbose"] = wanted


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    from .. import __version__

    click.echo(f"q4hifi {__version__}")
    if ctx.meta["verbose"]:
        from ..codec.rows import cpu_features

        cpu = cpu_features()
        click.echo(f"kernels: {cpu.active} (this CPU has {', '.join(cpu.available)})")
    ctx.exit()


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "-v", "--verbose", is_flag=True, is_eager=True, expose_value=False, callback=_note_verbose,
    help="With --version: also show the instruction set in use.",
)  # fmt: skip
@click.option(
    "--version", is_flag=True, expose_value=False, callback=_print_version,
    help="Show the version and exit.",
)  # fmt: skip
def main() -> None:
    """Quantize 16-bit GGUF language models to about 4 bits, and measure what that costs."""
