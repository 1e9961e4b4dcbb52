"""``q4hifi imatrix``: make, add up and show importance matrices.

Options and labels are spelled as in llama-imatrix, where it has them.
"""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import TYPE_CHECKING

import click

from ..errors import BadOptionError
from ..formats.tensor_names import role_of
from ..imatrix.forms import GGUF
from ..wording import counted, human_bytes, printable, some
from .common import console, print_json, progress_bar
from .files import INPUT, check_output
from .group import main
from .grouped import grouped
from .imatrix_options import IMATRIX_OPTIONS, AddedFiles, ImatrixOutput, MeasuredSums
from .running_results import VALUES_PER_LINE, printed_results, saved_chunks
from .texts import Measuring, measuring_options, read_text, words_argument

NOTED_BYTES = 1 << 28
"""Memory of the sums above which a note says how much it is."""

if TYPE_CHECKING:
    from ..engines.protocol import LanguageModel
    from ..evaluate.perplexity import Perplexity
    from ..imatrix.sums import ImportanceSums


@main.command()
@click.argument("model", type=INPUT, required=False)
@words_argument
@measuring_options(*IMATRIX_OPTIONS)
@grouped(measured=MeasuredSums, added=AddedFiles, target=ImatrixOutput)
def imatrix(
    model: str | None,
    measuring: Measuring,
    measured: MeasuredSums,
    added: AddedFiles,
    target: ImatrixOutput,
    show_statistics: bool,
) -> None:
    """Make an importance matrix: measure on a text which columns of the weights matter most.

    'q4hifi quantize --imatrix OUT' and llama-quantize make better models with it. Without MODEL, the files of
    --in-file are added up; a single one can be shown with --show-statistics. OUT is saved every few minutes,
    and when the run fails or is interrupted.
    """
    if model is not None:
        measuring.text_file()
    elif not added.in_files:
        raise BadOptionError("nothing to do; name a MODEL and a text, or --in-file")
    elif measuring.resume:
        raise BadOptionError("--resume continues to measure a MODEL; name the model")
    target = target.completed(is_needed=model is not None or len(added.in_files) > 1)
    if target.output is not None:
        overwrite = target.overwrite or measuring.resume
        check_output("--output", target.output, overwrite=overwrite, resumable=True)
    parts, ppl = _sums_of_files(added, measuring.n_ctx), None
    if model is not None:
        sums, ppl = _measured_sums(model, measuring, measured, target)
        parts.append(sums)
    sums = reduce(add, parts)
    if target.output is not None and added.in_files:  # without --in-file, collect_importance has saved it
        overwrite = target.overwrite or model is not None
        sums.save(target.output, form=target.form, overwrite=overwrite)
    if measuring.as_json:
        _print_json(sums, ppl, target)
    else:
        _print_sums(sums, ppl, target, show_statistics=show_statistics)


def _sums_of_files(added: AddedFiles, n_ctx: int) -> list[ImportanceSums]:
    """Read the sums of the files; ``n_ctx`` is the chunk size of those that do not say it."""
    from ..imatrix.file import load_importance
    from ..imatrix.sums import ImportanceSums

    return [
        ImportanceSums.of(load_importance(name, added.include_weights, added.exclude_weights), n_ctx)
        for name in added.in_files
    ]


def _measured_sums(
    model: str, measuring: Measuring, measured: MeasuredSums, target: ImatrixOutput
) -> tuple[ImportanceSums, Perplexity | None]:
    """Measure on the text, and save the result. Also return the perplexity, unless --no-ppl is given."""
    from ..evaluate.collect_imatrix import collect_importance
    from .evaluation_tables import running_perplexity

    file, is_gguf = measuring.text_file(), target.form == GGUF
    text = read_text(file)
    ppl: Perplexity | None = None
    with (
        saved_chunks(target.output, can_resume=is_gguf) as on_save,
        progress_bar("tokens", 1) as progress,
        printed_results(running_perplexity, quiet=measuring.as_json, per_line=VALUES_PER_LINE) as show,
        measuring.open_models(model, expert_correlations=measured.expert_correlations) as (lm,),
    ):
        _note_limits(lm)

        def on_chunk(result: Perplexity) -> None:
            nonlocal ppl
            ppl = result
            show(result)

        sums = collect_importance(
            lm,
            text,
            n_ctx=measuring.n_ctx,
            n_chunks=measuring.n_chunks,
            from_chunk=measured.from_chunk,
            parse_special=measured.parse_special,
            process_output=measured.process_output,
            score=not measured.no_ppl,
            fisher_chunks=measured.fisher_chunks if is_gguf else 0,
            correlations=is_gguf and not measured.no_correlations,
            threads=measuring.threads,
            dataset=file,
            output=target.output,
            form=target.form,
            overwrite=target.overwrite,
            resume=measuring.resume,
            save_chunks=target.save_chunks,
            copy_chunks=target.copy_chunks,
            progress=progress,
            on_chunk=on_chunk,
            on_save=on_save,
        )
        _note_unmeasured(lm, sums)
    return sums, ppl


def _print_json(sums: ImportanceSums, ppl: Perplexity | None, target: ImatrixOutput) -> None:
    from ..imatrix.statistics import tensor_statistics

    print_json(
        {
            "file": target.output,
            "datasets": list(sums.datasets),
            "chunk_count": sums.chunk_count,
            "chunk_size": sums.chunk_size,
            "perplexity": ppl.as_dict() if ppl else None,
            "tensors": [tensor.as_dict() for tensor in tensor_statistics(sums)],
        }
    )


def _print_sums(
    sums: ImportanceSums, ppl: Perplexity | None, target: ImatrixOutput, *, show_statistics: bool
) -> None:
    from ..imatrix.statistics import tensor_statistics
    from .evaluation_tables import final_perplexity, importance_table

    if ppl is not None:
        click.echo(final_perplexity(ppl))
    if show_statistics:
        console().print(importance_table(tensor_statistics(sums)))
    if target.output is not None:
        refining = [f" and {name} (for refined types only)" for name in sums.refining if target.form == GGUF]
        found = (
            f"{counted(len(sums.tensors), 'tensor')}{''.join(refining)}, {counted(sums.chunk_count, 'chunk')}"
        )
        click.echo(printable(f"{found}: wrote {target.output}"))


def _note_limits(model: LanguageModel) -> None:
    """Print to standard error what cannot be measured, and how much memory the sums take if it is much."""
    if not model.has_logits:
        click.echo(
            printable(f"note: {model.path} is an encoder: it has no perplexity and no Fisher information"),
            err=True,
        )
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
    unseen = sorted(name for name in model.matrices if name not in seen and role_of(name) != "token_embd")
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
