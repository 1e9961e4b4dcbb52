"""Running the command, and turning every exception into a message and an exit status."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import BufferedWriter, FileIO, StringIO, TextIOWrapper
from typing import TYPE_CHECKING, NoReturn

import click

from ..errors import BadOptionError, Q4HifiError
from ..wording import printable, shortened
from . import signals
from .group import main

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

FAILED, MISUSED = 1, 2

LONGEST_WORD = 300
"""Characters of an argument that messages repeat whole. Paths in caches have such a length."""

DEBUG = "Q4HIFI_DEBUG"
"""Environment variable. If it is set, errors are shown with their tracebacks."""


def run(arguments: Sequence[str] | None) -> NoReturn:
    """Run the command and end the process."""
    atexit.register(signals.ignore)  # registered first, so it runs last
    _open_closed_streams()
    if sys.stdout is sys.__stdout__:
        sys.stdout = _output()
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=errors)  # names, metadata and texts may contain any character
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _complete()
        with main.make_context("q4hifi", [*words]) as context:
            main.invoke(context)
        status = 0
    except BaseException as error:  # includes Ctrl-C and a panic of the Rust core
        signals.leave_at_once()
        status = _report(error, words)
    if cause := _output_error():
        status = status or _report(cause, words)
        _discard_output()
    sys.exit(status)


def _complete() -> None:
    """Print the completions of a command line and exit, if the shell asks for them."""
    variable = "_Q4HIFI_COMPLETE"
    if instruction := os.environ.get(variable):
        from click.shell_completion import shell_complete

        raise SystemExit(shell_complete(main, {}, "q4hifi", variable, instruction))


def _open_closed_streams() -> None:
    """Open standard streams that are closed. Otherwise the next opened file would get such a stream's number.

    Standard input is then empty, standard error is discarded, and writing to standard output is an error.
    """
    for number, (name, flags) in enumerate(_STREAMS):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, flags)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            stream = os.fdopen(number, "w" if number else "r", closefd=False)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


class _Output(FileIO):
    """Standard output. Its errors have the file name "standard output"."""

    def write(self, data: Buffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            error.filename = "standard output"
            raise


def _output() -> TextIOWrapper:
    raw = _Output(1, "w", closefd=False)
    interactive = raw.isatty()
    return TextIOWrapper(BufferedWriter(raw), sys.stdout.encoding, line_buffering=interactive)


_STREAMS = (("stdin", os.O_RDONLY), ("stdout", os.O_RDONLY), ("stderr", os.O_WRONLY))


def _report(error: BaseException, words: Sequence[str]) -> int:
    """Print what went wrong, and return the exit status. ``words`` are the arguments of the command."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else FAILED if error.code else 0
    if isinstance(error, BrokenPipeError):
        return 128 + signal.SIGPIPE  # the program that reads the output has ended, such as 'head'
    if isinstance(error, KeyboardInterrupt):
        _print("\nInterrupted.")
        return signals.INTERRUPTED
    if os.environ.get(DEBUG):
        from traceback import format_exception

        _print("".join(format_exception(error)))
    if isinstance(error, click.ClickException):
        text = StringIO()
        error.show(text)
        _print(_without_long_words(text.getvalue().rstrip("\n"), words))
        return error.exit_code
    _print(f"Error: {printable(_without_long_words(_message(error), words))}")
    return MISUSED if isinstance(error, BadOptionError) else FAILED


def _without_long_words(message: str, words: Sequence[str]) -> str:
    """Return a message in which arguments that are longer than any path have lost their middle."""
    long = [word[at:] for word in words for at in _begins_of_values(word) if len(word) - at > LONGEST_WORD]
    for word in long:
        for form in (word, repr(word)[1:-1]):
            message = message.replace(form, shortened(word))
    return message


def _begins_of_values(word: str) -> list[int]:
    """Return where an argument, or a value in it such as that of ``--option=REGEX=TYPE``, begins."""
    return [0, *(i + 1 for i, c in enumerate(word[:LONGEST_WORD]) if c == "=")]


def _message(error: BaseException) -> str:
    for kind, message in _MESSAGES:
        if isinstance(error, kind):
            return message(error)
    what = f"{type(error).__name__}: {error}"
    return f"internal error: {what}; please report it, with the output of the command under {DEBUG}=1"


def _memory(error: MemoryError) -> str:
    detail = f" ({error})" if str(error) else ""
    return f"there is not enough memory{detail}; close other programs, or take a smaller model or context"


def _system(error: OSError) -> str:
    what = error.strerror or str(error)
    return what if error.filename is None else f"{os.fsdecode(error.filename)}: {what}"


def _decoding(error: UnicodeDecodeError) -> str:
    byte = error.object[error.start]
    return f"the input is not {error.encoding} text: byte 0x{byte:02x} at position {error.start}"


_MESSAGES: Sequence[tuple[type[BaseException], Callable[..., str]]] = (
    (Q4HifiError, str),
    (MemoryError, _memory),
    (OSError, _system),
    (UnicodeDecodeError, _decoding),
    (RecursionError, lambda _: "the input is nested too deep"),
    (ImportError, lambda error: f"{error}; install q4hifi again"),
)


def _print(text: str) -> None:
    with suppress(OSError):  # standard error may be closed
        click.echo(text, err=True)


def _output_error() -> OSError | None:
    """Return the error of writing to standard output, or None."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return error
    return None


def _discard_output() -> None:
    """Redirect standard output to nowhere, or Python would report the error again when it flushes at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
