"""The command ``generate``: a model continues a text, or chats."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterable
from dataclasses import asdict
from types import ModuleType
from typing import TYPE_CHECKING

import click

from ..engines.names import EngineOptions
from ..errors import BadOptionError, UnsupportedModelError
from ..plan.model_shape import MAX_CONTEXT
from ..wording import counted, printable
from .common import threads_option
from .engine_options import engine_options, note_long_texts, open_models
from .files import INPUT
from .generate_options import ChatOptions, Prompt, Sampling
from .group import main
from .grouped import grouped
from .numbers import Number, Whole
from .signals import INTERRUPTED

if TYPE_CHECKING:
    from ..engines.generation import Chat, Writer
    from ..engines.protocol import LanguageModel


@main.command()
@click.argument("model", type=INPUT)
@click.argument("words", nargs=-1, metavar="")
@click.option("-p", "--prompt", metavar="TEXT", help="Text to continue. With --chat: your message.")
@click.option(
    "-f", "--file", type=INPUT, metavar="FILE", help="Read the prompt from a file; - reads standard input."
)
@click.option(
    "-n", "--predict", "n", type=Whole(-1), default=-1, metavar="N",
    help="Write at most N tokens. -1: until the model ends the text. [default: -1]",
)  # fmt: skip
@click.option(
    "--temp", "temperature", type=Number(0), default=0.8, show_default=True, metavar="T",
    help="Temperature: higher is more random. 0 always takes the most likely token.",
)  # fmt: skip
@click.option(
    "--top-k", type=Whole(0, 1 << 31), default=40, show_default=True, metavar="K",
    help="Choose among the K most likely tokens. 0: among all.",
)  # fmt: skip
@click.option(
    "--top-p", type=Number(0, 1), default=0.95, show_default=True, metavar="P",
    help="Choose among the most likely tokens that together have the probability P. 1: among all.",
)  # fmt: skip
@click.option(
    "--min-p", type=Number(0, 1), default=0.05, show_default=True, metavar="P",
    help="Leave out tokens with less than P times the probability of the most likely one. 0: none.",
)  # fmt: skip
@click.option(
    "-s", "--seed", type=Whole(-1, (1 << 32) - 1), default=-1, metavar="N",
    help="Seed: the same seed gives the same text. -1: a random one. [default: -1]",
)  # fmt: skip
@click.option(
    "-c", "--ctx-size", "n_ctx", type=Whole(1, MAX_CONTEXT), metavar="N",
    help="Context size: tokens of prompt and answer together. [default: that of the model]",
)  # fmt: skip
@click.option(
    "--chat",
    is_flag=True,
    help="Chat, with the model's chat template. Without -p and -f, you type the messages.",
)
@click.option("-sys", "--system-prompt", "system", metavar="TEXT", help="With --chat: the system message.")
@click.option(
    "--chat-template", "template", metavar="TEXT",
    help="With --chat: use this Jinja template instead of the model's.",
)  # fmt: skip
@click.option(
    "--chat-template-file", "template_file", type=INPUT, metavar="FILE",
    help="With --chat: use the Jinja template in FILE.",
)  # fmt: skip
@engine_options
@threads_option
@grouped(prompt=Prompt, sampling=Sampling, chat=ChatOptions)
def generate(
    model: str,
    prompt: Prompt,
    sampling: Sampling,
    chat: ChatOptions,
    n: int,
    n_ctx: int | None,
    engine: EngineOptions,
    threads: int | None,
) -> None:
    """Let MODEL continue a text, or chat with it.

    The text is printed while the model writes it; Ctrl-C stops it. In a chat, Ctrl-C stops an answer or
    clears the line that you are typing. Ctrl-D, or Ctrl-C on an empty line, ends the chat.
    """
    chat.check()
    prompt.check(is_chat=chat.chat)
    from ..engines.generation import Chat, Writer
    from ..runtime.sampler import Sampler

    text = prompt.read()
    template, template_name = chat.read_template()
    seed = None if sampling.seed < 0 else sampling.seed
    sampler = Sampler(**{**asdict(sampling), "seed": seed})
    most = None if n < 0 else n
    with open_models([model], engine, n_ctx=n_ctx, threads=threads) as (lm,):
        note_long_texts(lm, n_ctx or 0)
        if chat.chat:
            talk = Chat(lm, sampler, system=chat.system, template=template, template_name=template_name)
            if text is None:
                _converse(talk, lm, most)
                return
            done = _show(talk.answer(text, most))
            writer = talk.writer
        else:
            writer = Writer(lm, sampler)
            done = _show(writer.write(lm.tokenizer.encode(str(text)), most), after=str(text))
        _report(writer, lm.n_ctx)
    if not done:
        sys.exit(INTERRUPTED)


# ---- a conversation ------------------------------------------------------------------------------


def _converse(chat: Chat, model: LanguageModel, n: int | None) -> None:
    """Read messages and print answers until the input ends."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # the tokenizer accepts bytes that are not UTF-8
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if interactive:
        name = model.metadata.get("general.name")
        _note(
            f"{model.path.name}{f' ({name})' if name else ''}, context of {counted(model.n_ctx, 'token')}",
            "Ctrl-C stops an answer or clears your line; Ctrl-D or Ctrl-C on an empty line ends the chat.",
        )
    editor = _line_editor() if interactive else None
    while (text := _ask("> " if interactive else "", editor)) is not None:
        if not text.strip():
            continue
        n_forgotten = chat.n_forgotten
        try:
            pieces = chat.answer(text, n)
            if chat.n_forgotten > n_forgotten:
                _note(
                    f"[the context of {counted(model.n_ctx, 'token')} is full:"
                    f" the oldest {counted(chat.n_forgotten, 'message is', 'messages are')} no longer read]"
                )
            _show(pieces)
        except (BadOptionError, UnsupportedModelError) as error:
            # a message may be too long, or the template may reject it: the user can try another
            if not interactive:
                raise
            click.echo(f"Error: {printable(error)}", err=True)
        except KeyboardInterrupt:
            click.echo()
        else:
            _report(chat.writer, model.n_ctx)


