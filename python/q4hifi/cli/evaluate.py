"""Commands that run models to see how good and how fast they are, and what matters in them.

Options and labels that llama-perplexity, llama-imatrix and llama-bench have are spelled as there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, TypeVar

import click

from ..allocation.calibration_path import calibration_file
from ..errors import BadOptionError, Q4HifiError
from ..evaluate.limits import FISHER_CHUNKS, LONGEST_CHUNK, MIN_CONTEXT
from ..imatrix.forms import FORMS, GGUF
from ..wording import printable
from .common import (
    console,
    exclude_option,
    imatrix_option,
    include_option,
    json_option,
    print_json,
    progress_bar,
    threads_option,
)
from .files import INPUT, OUTPUT, check_output
from .group import main

if TYPE_CHECKING:
    from ..evaluate.bench import Speed
    from ..evaluate.compare import Comparison
    from ..evaluate.kl_divergence import KlDivergence
    from ..evaluate.perplexity import Perplexity
    from ..files.saver import OnSave

Found = TypeVar("Found")

LINE = 8
"""Running values on a line."""

file_option = click.option("-f", "--file", type=INPUT, metavar="TEXT", help="The text, a UTF-8 file.")
words_argument = click.argument("words", nargs=-1, metavar="")
context_option = click.option(
    "-c", "--ctx-size", "n_ctx", type=click.IntRange(MIN_CONTEXT), metavar="N", default=512,
    show_default=True, help="Tokens per chunk.",
)  # fmt: skip
resume_option = click.option(
    "--resume", is_flag=True, help="Continue an interrupted run. The other options must be the same."
)
chunks_option = click.option(
    "--chunks",
    "n_chunks",
    type=click.IntRange(1),
    metavar="N",
    help="Number of chunks. [default: all of the text]",
)


def _text_file(file: str | None, words: Sequence[str] = (), *, last_model: str = "") -> str:
    """The file of -f. Raises :class:`BadOptionError` where it is missing, or more is given than a model."""
    if words:
        hint = "" if file else f"; if it is the text, write -f {words[0]}"
        raise BadOptionError(f"'{words[0]}' is one argument too many{hint}")
    if file is None:
        is_text = last_model and not last_model.lower().endswith(".gguf")
        hint = f"; if {last_model} is the text, write -f {last_model}" if is_text else ""
        raise BadOptionError(f"the text is missing; name one with -f{hint}")
    return file


@contextmanager
def _kept(file: str | None, *, can_resume: bool = True) -> Iterator[OnSave]:
    """Give what notes how many chunks are saved; if the work fails, say where they are."""
    saved = 0

    def on_save(n_chunks: int) -> None:
        nonlocal saved
        saved = n_chunks

    try:
        yield on_save
    except BaseException:
        if saved:
            hint = "; --resume goes on from there" if can_resume else ""
            click.echo(printable(f"kept {saved} chunks in {file}{hint}"), err=True)
        raise


@contextmanager
def _running(
    show: Callable[[Found], str], *, quiet: bool, on_a_line: int
) -> Iterator[Callable[[Found], None]]:
    """Print each result so far, several on a line."""
    waiting: list[str] = []

    def flush() -> None:
        if waiting:
            print("".join(waiting), flush=True)
            waiting.clear()

    def on_chunk(found: Found) -> None:
        if not quiet:
            waiting.append(show(found))
            if len(waiting) == on_a_line:
                flush()

    try:
        yield on_chunk
    finally:
        flush()  # what was found before an interruption, too


@main.command()
@click.argument("model", type=INPUT)
@words_argument
@file_option
@context_option
@chunks_option
@click.option(
    "--kl-divergence-base", "save_log_probs", metavar="FILE",
    help="Base file. Without --kl-divergence the model's log-probabilities are written to it.",
)  # fmt: skip
@click.option(
    "--kl-divergence", "compare_base", is_flag=True,
    help="Compare MODEL with the base file. Text and -c are those of the base file.",
)  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace the base file if it exists.")
@resume_option
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
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure how well MODEL predicts a text, as llama-perplexity does.

    A base file keeps the log-probabilities of one model. Other models can then be compared with it, here or
    with llama-perplexity. 'q4hifi compare' needs no base file.
    """
    if compare_base and not words:
        if save_log_probs is None:
            raise BadOptionError("no base file to compare with; name one with --kl-divergence-base")
        _print_divergence(model, save_log_probs, n_chunks, threads, as_json)
        return
    file = _text_file(file, words)
    if resume and save_log_probs is None:
        raise BadOptionError("no base file to resume; name it with --kl-divergence-base")
    if save_log_probs is not None:
        from ..files.output_file import partial_path

        target = check_output("--kl-divergence-base", save_log_probs)
        check_output("--kl-divergence-base", str(partial_path(target)), overwrite=True)
    from ..evaluate.chunks import read_text
    from ..evaluate.perplexity import perplexity as measure_perplexity
    from .evaluation_tables import final_perplexity, running_perplexity

    text = read_text(file)
    with (
        _kept(f"{save_log_probs}.partial") as on_save,
        progress_bar("tokens", 1) as progress,
        _running(running_perplexity, quiet=as_json, on_a_line=LINE) as on_chunk,
    ):
        found = measure_perplexity(
            model,
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
        print_json(found.as_dict())
    else:
        click.echo(final_perplexity(found))


def _print_divergence(
    model: str, base: str, n_chunks: int | None, threads: int | None, as_json: bool
) -> None:
    from ..evaluate.kl_divergence import kl_divergence
    from .evaluation_tables import KLD_HEADER, final_divergence, running_divergence

    def show(so_far: KlDivergence) -> str:
        row = running_divergence(so_far)
        return f"{KLD_HEADER}\n{row}" if so_far.n_chunks == 1 else row

    with progress_bar("tokens", 1) as progress, _running(show, quiet=as_json, on_a_line=1) as on_chunk:
        found = kl_divergence(
            model, base, n_chunks=n_chunks, threads=threads, progress=progress, on_chunk=on_chunk
        )
    if as_json:
        print_json(found.as_dict())
    else:
        click.echo(f"\n{final_divergence(found)}")


@main.command()
@click.argument("reference", type=INPUT, metavar="REF")
@click.argument("models", type=INPUT, metavar="MODEL...", nargs=-1, required=True)
@file_option
@context_option
@chunks_option
@click.option(
    "--plot", type=OUTPUT, metavar="FILE", help="Plot KL divergence against size, to a .png, .svg or .pdf."
)
@click.option(
    "--save",
    "output",
    metavar="FILE",
    help="Save the measurements in FILE as they are made, for --resume.",
)
@click.option("--overwrite", is_flag=True, help="Replace the files of --plot and --save if they exist.")
@resume_option
@threads_option
@json_option
def compare(
    reference: str,
    models: tuple[str, ...],
    file: str | None,
    n_ctx: int,
    n_chunks: int | None,
    plot: str | None,
    output: str | None,
    overwrite: bool,
    resume: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Compare quantized MODELs with their reference model REF: size, quality, speed.

    REF is the model that MODELs were made from. All of them read the same text. A model that fails is left
    out, and the exit status is 1.
    """
    if resume and output is None:
        raise BadOptionError("no file to resume from; name it with --save")
    if output is not None:
        check_output("--save", output, overwrite=overwrite or resume)
    file = _text_file(file, last_model=models[-1])
    from ..evaluate.chunks import read_text
    from ..evaluate.compare import compare as compare_models

    text = read_text(file)
    so_far: list[Comparison] = []
    if plot is not None:
        from .plot import check_plot, plot_comparison

        check_plot(plot)
    with ExitStack() as stack:
        stack.callback(lambda: _print_comparison(so_far[-1], as_json) if so_far else None)
        progress = stack.enter_context(progress_bar("tokens", 1))
        found = compare_models(
            reference,
            models,
            text,
            n_ctx=n_ctx,
            n_chunks=n_chunks,
            threads=threads,
            dataset=str(file),
            output=output,
            overwrite=overwrite,
            resume=resume,
            progress=progress,
            on_chunk=lambda found: so_far.__setitem__(slice(None), [found]),
            on_save=stack.enter_context(_kept(output)),
        )
        so_far[:] = [found]
    if plot is not None:
        plot_comparison(found, plot, overwrite=overwrite)
        if not as_json:
            click.echo(printable(f"wrote {plot}"))
    if found.failures:
        raise Q4HifiError("\n".join(found.failures.values()))


def _print_comparison(found: Comparison, as_json: bool) -> None:
    if as_json:
        print_json(found.as_dict())
    else:
        from .evaluation_tables import comparison_table

        screen = console()
        screen.print(comparison_table(found, screen.width))


@main.command()
@click.argument("model", type=INPUT, required=False)
@words_argument
@file_option
@click.option("-o", "--output", metavar="OUT", help="File to write. [default: imatrix.gguf]")
@context_option
@chunks_option
@click.option("--process-output", is_flag=True, help="Include the inputs of output.weight.")
@click.option("--no-ppl", is_flag=True, help="Do not compute perplexity. Slightly faster.")
@click.option(
    "--fisher-chunks", type=click.IntRange(min=0), metavar="N", default=FISHER_CHUNKS, show_default=True,
    help="Chunks on which the Fisher information is measured: how much an error in each matrix harms the"
    " model. 'quantize' chooses types by it. llama.cpp ignores it.",
)  # fmt: skip
@click.option(
    "--no-correlations", is_flag=True,
    help="Leave out how inputs are correlated. The file is smaller, but 'quantize' cannot let errors cancel.",
)  # fmt: skip
@click.option(
    "--in-file",
    "in_files",
    type=INPUT,
    multiple=True,
    metavar="FILE",
    help="Add an importance matrix that exists. Repeatable.",
)
@click.option(
    "--output-format", "form", type=click.Choice(FORMS),
    help="File format: gguf, or llama.cpp's older dat. [default: dat where OUT ends in .dat, else gguf]",
)  # fmt: skip
@click.option(
    "--include-weights", multiple=True, metavar="NAME",
    help="Take only tensors with NAME in their name from --in-file. Repeatable.",
)  # fmt: skip
@click.option(
    "--exclude-weights", multiple=True, metavar="NAME",
    help="Leave out tensors with NAME in their name. Repeatable.",
)  # fmt: skip
@click.option("--show-statistics", is_flag=True, help="Show statistics of each tensor.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@resume_option
@threads_option
@json_option
def imatrix(
    model: str | None,
    words: tuple[str, ...],
    file: str | None,
    output: str | None,
    n_ctx: int,
    n_chunks: int | None,
    process_output: bool,
    no_ppl: bool,
    fisher_chunks: int,
    no_correlations: bool,
    in_files: tuple[str, ...],
    form: str | None,
    include_weights: tuple[str, ...],
    exclude_weights: tuple[str, ...],
    show_statistics: bool,
    overwrite: bool,
    resume: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Make an importance matrix: on a text, measure how much each input of a matrix matters.

    'q4hifi quantize --imatrix OUT' and llama-quantize use it. Without MODEL, the files of --in-file are added
    up, or only shown. OUT is saved every few minutes, and when the run fails or is interrupted.
    """
    if model is not None:
        file = _text_file(file, words)
    elif not in_files:
        raise BadOptionError("nothing to do; name a MODEL and a text, or --in-file")
    elif resume:
        raise BadOptionError("--resume continues the measuring of a MODEL; name it")
    from ..evaluate.chunks import read_text
    from ..evaluate.collect_imatrix import collect_importance
    from ..imatrix.file import load_importance
    from ..imatrix.statistics import tensor_statistics
    from ..imatrix.sums import ImportanceSums, form_of
    from .evaluation_tables import final_perplexity, importance_table, running_perplexity

    form = form_of(output or "", form)
    if model is not None or len(in_files) > 1:
        output = output or f"imatrix.{form}"
    if (include_weights or exclude_weights) and not in_files:
        raise BadOptionError("--include-weights and --exclude-weights choose from --in-file; give one")
    if output is not None:
        check_output("--output", output, overwrite=overwrite or resume)
    parts = [
        ImportanceSums.of(load_importance(name, include_weights, exclude_weights), n_ctx) for name in in_files
    ]
    ppl: list[Perplexity] = []
    if model is not None:
        text = read_text(str(file))
        with (
            _kept(output, can_resume=form == GGUF) as on_save,
            progress_bar("tokens", 1) as progress,
            _running(running_perplexity, quiet=as_json, on_a_line=LINE) as show,
        ):

            def on_chunk(found: Perplexity) -> None:
                ppl[:] = [found]
                show(found)

            parts.append(
                collect_importance(
                    model,
                    text,
                    n_ctx=n_ctx,
                    n_chunks=n_chunks,
                    process_output=process_output,
                    score=not no_ppl,
                    fisher_chunks=fisher_chunks if form == GGUF else 0,
                    correlations=form == GGUF and not no_correlations,
                    threads=threads,
                    dataset=str(file),
                    output=output,
                    form=form,
                    overwrite=overwrite,
                    resume=resume,
                    progress=progress,
                    on_chunk=on_chunk,
                    on_save=on_save,
                )
            )
    sums = parts[0]
    for part in parts[1:]:
        sums += part
    if output is not None and in_files:  # that of one model alone is saved already
        sums.save(output, form=form, overwrite=overwrite or model is not None)
    tensors = tensor_statistics(sums) if show_statistics or as_json else []
    if as_json:
        print_json(
            {
                "file": output,
                "datasets": list(sums.datasets),
                "chunk_count": sums.chunk_count,
                "chunk_size": sums.chunk_size,
                "perplexity": ppl[0].as_dict() if ppl else None,
                "tensors": [tensor.as_dict() for tensor in tensors],
            }
        )
        return
    if ppl:
        click.echo(final_perplexity(ppl[0]))
    if show_statistics:
        console().print(importance_table(tensors))
    if output is not None:
        click.echo(printable(f"{len(sums.tensors)} tensors, {sums.chunk_count} chunks: wrote {output}"))


@main.command()
@click.argument("model", type=INPUT)
@words_argument
@file_option
@imatrix_option(
    "--imatrix", type=INPUT, metavar="I", help="Importance matrix that MODEL will be quantized with."
)
@include_option
@exclude_option
@click.option(
    "-o",
    "--output",
    metavar="OUT",
    help=f"File to write. [default: {calibration_file('MODEL', 'I')}]",
)
@click.option(
    "-c", "--ctx-size", "n_ctx", type=click.IntRange(2, LONGEST_CHUNK), metavar="N", default=256,
    show_default=True, help="Tokens per chunk.",
)  # fmt: skip
@click.option(
    "--chunks", "n_chunks", type=click.IntRange(1), metavar="N", default=4, show_default=True,
    help="Number of chunks. More chunks make the result more exact, and are added to a result that exists.",
)  # fmt: skip
@click.option(
    "--group", type=click.IntRange(1), metavar="N", default=1, show_default=True,
    help="Measure this many neighbouring layers together, which takes less time.",
)  # fmt: skip
@click.option(
    "--budget", type=click.FloatRange(0), metavar="MINUTES", help="Start no further chunk after this time."
)
@threads_option
@json_option
def calibrate(
    model: str,
    words: tuple[str, ...],
    file: str | None,
    imatrix: str | None,
    include_weights: tuple[str, ...],
    exclude_weights: tuple[str, ...],
    output: str | None,
    n_ctx: int,
    n_chunks: int,
    group: int,
    budget: float | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure how much an error in each matrix of MODEL harms its predictions.

    'q4hifi quantize --sensitivities OUT' uses it. OUT is saved after every matrix. After Ctrl-C the same
    command continues from there.
    """
    file = _text_file(file, words)
    output = output or calibration_file(model, imatrix, include_weights, exclude_weights)
    check_output("--output", output, overwrite=True)
    from ..allocation.calibrate import calibrate as measure_sensitivities
    from ..evaluate.chunks import read_text
    from .evaluation_tables import calibration_table

    text = read_text(file)
    with progress_bar() as progress:
        found = measure_sensitivities(
            model,
            text,
            output,
            imatrix=imatrix,
            include_weights=include_weights,
            exclude_weights=exclude_weights,
            n_ctx=n_ctx,
            n_chunks=n_chunks,
            group=group,
            seconds=None if budget is None else 60 * budget,
            threads=threads,
            progress=progress,
        )
    if as_json:
        print_json(found.as_dict())
    else:
        console().print(calibration_table(found))
        click.echo(printable(f"{len(found.sensitivities)} matrices: wrote {output}"))


@main.command()
@click.argument("models", type=INPUT, metavar="MODEL...", nargs=-1, required=True)
@click.option(
    "-p",
    "--n-prompt",
    multiple=True,
    type=click.IntRange(0),
    metavar="N",
    help="Tokens to read. Repeatable; 0: none. [default: 512]",
)
@click.option(
    "-n",
    "--n-gen",
    multiple=True,
    type=click.IntRange(0),
    metavar="N",
    help="Tokens to write. Repeatable; 0: none. [default: 128]",
)
@click.option(
    "-r",
    "--repetitions",
    type=click.IntRange(1),
    metavar="N",
    default=5,
    show_default=True,
    help="How often each test is run.",
)
@threads_option
@json_option
def bench(
    models: tuple[str, ...],
    n_prompt: tuple[int, ...],
    n_gen: tuple[int, ...],
    repetitions: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure the speed of MODELs in tokens per second: reading (pp) and writing (tg).

    The tests and their names are those of llama-bench.
    """
    from ..evaluate.bench import bench as measure_speed
    from .evaluation_tables import speed_table

    speeds: list[Speed] = []
    with progress_bar("tokens", 1) as progress:
        for model in models:
            speeds += measure_speed(
                model,
                n_prompt=n_prompt or 512,
                n_gen=n_gen or 128,
                threads=threads,
                repetitions=repetitions,
                progress=progress,
            )
    if as_json:
        print_json([speed.as_dict() for speed in speeds])
    else:
        click.echo(speed_table(speeds))
