"""What the commands that measure on a text share: their options, the text's file, and the open model."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..engines.names import EngineOptions
from ..errors import BadOptionError
from ..evaluate.limits import CHUNK, MIN_CONTEXT
from ..files.gguf_name import is_gguf_name
from ..plan.model_shape import MAX_CONTEXT
from ..wording import counted, printable
from . import engine_options
from .common import json_option, threads_option
from .files import INPUT
from .grouped import grouped
from .numbers import Whole

if TYPE_CHECKING:
    from ..engines.protocol import LanguageModel

Command = TypeVar("Command", bound=Callable[..., Any])
Decorator = Callable[[Any], Any]

file_option = click.option(
    "-f", "--file", type=INPUT, metavar="FILE",
    help="Text to measure on: a UTF-8 file, or - for standard input.",
)  # fmt: skip
words_argument = click.argument("words", nargs=-1, metavar="")
context_option = click.option(
    "-c", "--ctx-size", "n_ctx", type=Whole(MIN_CONTEXT, MAX_CONTEXT), metavar="N", default=CHUNK,
    show_default=True, help="Tokens per chunk.",
)  # fmt: skip
resume_option = click.option(
    "--resume", is_flag=True, help="Continue an interrupted run. All other options must be the same."
)
chunks_option = click.option(
    "--chunks",
    "n_chunks",
    type=Whole(1),
    metavar="N",
    help="Largest number of chunks. [default: the whole text]",
)


SAMPLE = 1 << 16
"""Characters at the start of a text that are looked at for bytes that are not UTF-8."""

MOST_WRONG = 0.001
"""The share of such bytes that a text may have without a note."""


@dataclass(frozen=True, slots=True)
class Measuring:
    """The options of a command that measures on a text.

    ``words`` are arguments too many: a user may have written the text there.
    """

    file: str | None
    n_ctx: int
    n_chunks: int | None
    engine: EngineOptions
    threads: int | None
    as_json: bool
    words: tuple[str, ...] = ()
    resume: bool = False

    def text_file(self, *, last_model: str = "") -> str:
        """Return the file of -f. Raises :class:`BadOptionError` without it, or with too many arguments.

        ``last_model`` is the last argument of a command that takes several models. If it does not look like
        a model, the message suggests -f for it.
        """
        if self.words:
            hint = "" if self.file else f"; if it is the text, write -f {self.words[0]}"
            raise BadOptionError(f"'{self.words[0]}' is one argument too many{hint}")
        if self.file is None:
            is_text = last_model and not is_gguf_name(last_model)
            hint = f"; if {last_model} is the text, write -f {last_model}" if is_text else ""
            raise BadOptionError(f"the text is missing; name one with -f{hint}")
        return self.file

    @contextmanager
    def open_models(
        self,
        *paths: str,
        n_ctx: int | None = None,
        longest: int = 0,
        expert_correlations: bool = False,
    ) -> Iterator[Sequence[LanguageModel]]:
        """Yield open models, for chunks of ``n_ctx`` tokens and other texts of at most ``longest`` tokens.

        ``n_ctx`` None takes that of the options. If the chunks are longer than the texts that the first model
        was trained on, print a note to standard error.
        """
        from ..plan.model_shape import trained_context

        n_ctx = n_ctx or self.n_ctx
        with engine_options.open_models(
            paths,
            self.engine,
            n_ctx=max(n_ctx, longest),
            threads=self.threads,
            expert_correlations=expert_correlations,
        ) as models:
            trained = trained_context(models[0].metadata)
            if trained is not None and trained < n_ctx:
                click.echo(
                    f"note: {printable(paths[0])} was trained on {counted(trained, 'token')} at a time, and"
                    f" chunks of {n_ctx} are predicted worse; -c {trained} measures what it can do",
                    err=True,
                )
            if models[0].reads_whole_texts and models[0].has_logits:
                click.echo(
                    printable(
                        f"note: {models[0].path} reads a text in both directions: it sees the tokens that it"
                        " predicts, so its perplexity says little"
                    ),
                    err=True,
                )
            yield models


def read_text(file: str) -> str:
    """Read a text (:func:`q4hifi.evaluate.chunks.read_text`). Print a note if it seems not to be UTF-8."""
    from ..evaluate import chunks

    text = chunks.read_text(file)
    sample = text[:SAMPLE]
    wrong = sum("\udc80" <= character <= "\udcff" for character in sample)  # how Python reads such bytes
    if wrong > MOST_WRONG * len(sample):
        click.echo(
            printable(
                f"note: {file}: {counted(wrong, 'byte')} among the first {counted(len(sample), 'character')}"
                f" {'is' if wrong == 1 else 'are'} not UTF-8; if the text is in Latin-1, convert it:"
                " iconv -f LATIN1 -t UTF-8" + ("" if file == "-" else f" {shlex.quote(file)} > NEW.txt")
            ),
            err=True,
        )
    return text


def measuring_options(*own: Decorator) -> Decorator:
    """Return a decorator that adds the options of :class:`Measuring`, and a command's ``own`` among them.

    The command receives the former as one argument, ``measuring``.
    """
    options = (
        *(file_option, context_option, chunks_option, *own),
        *(resume_option, engine_options.engine_options, threads_option, json_option),
    )

    def decorate(command: Command) -> Command:
        command = grouped(measuring=Measuring)(command)
        for option in reversed(options):
            command = option(command)
        return command

    return decorate
