"""``q4hifi calibrate``: measure sensitivities, the harm that an error in each matrix does."""

from __future__ import annotations

import click

from ..allocation.calibration_options import DEFAULTS
from ..allocation.calibration_path import calibration_file
from ..evaluate.limits import LONGEST_CHUNK
from ..plan.options import IMATRIX
from ..wording import counted, printable
from .common import console, json_option, print_json, progress_bar, threads_option
from .engine_options import engine_options, open_models
from .files import INPUT, check_output
from .group import main
from .grouped import grouped
from .numbers import Number, Whole
from .quantize_options import option_of
from .sections import options_of
from .texts import Measuring, file_option, read_text, words_argument


@main.command()
@click.argument("model", type=INPUT)
@words_argument
@file_option
@options_of(IMATRIX)(
    "--imatrix", type=INPUT, metavar="FILE", help="Importance matrix with which MODEL will be quantized."
)
@option_of("include_weights")
@option_of("exclude_weights")
@click.option(
    "-o",
    "--output",
    metavar="OUT",
    help="File to write. [default: the name of the importance matrix, or else of MODEL, with"
    " .sensitivity.json added]",
)
@click.option(
    "-c", "--ctx-size", "n_ctx", type=Whole(2, LONGEST_CHUNK), metavar="N",
    default=DEFAULTS.n_ctx, show_default=True, help="Tokens per chunk.",
)  # fmt: skip
@click.option(
    "--chunks", "n_chunks", type=Whole(1), metavar="N", default=DEFAULTS.n_chunks,
    show_default=True,
    help="Number of chunks. The more, the more exact the result. Chunks that OUT already has are not measured"
    " again.",
)  # fmt: skip
@click.option(
    "--group", type=Whole(1), metavar="N", default=DEFAULTS.group, show_default=True,
    help="Measure N neighbouring layers together. This is faster, but the layers share one result.",
)  # fmt: skip
@click.option("--time-limit", type=Number(0), metavar="MINUTES", help="Start no new chunk after this time.")
@engine_options
@threads_option
@json_option
@grouped(measuring=Measuring)
def calibrate(
    model: str,
    measuring: Measuring,
    imatrix: str | None,
    include_weights: tuple[str, ...],
    exclude_weights: tuple[str, ...],
    output: str | None,
    group: int,
    time_limit: float | None,
) -> None:
    """Measure how much an error in each matrix of MODEL harms its predictions.

    'q4hifi quantize --sensitivities OUT' uses the result to choose the best types within a budget. OUT is
    saved after every matrix. After Ctrl-C, the same command continues from there.
    """
    file = measuring.text_file()
    output = output or calibration_file(model, imatrix, include_weights, exclude_weights)
    check_output("--output", output, overwrite=True)
    from ..allocation.calibrate import calibrate as measure_sensitivities
    from .evaluation_tables import calibration_table

    text = read_text(file)
    n_ctx, threads = measuring.n_ctx, measuring.threads
    opening = open_models([model], measuring.engine, n_ctx=n_ctx, threads=threads)
    with opening as (lm,), progress_bar() as progress:
        result = measure_sensitivities(
            lm,
            text,
            output,
            imatrix=imatrix,
            include_weights=include_weights,
            exclude_weights=exclude_weights,
            n_ctx=n_ctx,
            n_chunks=measuring.n_chunks or DEFAULTS.n_chunks,
            group=group,
            seconds=None if time_limit is None else 60 * time_limit,
            threads=threads,
            progress=progress,
        )
    if measuring.as_json:
        print_json(result.as_dict())
    else:
        console().print(calibration_table(result))
        click.echo(printable(f"{counted(len(result.sensitivities), 'matrix')}: wrote {output}"))
