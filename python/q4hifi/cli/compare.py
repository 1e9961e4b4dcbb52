"""``q4hifi compare``: size, quality and speed of quantized models beside their reference model."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

from ..errors import BadOptionError, Q4HifiError
from ..wording import printable
from .common import console, print_json, progress_bar
from .files import INPUT, OUTPUT, check_output
from .group import main
from .running_results import saved_chunks
from .texts import Measuring, measuring_options, read_text

if TYPE_CHECKING:
    from ..evaluate.comparison import Comparison


@main.command()
@click.argument("reference", type=INPUT, metavar="REF")
@click.argument("models", type=INPUT, metavar="MODEL...", nargs=-1, required=True)
@measuring_options(
    click.option(
        "--plot", type=OUTPUT, metavar="FILE",
        help="Plot KL divergence against size: a .png, .svg or .pdf file.",
    ),
    click.option(
        "--save", "output", metavar="FILE",
        help="Save the measurements in FILE during the run. --resume continues from it.",
    ),
    click.option("--overwrite", is_flag=True, help="Replace the files of --plot and --save if they exist."),
)  # fmt: skip
def compare(
    reference: str,
    models: tuple[str, ...],
    measuring: Measuring,
    plot: str | None,
    output: str | None,
    overwrite: bool,
) -> None:
    """Compare quantized MODELs with their reference model REF: size, quality, speed.

    REF is the 16-bit model that MODELs were made from. All models read the same text. Quality is the KL
    divergence from REF: how far a MODEL's predictions are from those of REF. 0 is best. A model that fails
    is left out, and the exit status is 1.
    """
    if measuring.resume and output is None:
        raise BadOptionError("no file to resume from; name it with --save")
    if output is not None:
        check_output("--save", output, overwrite=overwrite or measuring.resume, resumable=True)
    if plot is not None:
        from .plot import check_plot, plot_comparison

        check_plot(plot)
    file = measuring.text_file(last_model=models[-1])
    from ..evaluate.compare import compare as compare_models
    from ..evaluate.comparison_run import DECODE_TOKENS

    text = read_text(file)
    so_far: list[Comparison] = []
    with ExitStack() as stack:
        stack.callback(lambda: _print_comparison(so_far[-1], measuring.as_json) if so_far else None)
        progress = stack.enter_context(progress_bar("tokens", 1))
        opening = measuring.open_models(reference, *models, longest=DECODE_TOKENS)
        base, *others = stack.enter_context(opening)
        result = compare_models(
            base,
            others,
            text,
            n_ctx=measuring.n_ctx,
            n_chunks=measuring.n_chunks,
            threads=measuring.threads,
            dataset=file,
            output=output,
            overwrite=overwrite,
            resume=measuring.resume,
            progress=progress,
            on_chunk=lambda result: so_far.__setitem__(slice(None), [result]),
            on_save=stack.enter_context(saved_chunks(output)),
        )
        so_far[:] = [result]
    if plot is not None:
        plot_comparison(result, plot, overwrite=overwrite)
        if not measuring.as_json:
            click.echo(printable(f"wrote {plot}"))
    if result.failures:
        raise Q4HifiError("\n".join(result.failures.values()))


def _print_comparison(result: Comparison, as_json: bool) -> None:
    if as_json:
        print_json(result.as_dict())
    else:
        from .evaluation_tables import comparison_table

        screen = console()
        screen.print(comparison_table(result, screen.width))
