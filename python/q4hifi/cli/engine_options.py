"""The options that choose the engine of a command and set it up, and the models that it opens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..engines.names import AUTO, ENGINES, EngineOptions, LlamaOptions
from ..wording import counted, printable
from .files import INPUT
from .grouped import grouped
from .numbers import Whole
from .sections import options_of

if TYPE_CHECKING:
    from ..engines.protocol import LanguageModel

Command = TypeVar("Command", bound=Callable[..., Any])

SECTION = "Engine"

_option = options_of(SECTION)

_OPTIONS = (
    _option(
        "--engine", type=click.Choice(ENGINES), default=AUTO, show_default=True,
        help="Program that runs the model. auto takes q4hifi's own runtime where it can run the model, else"
        " llama.cpp.",
    ),
    _option(
        "--llama-library", "library", type=INPUT, metavar="FILE",
        help="llama.cpp's shared library (libllama), for example a build for a GPU. [default: that of the"
        " variable LLAMA_LIBRARY, or of the package xllamacpp]",
    ),
    _option(
        "-ngl", "--gpu-layers", type=Whole(min=0), metavar="N",
        help="Layers that llama.cpp keeps on a GPU.",
    ),
    _option(
        "-ts", "--tensor-split", metavar="A,B,...", callback=lambda *arguments: _shares(*arguments),
        help="Share of the model on each GPU, for llama.cpp.",
    ),
    _option(
        "--rpc", metavar="HOST:PORT,...", callback=lambda *arguments: _servers(*arguments),
        help="RPC servers on which llama.cpp computes.",
    ),
)  # fmt: skip


def engine_options(command: Command) -> Command:
    """Add the options to a command, which receives them as one argument ``engine``."""

    command = grouped(llama=LlamaOptions, engine=EngineOptions)(command)
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def _shares(_: click.Context, __: click.Parameter, value: str | None) -> tuple[float, ...]:
    if value is None:
        return ()
    try:
        shares = tuple(float(part) for part in value.replace("/", ",").split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers such as 3,1") from None
    if not all(share >= 0 for share in shares) or sum(shares) == 0:
        raise click.BadParameter("the shares must not be negative, and not all zero")
    return shares


def _servers(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...]:
    servers = () if value is None else tuple(part.strip() for part in value.split(","))
    for server in servers:
        host, _colon, port = server.rpartition(":")
        if not host or not port.isdigit():
            raise click.BadParameter(f"{server!r} is not a server; write HOST:PORT")
    return servers


def note_long_texts(model: LanguageModel, n_tokens: int) -> None:
    """Print a note to standard error if texts of ``n_tokens`` are longer than those of the training."""
    from ..plan.model_shape import trained_context

    trained = trained_context(model.metadata)
    if trained is not None and trained < n_tokens:
        click.echo(
            printable(
                f"note: {model.path} was trained on {counted(trained, 'token')} at a time; after these, it"
                " predicts worse"
            ),
            err=True,
        )


@contextmanager
def open_models(
    paths: Sequence[str],
    engine: EngineOptions,
    *,
    n_ctx: int | None,
    threads: int | None,
    expert_correlations: bool = False,
) -> Iterator[Sequence[LanguageModel]]:
    """Yield the open models, all with one engine. Print a note if that is llama.cpp.

    ``n_ctx`` is the longest text in tokens. The other options are those of :func:`q4hifi.open_model`.
    """
    from ..engines.opening import open_alike

    with open_alike(
        paths, engine, n_ctx=n_ctx, threads=threads, expert_correlations=expert_correlations
    ) as models:
        if library := models[0].library:
            click.echo(printable(f"engine: llama.cpp ({library.name})"), err=True)
        yield models
