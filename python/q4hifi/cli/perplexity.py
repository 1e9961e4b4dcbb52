"""``q4hifi perplexity``: how well a model predicts a text, and the KL divergence from a base file.

Options and labels are spelled as in llama-perplexity, where it has them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ..errors import BadOptionError
from .common import print_json, progress_bar
from .files import INPUT, check_output
from .group import main
from .running_results import VALUES_PER_LINE, printed_results, saved_chunks
from .texts import Measuring, measuring_options, read_text, words_argument

if TYPE_CHECKING:
    from ..evaluate.kl_divergence import KlDivergence


@main.command()
@click.argument("model", type=INPUT)
@words_argument
@measuring_options(
    click.option(
        "--kl-divergence-base", "save_log_probs", metavar="FILE",
        help="Base file, to which the log-probabilities of MODEL are written. With --kl-divergence it is"
        " read.",
    ),
    click.option(
        "--kl-divergence", "compare_base", is_flag=True,
        help="Compare MODEL with the base file, and print the KL divergence. The text is in the base file.",
    ),
    click.option("--overwrite", is_flag=True, help="Replace the base file if it exists."),
)  # fmt: skip
def perplexity(
    model: str,
    measuring: Measuring,
    save_log_probs: str | None,
    compare_base: bool,
    overwrite: bool,
) -> None:
    """Measure how well MODEL predicts a text, as llama-perplexity does.

    The lower the perplexity, the better. A base file keeps the log-probabilities of a model, so that other
    models can be compared with it later, here or with llama-perplexity. 'q4hifi compare' compares models
    without a base file.
    """
    if compare_base and not measuring.words:
        if save_log_probs is None:
            raise BadOptionError("no base file to compare with; name one with --kl-divergence-base")
        _print_divergence(model, save_log_probs, measuring)
        return
    file = measuring.text_file()
    if measuring.resume and save_log_probs is None:
        raise BadOptionError("no base file to resume; name it with --kl-divergence-base")
    partial = None
    if save_log_probs is not None:
        from ..files.partial_file import partial_path

        partial = str(partial_path(check_output("--kl-divergence-base", save_log_probs)))
        check_output("--kl-divergence-base", partial, overwrite=True)
    from ..evaluate.perplexity import perplexity as measure_perplexity
    from .evaluation_tables import final_perplexity, running_perplexity

    text = read_text(file)
    with (
        saved_chunks(partial) as on_save,
        progress_bar("tokens", 1) as progress,
        printed_results(running_perplexity, quiet=measuring.as_json, per_line=VALUES_PER_LINE) as on_chunk,
        measuring.open_models(model) as (lm,),
    ):
        result = measure_perplexity(
            lm,
            text,
            n_ctx=measuring.n_ctx,
            n_chunks=measuring.n_chunks,
            threads=measuring.threads,
            save_log_probs=save_log_probs,
            overwrite=overwrite,
            resume=measuring.resume,
            dataset=file,
            progress=progress,
            on_chunk=on_chunk,
            on_save=on_save,
        )
    if measuring.as_json:
        print_json(result.as_dict())
    else:
        click.echo(final_perplexity(result))


def _print_divergence(model: str, base: str, measuring: Measuring) -> None:
    from ..evaluate.kl_divergence import kl_divergence
    from ..evaluate.log_probs_file import LogProbsFile
    from .evaluation_tables import KLD_HEADER, final_divergence, running_divergence

    def show(so_far: KlDivergence) -> str:
        row = running_divergence(so_far)
        return f"{KLD_HEADER}\n{row}" if so_far.n_chunks == 1 else row

    file = LogProbsFile.open(base)
    with (
        measuring.open_models(model, n_ctx=file.n_ctx) as (lm,),
        progress_bar("tokens", 1) as progress,
        printed_results(show, quiet=measuring.as_json, per_line=1) as on_chunk,
    ):
        result = kl_divergence(
            lm,
            file,
            n_chunks=measuring.n_chunks,
            threads=measuring.threads,
            progress=progress,
            on_chunk=on_chunk,
        )
    if measuring.as_json:
        print_json(result.as_dict())
    else:
        click.echo(f"\n{final_divergence(result)}")
