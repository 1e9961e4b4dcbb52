"""``q4hifi perplexity``: how well a model predicts a text, and the KL divergence from a base file.

Options and labels are spelled as in llama-perplexity, where it has them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ..engines.names import EngineOptions
from ..errors import BadOptionError
from .common import (
    json_option,
    print_json,
    progress_bar,
    threads_option,
)
from .engine_options import engine_options
from .files import INPUT, check_output
from .group import main
from .running_results import VALUES_PER_LINE, printed_results, saved_chunks
from .texts import (
    chunks_option,
    context_option,
    file_option,
    open_models,
    resume_option,
    text_file,
    words_argument,
)

if TYPE_CHECKING:
    from ..evaluate.kl_divergence import KlDivergence


@main.command()
@click.argument("model", type=INPUT)
@words_argument
@file_option
@context_option
@chunks_option
@click.option(
    "--kl-divergence-base", "save_log_probs", metavar="FILE",
    help="Base file, to which the log-probabilities of MODEL are written. With --kl-divergence it is read.",
)  # fmt: skip
@click.option(
    "--kl-divergence", "compare_base", is_flag=True,
    help="Compare MODEL with the base file, and print the KL divergence. The text is in the base file.",
)  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace the base file if it exists.")
@resume_option
@engine_options
@threads_option
@json_option
def perplexity(
    model: str,
    words: tuple[str, ...],
    file: str | None,
    n_ctx: int,
    n_chunks: int | None,
    save_log_probs: str | None,
    compare_base: bool,
    overwrite: bool,
    resume: bool,
    engine: EngineOptions,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure how well MODEL predicts a text, as llama-perplexity does.

    The lower the perplexity, the better. A base file keeps the log-probabilities of a model, so that other
    models can be compared with it later, here or with llama-perplexity. 'q4hifi compare' compares models
    without a base file.
    """
    if compare_base and not words:
        if save_log_probs is None:
            raise BadOptionError("no base file to compare with; name one with --kl-divergence-base")
        _print_divergence(model, save_log_probs, n_chunks, engine, threads, as_json)
        return
    file = text_file(file, words)
    if resume and save_log_probs is None:
        raise BadOptionError("no base file to resume; name it with --kl-divergence-base")
    partial = None
    if save_log_probs is not None:
        from ..files.partial_file import partial_path

        partial = str(partial_path(check_output("--kl-divergence-base", save_log_probs)))
        check_output("--kl-divergence-base", partial, overwrite=True)
    from ..evaluate.chunks import read_text
    from ..evaluate.perplexity import perplexity as measure_perplexity
    from .evaluation_tables import final_perplexity, running_perplexity

    text = read_text(file)
    with (
        saved_chunks(partial) as on_save,
        progress_bar("tokens", 1) as progress,
        printed_results(running_perplexity, quiet=as_json, per_line=VALUES_PER_LINE) as on_chunk,
        open_models([model], engine, n_ctx=n_ctx, threads=threads) as (lm,),
    ):
        result = measure_perplexity(
            lm,
            text,
            n_ctx=n_ctx,
            n_chunks=n_chunks,
            threads=threads,
            save_log_probs=save_log_probs,
            overwrite=overwrite,
            resume=resume,
            dataset=str(file),
            progress=progress,
            on_chunk=on_chunk,
            on_save=on_save,
        )
    if as_json:
        print_json(result.as_dict())
    else:
        click.echo(final_perplexity(result))


def _print_divergence(
    model: str, base: str, n_chunks: int | None, engine: EngineOptions, threads: int | None, as_json: bool
) -> None:
    from ..evaluate.kl_divergence import kl_divergence
    from ..evaluate.log_probs_file import LogProbsFile
    from .evaluation_tables import KLD_HEADER, final_divergence, running_divergence

    def show(so_far: KlDivergence) -> str:
        row = running_divergence(so_far)
        return f"{KLD_HEADER}\n{row}" if so_far.n_chunks == 1 else row

    file = LogProbsFile.open(base)
    with (
        open_models([model], engine, n_ctx=file.n_ctx, threads=threads) as (lm,),
        progress_bar("tokens", 1) as progress,
        printed_results(show, quiet=as_json, per_line=1) as on_chunk,
    ):
        result = kl_divergence(
            lm, file, n_chunks=n_chunks, threads=threads, progress=progress, on_chunk=on_chunk
        )
    if as_json:
        print_json(result.as_dict())
    else:
        click.echo(f"\n{final_divergence(result)}")
