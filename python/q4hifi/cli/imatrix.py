"""``q4hifi imatrix``: make, add up and show importance matrices.

Options and labels are spelled as in llama-imatrix, where it has them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ..engines.names import EngineOptions
from ..errors import BadOptionError
from ..evaluate.limits import FISHER_CHUNKS, NOISE_CHUNKS
from ..formats.tensor_names import layer_of
from ..imatrix.forms import FORMS, GGUF
from ..wording import counted, human_bytes, printable, some
from .choice import Choice
from .common import (
    console,
    json_option,
    print_json,
    progress_bar,
    threads_option,
)
from .engine_options import engine_options
from .files import INPUT, check_output
from .group import main
from .numbers import Whole
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

NOTED_BYTES = 1 << 28
"""Memory of the sums above which a note says how much it is."""

if TYPE_CHECKING:
    from ..engines.protocol import LanguageModel
    from ..evaluate.perplexity import Perplexity
    from ..imatrix.sums import ImportanceSums


@main.command()
@click.argument("model", type=INPUT, required=False)
@words_argument
@file_option
@click.option("-o", "--output", metavar="OUT", help="File to write. [default: imatrix.gguf]")
@context_option
@chunks_option
@click.option(
    "--from-chunk", "--chunk", "from_chunk", type=Whole(0), metavar="N", default=0,
    help="Leave out the first N chunks of the text.",
)  # fmt: skip
@click.option(
    "--parse-special", is_flag=True,
    help="Read text that spells a control token, such as <|im_end|>, as that token.",
)  # fmt: skip
@click.option(
    "--process-output",
    is_flag=True,
    help="Include output.weight. Without this, only --refine uses its importance.",
)
@click.option("--no-ppl", is_flag=True, help="Do not compute perplexity. Slightly faster.")
@click.option(
    "--fisher-chunks", type=Whole(min=0), metavar="N",
    help="Measure the Fisher information on N chunks: how much an error in each matrix harms the model."
    " 'quantize' uses it to choose the best types within a budget."
    f" [default: {FISHER_CHUNKS}, or {NOISE_CHUNKS} with llama.cpp and for mixtures of experts, where a"
    " chunk takes longer]",
)  # fmt: skip
@click.option(
    "--no-correlations", is_flag=True,
    help="Do not store how the inputs of a matrix are correlated. OUT is smaller, but 'quantize' cannot use"
    " error feedback (GPTQ).",
)  # fmt: skip
@click.option(
    "--expert-correlations", is_flag=True,
    help="Also store them for each expert whose inputs are its own (ffn_down of a mixture of experts). Needs"
    " row length² / 2 floats per expert in memory.",
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
    "--output-format", "form", type=Choice(FORMS),
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
@click.option(
    "--output-frequency", "save_chunks", type=Whole(1), metavar="N",
    help="Save OUT after every N chunks, too, not only every few minutes.",
)  # fmt: skip
@click.option(
    "--save-frequency", "copy_chunks", type=Whole(1), metavar="N",
    help="Keep a copy OUT.at_M of OUT after every N chunks; M is the number of its chunks.",
)  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@resume_option
@engine_options
@threads_option
@json_option
def imatrix(
    model: str | None,
    words: tuple[str, ...],
    file: str | None,
    output: str | None,
    n_ctx: int,
    n_chunks: int | None,
    from_chunk: int,
    parse_special: bool,
    process_output: bool,
    no_ppl: bool,
    fisher_chunks: int | None,
    no_correlations: bool,
    expert_correlations: bool,
    in_files: tuple[str, ...],
    form: str | None,
    include_weights: tuple[str, ...],
    exclude_weights: tuple[str, ...],
    show_statistics: bool,
    save_chunks: int | None,
    copy_chunks: int | None,
    overwrite: bool,
    resume: bool,
    engine: EngineOptions,
    threads: int | None,
    as_json: bool,
) -> None:
    """Make an importance matrix: measure on a text which columns of the weights matter most.

    'q4hifi quantize --imatrix OUT' and llama-quantize make better models with it. Without MODEL, the files of
    --in-file are added up; a single one can be shown with --show-statistics. OUT is saved every few minutes,
    and when the run fails or is interrupted.
    """
    if model is not None:
        file = text_file(file, words)
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
        with (
            saved_chunks(output, can_resume=form == GGUF) as on_save,
            progress_bar("tokens", 1) as progress,
            printed_results(running_perplexity, quiet=as_json, per_line=VALUES_PER_LINE) as show,
            open_models(
                [model], engine, n_ctx=n_ctx, threads=threads, expert_correlations=expert_correlations
            ) as (lm,),
        ):
            _note_memory(lm)

            def on_chunk(result: Perplexity) -> None:
                ppl[:] = [result]
                show(result)

            parts.append(
                collect_importance(
                    lm,
                    text,
                    n_ctx=n_ctx,
                    n_chunks=n_chunks,
                    from_chunk=from_chunk,
                    parse_special=parse_special,
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
                    save_chunks=save_chunks,
                    copy_chunks=copy_chunks,
                    progress=progress,
                    on_chunk=on_chunk,
                    on_save=on_save,
                )
            )
            _note_unmeasured(lm, parts[-1])
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
        refining = [f" and {name} (for refined types only)" for name in sums.refining if form == GGUF]
        found = (
            f"{counted(len(sums.tensors), 'tensor')}{''.join(refining)}, {counted(sums.chunk_count, 'chunk')}"
        )
        click.echo(printable(f"{found}: wrote {output}"))


def _note_memory(model: LanguageModel) -> None:
    """Print to standard error how much memory the sums will take, if it is much."""
    memory, size = model.input_sums().expected_bytes
    if memory >= NOTED_BYTES:  # sums of the current chunk, and of all before it
        click.echo(
            f"note: the sums take about {human_bytes(2 * memory)} of memory, and {human_bytes(size)} in"
            " the file; --no-correlations and no --expert-correlations take less",
            err=True,
        )


def _note_unmeasured(model: LanguageModel, sums: ImportanceSums) -> None:
    """Print to standard error what the run could not measure: Fisher information, matrices, experts."""
    seen = {**sums.tensors, **sums.refining}
    unseen = sorted(name for name in model.matrices if name not in seen and layer_of(name) is not None)
    if unseen:
        click.echo(
            printable(f"note: {counted(len(unseen), 'matrix')} received no inputs: {some(unseen)}"),
            err=True,
        )
    idle = {name: int((columns.counts == 0).sum()) for name, columns in seen.items()}
    if n_idle := sum(idle.values()):
        names = [name for name, n in idle.items() if n]
        click.echo(
            printable(
                f"note: {counted(n_idle, 'expert')} received no token: {some(names)}; a longer text helps"
            ),
            err=True,
        )
