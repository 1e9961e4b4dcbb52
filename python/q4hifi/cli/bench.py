"""``q4hifi bench``: the speed of models. Tests and options are those of llama-bench."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ..engines.names import EngineOptions
from ..evaluate.limits import READ_TOKENS, WRITTEN_TOKENS
from ..plan.model_shape import MAX_CONTEXT
from .common import (
    json_option,
    print_json,
    progress_bar,
    threads_option,
)
from .engine_options import engine_options, open_models
from .files import INPUT
from .group import main
from .numbers import Whole

if TYPE_CHECKING:
    from ..evaluate.bench import Speed


@main.command()
@click.argument("models", type=INPUT, metavar="MODEL...", nargs=-1, required=True)
@click.option(
    "-p",
    "--n-prompt",
    multiple=True,
    type=Whole(0, MAX_CONTEXT),
    metavar="N",
    help=f"Test reading N tokens at once; 0 leaves this test out. Repeatable. [default: {READ_TOKENS}]",
)
@click.option(
    "-n",
    "--n-gen",
    multiple=True,
    type=Whole(0, MAX_CONTEXT),
    metavar="N",
    help=f"Test writing N tokens one by one; 0 leaves this test out. Repeatable. [default: {WRITTEN_TOKENS}]",
)
@click.option(
    "-r",
    "--repetitions",
    type=Whole(1),
    metavar="N",
    default=5,
    show_default=True,
    help="Runs of each test. The result is their mean.",
)
@engine_options
@threads_option
@json_option
def bench(
    models: tuple[str, ...],
    n_prompt: tuple[int, ...],
    n_gen: tuple[int, ...],
    repetitions: int,
    engine: EngineOptions,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure the speed of MODELs in tokens per second: reading (pp) and writing (tg).

    The tests and their names are those of llama-bench: pp512 reads a prompt of 512 tokens, tg128 writes 128
    tokens.
    """
    from ..evaluate.bench import bench as measure_speed
    from .evaluation_tables import speed_table

    speeds: list[Speed] = []
    n_prompt, n_gen = n_prompt or (READ_TOKENS,), n_gen or (WRITTEN_TOKENS,)
    n_most = max(1, *n_prompt, *n_gen)
    with progress_bar("tokens", 1) as progress:
        for path in models:
            with open_models([path], engine, n_ctx=n_most, threads=threads) as (model,):
                speeds += measure_speed(
                    model,
                    n_prompt=n_prompt,
                    n_gen=n_gen,
                    threads=threads,
                    repetitions=repetitions,
                    progress=progress,
                )
    if as_json:
        print_json([speed.as_dict() for speed in speeds])
    else:
        click.echo(speed_table(speeds))
