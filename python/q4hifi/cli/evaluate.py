"""The commands that run models to measure them: perplexity, compare, imatrix, calibrate, bench.

Options and labels that llama-perplexity, llama-imatrix or llama-bench also have are spelled as there.
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
from ..plan.options import IMATRIX
from ..wording import printable
from .common import (
    console,
    json_option,
    print_json,
    progress_bar,
    threads_option,
)
from .files import INPUT, OUTPUT, check_output
from .group import main
from .quantize_options import option_of
from .sections import options_of

if TYPE_CHECKING:
    from ..evaluate.bench import Speed
    from ..evaluate.compare import Comparison
    from ..evaluate.kl_divergence import KlDivergence
    from ..evaluate.perplexity import Perplexity
    from ..files.saver import OnSave

Result = TypeVar("Result")

VALUES_PER_LINE = 8
"""Results so far that are printed on one line."""

file_option = click.option(
    "-f", "--file", type=INPUT, metavar="FILE",
    help="Text to measure on: a UTF-8 file, or - for standard input.",
)  # fmt: skip
words_argument = click.argument("words", nargs=-1, metavar="")
context_option = click.option(
    "-c", "--ctx-size", "n_ctx", type=click.IntRange(MIN_CONTEXT), metavar="N", default=512,
    show_default=True, help="Tokens per chunk.",
)  # fmt: skip
resume_option = click.option(
    "--resume", is_flag=True, help="Continue an interrupted run. All other options must be the same."
)
chunks_option = click.option(
    "--chunks",
    "n_chunks",
    type=click.IntRange(1),
    metavar="N",
    help="Largest number of chunks. [default: the whole text]",
)


def _text_file(file: str | None, words: Sequence[str] = (), *, last_model: str = "") -> str:
    """Return the file of -f. Raises :class:`BadOptionError` if it is missing or there are extra arguments.

    ``last_model`` is the last argument of a command that takes several models. If it does not look like a
    model, the message suggests -f for it.
    """
    if words:
        hint = "" if file else f"; if it is the text, write -f {words[0]}"
        raise BadOptionError(f"'{words[0]}' is one argument too many{hint}")
    if file is None:
        is_text = last_model and not last_model.lower().endswith(".gguf")
        hint = f"; if {last_model} is the text, write -f {last_model}" if is_text else ""
        raise BadOptionError(f"the text is missing; name one with -f{hint}")
    return file


def _note_long_chunks(model: str, n_ctx: int) -> None:
    """Print a note to standard error if chunks are longer than the texts that the model was trained on."""
    from ..gguf_io.reader import GgufFile

    with GgufFile.open(model) as file:
        trained = file.metadata.get(f"{file.metadata.get('general.architecture')}.context_length")
    if isinstance(trained, int) and 0 < trained < n_ctx:
        click.echo(
            f"note: {printable(model)} was trained on {trained} tokens at a time, and chunks of {n_ctx} are"
            f" predicted worse; -c {trained} measures what it can do",
            err=True,
        )


@contextmanager
def _saved_chunks(file: str | None, *, can_resume: bool = True) -> Iterator[OnSave]:
    """Yield the function to call after each save. If the run fails, print how many chunks ``file`` has."""
    saved = 0

    def on_save(n_chunks: int) -> None:
        nonlocal saved
        saved = n_chunks

    try:
        yield on_save
    except BaseException:
        if saved:
            hint = "; --resume continues from there" if can_resume else ""
            click.echo(printable(f"saved {saved} chunks in {file}{hint}"), err=True)
        raise


@contextmanager
def _printed_results(
    show: Callable[[Result], str], *, quiet: bool, per_line: int
) -> Iterator[Callable[[Result], None]]:
    """Yield the function to call after each chunk with the result so far, which it prints."""
    line: list[str] = []

    def flush() -> None:
        if line:
            print("".join(line), flush=True)
            line.clear()

    def on_chunk(result: Result) -> None:
        if not quiet:
            line.append(show(result))
            if len(line) == per_line:
                flush()

    try:
        yield on_chunk
    finally:
        flush()  # also after an interruption


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

    The lower the perplexity, the better. A base file keeps the log-probabilities of a model, so that other
    models can be compared with it later, here or with llama-perplexity. 'q4hifi compare' compares models
    without a base file.
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
    _note_long_chunks(model, n_ctx)
    with (
        _saved_chunks(f"{save_log_probs}.partial") as on_save,
        progress_bar("tokens", 1) as progress,
        _printed_results(running_perplexity, quiet=as_json, per_line=VALUES_PER_LINE) as on_chunk,
    ):
        result = measure_perplexity(
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
        print_json(result.as_dict())
    else:
        click.echo(final_perplexity(result))


def _print_divergence(
    model: str, base: str, n_chunks: int | None, threads: int | None, as_json: bool
) -> None:
    from ..evaluate.kl_divergence import kl_divergence
    from .evaluation_tables import KLD_HEADER, final_divergence, running_divergence

    def show(so_far: KlDivergence) -> str:
        row = running_divergence(so_far)
        return f"{KLD_HEADER}\n{row}" if so_far.n_chunks == 1 else row

    with progress_bar("tokens", 1) as progress, _printed_results(show, quiet=as_json, per_line=1) as on_chunk:
        result = kl_divergence(
            model, base, n_chunks=n_chunks, threads=threads, progress=progress, on_chunk=on_chunk
        )
    if as_json:
        print_json(result.as_dict())
    else:
        click.echo(f"\n{final_divergence(result)}")


@main.command()
@click.argument("reference", type=INPUT, metavar="REF")
@click.argument("models", type=INPUT, metavar="MODEL...", nargs=-1, required=True)
@file_option
@context_option
@chunks_option
@click.option(
    "--plot", type=OUTPUT, metavar="FILE", help="Plot KL divergence against size: a .png, .svg or .pdf file."
)
@click.option(
    "--save",
    "output",
    metavar="FILE",
    help="Save the measurements in FILE during the run. --resume continues from it.",
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

    REF is the 16-bit model that MODELs were made from. All models read the same text. Quality is the KL
    divergence from REF: how far a MODEL's predictions are from those of REF. 0 is best. A model that fails
    is left out, and the exit status is 1.
    """
    if resume and output is None:
        raise BadOptionError("no file to resume from; name it with --save")
    if output is not None:
        check_output("--save", output, overwrite=overwrite or resume, resumable=True)
    file = _text_file(file, last_model=models[-1])
    from ..evaluate.chunks import read_text
    from ..evaluate.compare import compare as compare_models

    text = read_text(file)
    so_far: list[Comparison] = []
    if plot is not None:
        from .plot import check_plot, plot_comparison

        check_plot(plot)
    _note_long_chunks(reference, n_ctx)
    with ExitStack() as stack:
        stack.callback(lambda: _print_comparison(so_far[-1], as_json) if so_far else None)
        progress = stack.enter_context(progress_bar("tokens", 1))
        result = compare_models(
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
            on_chunk=lambda result: so_far.__setitem__(slice(None), [result]),
            on_save=stack.enter_context(_saved_chunks(output)),
        )
        so_far[:] = [result]
    if plot is not None:
        plot_comparison(result, plot, overwrite=overwrite)
        if not as_json:
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