def _line_editor() -> ModuleType | None:
    """Load readline, if the system has it: ``input`` then supports arrow keys and a history."""
    try:
        import readline
    except ImportError:  # on Windows the console does this itself
        return None
    return readline


def _ask(prompt: str, editor: ModuleType | None) -> str | None:
    """Return the next line of input, or None at its end."""
    while True:
        try:
            return input(prompt)
        except EOFError:
            click.echo()
            return None
        except KeyboardInterrupt:
            click.echo()
            if editor is None or not editor.get_line_buffer():
                return None


# ---- output --------------------------------------------------------------------------------------


def _show(pieces: Iterable[str], after: str = "") -> bool:
    """Print text while it is written, and return False if Ctrl-C ended it.

    On a terminal, ``after``, the text that is continued, is printed first.
    """
    from .word_wrap import WordWrap

    wrap = WordWrap(lambda: shutil.get_terminal_size().columns) if sys.stdout.isatty() else None
    try:
        if wrap is not None and after:
            click.secho(wrap.feed(after) + wrap.flush(), dim=True, nl=False)
        for piece in pieces:
            click.echo(piece if wrap is None else wrap.feed(piece), nl=False)
    except KeyboardInterrupt:
        click.echo()
        return False
    click.echo("" if wrap is None else wrap.flush())
    return True


def _report(writer: Writer, n_ctx: int) -> None:
    """Print the numbers of tokens and the speeds, if standard error is a terminal."""
    if not sys.stderr.isatty():
        return
    effort = writer.effort
    read, written = (
        f"{counted(n, 'token')}{f', {n / seconds:.1f} t/s' if seconds else ''}"
        for n, seconds in ((effort.n_read, effort.read_seconds), (effort.n_written, effort.write_seconds))
    )
    full = f"; the context of {counted(n_ctx, 'token')} is full" if writer.full else ""
    _note(f"[read {read}; wrote {written}{full}]")


def _note(*lines: str) -> None:
    """Print our own remarks to standard error, so that standard output has the model's text alone."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    for line in lines:
        console.print(printable(line), style="dim", markup=False, soft_wrap=not console.is_terminal)
