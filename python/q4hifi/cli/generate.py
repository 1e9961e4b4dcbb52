"""The command that lets a model write: generate, once or in a chat."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from ..errors import BadOptionError
from .common import threads_option
from .group import main
from .signals import INTERRUPTED

if TYPE_CHECKING:
    from ..generation import Chat, Effort, Writer


@main.command()
@click.argument("model")
@click.option("-p", "--prompt", metavar="TEXT", help="What to write on from, or with --chat to answer.")
@click.option("-f", "--file", metavar="FILE", help="The same from a file.")
@click.option("-n", "--predict", "n", type=click.IntRange(-1), default=-1, help="Tokens to write at most.")
@click.option("--temp", type=float, default=0.8, show_default=True, help="0 takes the best token always.")
@click.option("--top-k", type=int, default=40, show_default=True, help="Of so many tokens; 0 of all.")
@click.option("--top-p", type=float, default=0.95, show_default=True, help="Of this much probability.")
@click.option(
    "--min-p", type=float, default=0.05, show_default=True, help="Not below this share of the best."
)
@click.option(
    "-s", "--seed", type=int, default=-1, help="Of the random choices. [default: another each time]"
)
@click.option("-c", "--ctx-size", "n_ctx", type=click.IntRange(1), help="Context. [default: the model's]")
@click.option("--chat", is_flag=True, help="Use the model's chat template; without a prompt, converse.")
@click.option("-sys", "--system-prompt", "system", metavar="TEXT", help="With --chat: the system's message.")
@threads_option
def generate(
    model: str,
    prompt: str | None,
    file: str | None,
    n: int,
    temp: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int,
    n_ctx: int | None,
    chat: bool,
    system: str | None,
    threads: int | None,
) -> None:
    """Let MODEL write, from a prompt or in a chat.

    The text appears as it is written; Ctrl-C ends it. In a chat, Ctrl-C ends an answer, and Ctrl-D or
    an empty line's Ctrl-C the chat.
    """
    if prompt is not None and file is not None:
        raise BadOptionError("-p and -f both give a prompt; choose one")
    if system is not None and not chat:
        raise BadOptionError("a system's message needs --chat")
    if prompt is None and file is None and not chat:
        raise BadOptionError("nothing to write on from; give a prompt with -p, or --chat for a conversation")
    from ..chunks import read_text
    from ..generation import Chat, Writer
    from ..model import Model, Sampler

    text = prompt if file is None else read_text(file)
    options = {"temperature": temp, "top_p": top_p, "min_p": min_p}
    sampler = Sampler(**options, top_k=max(0, top_k), seed=None if seed < 0 else seed)
    lm = Model(model, n_ctx=n_ctx, threads=threads)
    most = None if n < 0 else n
    if chat:
        talk = Chat(lm, sampler, system=system)
        if text is None:
            _converse(talk, most)
            return
        done = _show(talk.answer(text, most))
        writer = talk.writer
    else:
        writer = Writer(lm, sampler)
        if sys.stdout.isatty():
            from rich.console import Console

            Console(highlight=False).print(text, style="dim", end="", markup=False)
        done = _show(writer.write(lm.tokenizer.encode(str(text)), most))
    _tell(writer, lm.n_ctx)
    if not done:
        sys.exit(INTERRUPTED)


def _converse(chat: Chat, n: int | None) -> None:
    """Ask and answer until the input ends."""
    while True:
        try:
            text = input("> " if sys.stdin.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            click.echo()
            return
        if text.strip():
            _show(chat.answer(text, n))
            _tell(chat.writer, None)


def _show(pieces: Iterable[str]) -> bool:
    """Print text as it comes; whether it came to its end."""
    try:
        for piece in pieces:
            click.echo(piece, nl=False)
    except KeyboardInterrupt:
        click.echo()
        return False
    click.echo()
    return True


def _tell(writer: Writer, n_ctx: int | None) -> None:
    """Say on a terminal what the text took."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        return
    effort: Effort = writer.effort
    read, written = (
        f"{n} tokens{f', {n / seconds:.1f} t/s' if seconds else ''}"
        for n, seconds in ((effort.n_read, effort.read_seconds), (effort.n_written, effort.write_seconds))
    )
    full = f"; the context of {n_ctx} tokens is full" if writer.full and n_ctx else ""
    console.print(f"[read {read}; wrote {written}{full}]", style="dim", markup=False)