@main.command()
@click.argument("model", type=INPUT, required=False)
@words_argument
@file_option
@click.option("-o", "--output", metavar="OUT", help="File to write. [default: imatrix.gguf]")
@context_option
@chunks_option
@click.option(
    "--process-output",
    is_flag=True,
    help="Include output.weight. Without this, only --refine uses its importance.",
)
@click.option("--no-ppl", is_flag=True, help="Do not compute perplexity. Slightly faster.")
@click.option(
    "--fisher-chunks", type=click.IntRange(min=0), metavar="N", default=FISHER_CHUNKS, show_default=True,
    help="Measure the Fisher information on N chunks: how much an error in each matrix harms the model."
    " 'quantize' uses it to choose the best types within a budget. llama.cpp ignores it.",
)  # fmt: skip
@click.option(
    "--no-correlations", is_flag=True,
    help="Do not store how the inputs of a matrix are correlated. OUT is smaller, but 'quantize' cannot use"
    " error feedback (GPTQ).",
)  # fmt: skip
@click.option(
    "--in-file",
    "in_files",
    type=INPUT,
    multiple=True,
    metavar="FILE",
    help="Add the values of an importance matrix file. Repeatable.",
)
@click.option(
    "--output-format", "form", type=click.Choice(FORMS),
    help="Format of OUT: gguf, or llama.cpp's older dat. [default: dat if OUT ends in .dat, else gguf]",
)  # fmt: skip
@click.option(
    "--include-weights", multiple=True, metavar="NAME",
    help="Take from --in-file only tensors with NAME in their name. Repeatable.",
)  # fmt: skip
@click.option(
    "--exclude-weights", multiple=True, metavar="NAME",
    help="Do not take tensors with NAME in their name from --in-file. Repeatable.",
)  # fmt: skip
@click.option("--show-statistics", is_flag=True, help="Print statistics of each tensor.")
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
    """Make an importance matrix: measure on a text which columns of the weights matter most.

    'q4hifi quantize --imatrix OUT' and llama-quantize make better models with it. Without MODEL, the files of
    --in-file are added up; a single one can be shown with --show-statistics. OUT is saved every few minutes,
    and when the run fails or is interrupted.
    """
    if model is not None:
        file = _text_file(file, words)
    elif not in_files:
        raise BadOptionError("nothing to do; name a MODEL and a text, or --in-file")
    elif resume:
        raise BadOptionError("--resume continues to measure a MODEL; name the model")
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
        raise BadOptionError("--include-weights and --exclude-weights select tensors of --in-file; give one")
    if output is not None:
        check_output("--output", output, overwrite=overwrite or resume, resumable=True)
    parts = [
        ImportanceSums.of(load_importance(name, include_weights, exclude_weights), n_ctx) for name in in_files
    ]
    ppl: list[Perplexity] = []
    if model is not None:
        text = read_text(str(file))
        _note_long_chunks(model, n_ctx)
        with (
            _saved_chunks(output, can_resume=form == GGUF) as on_save,
            progress_bar("tokens", 1) as progress,
            _printed_results(running_perplexity, quiet=as_json, per_line=VALUES_PER_LINE) as show,
        ):

            def on_chunk(result: Perplexity) -> None:
                ppl[:] = [result]
                show(result)

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
    if output is not None and in_files:  # without --in-file, collect_importance has saved it
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
@options_of(IMATRIX)(
    "--imatrix", type=INPUT, metavar="I", help="Importance matrix with which MODEL will be quantized."
)
@option_of("include_weights")
@option_of("exclude_weights")
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
    help="Number of chunks. The more, the more exact the result. Chunks that OUT already has are not measured"
    " again.",
)  # fmt: skip
@click.option(
    "--group", type=click.IntRange(1), metavar="N", default=1, show_default=True,
    help="Measure N neighbouring layers together. This is faster, but the layers share one result.",
)  # fmt: skip
@click.option(
    "--budget", type=click.FloatRange(0), metavar="MINUTES", help="Start no new chunk after this time."
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

    'q4hifi quantize --sensitivities OUT' uses the result to choose the best types within a budget. OUT is
    saved after every matrix. After Ctrl-C, the same command continues from there.
    """
    file = _text_file(file, words)
    output = output or calibration_file(model, imatrix, include_weights, exclude_weights)
    check_output("--output", output, overwrite=True)
    from ..allocation.calibrate import calibrate as measure_sensitivities
    from ..evaluate.chunks import read_text
    from .evaluation_tables import calibration_table

    text = read_text(file)
    with progress_bar() as progress:
        result = measure_sensitivities(
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
        print_json(result.as_dict())
    else:
        console().print(calibration_table(result))
        click.echo(printable(f"{len(result.sensitivities)} matrices: wrote {output}"))


@main.command()
@click.argument("models", type=INPUT, metavar="MODEL...", nargs=-1, required=True)
@click.option(
    "-p",
    "--n-prompt",
    multiple=True,
    type=click.IntRange(0),
    metavar="N",
    help="Test reading N tokens at once; 0 leaves this test out. Repeatable. [default: 512]",
)
@click.option(
    "-n",
    "--n-gen",
    multiple=True,
    type=click.IntRange(0),
    metavar="N",
    help="Test writing N tokens one by one; 0 leaves this test out. Repeatable. [default: 128]",
)
@click.option(
    "-r",
    "--repetitions",
    type=click.IntRange(1),
    metavar="N",
    default=5,
    show_default=True,
    help="Runs of each test. The result is their mean.",
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

    The tests and their names are those of llama-bench: pp512 reads a prompt of 512 tokens, tg128 writes 128
    tokens.
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
