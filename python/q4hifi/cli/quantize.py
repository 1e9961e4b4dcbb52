"""Commands that make models: quantize, plan, dequantize, export.

Options that llama-quantize has are spelled as there, and so is the order of its arguments.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..allocation.calibration_path import calibration_file
from ..formats.layout import LAYOUTS
from ..pipeline.quantize_options import GUESSED, QuantizeOptions
from ..pipeline.target_types import DEQUANTIZED, EXPORTS
from ..plan.recipes import find_recipe
from ..wording import human_bytes
from .choice import Choice
from .common import (
    console,
    json_option,
    overwrite_option,
    print_json,
    progress_bar,
    tensors_option,
    threads_option,
    usable_threads,
)
from .destination import check_model_name, default_destination, parse_arguments
from .files import INPUT, OUTPUT, check_distinct, check_output
from .group import main
from .quantize_options import of_shapes, parse_options, quantize_options

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ..pipeline.report import QuantizeReport
    from ..plan.plan import Plan

DEFAULT_TYPE = "Q4_HIFI"


@main.command()
@click.argument("src", type=INPUT)
@click.argument("rest", nargs=-1, metavar="[DST] [TYPE] [THREADS]")
@quantize_options()
@click.option("--dry-run", is_flag=True, help="Show the plan, as 'q4hifi plan' does, and write no model.")
@threads_option
@overwrite_option
@json_option
def quantize(
    src: str,
    rest: tuple[str, ...],
    dry_run: bool,
    threads: int | None,
    overwrite: bool,
    as_json: bool,
    **values: Any,
) -> None:
    """Quantize the model SRC to DST.

    SRC is a GGUF file in 16 or 32 bits. TYPE is a recipe, which says what type each tensor gets: Q4_HIFI
    (default), or one of llama-quantize: Q2_K, Q2_K_S, Q3_K_S, Q3_K_M, Q3_K_L, Q4_K_S, Q4_K_M, Q5_K_S, Q5_K_M,
    Q6_K, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL, IQ4_XS, F16, BF16, F32, COPY. THREADS is the same as
    --threads.

    The default of DST is SRC's name with TYPE. If a budget is given, its name is added, such as
    model-Q4_HIFI-Q4_K_M-measured.gguf, or with --stock model-Q4_K_M-measured.gguf. A DST without TYPE ends in
    .gguf.
    """
    given = parse_arguments(rest)
    _note_number(given.type_word)
    threads = threads or usable_threads(click.get_current_context(), None, given.threads)
    options, types_file = parse_options(
        given.type or DEFAULT_TYPE, values, threads=threads, overwrite=overwrite
    )
    dst = given.dst or default_destination(src, options)
    if dry_run:
        check_distinct("DST", dst)
    else:
        check_output("DST", dst)
    _check_calibration(src, options)
    _note_guesses(options)
    from ..pipeline.quantize import plan_file, quantize_file

    if dry_run:
        with progress_bar() as progress:
            found = plan_file(src, replace(options, progress=progress))
        _print_plan(found, as_json, tensors=False)
        _write_types(found, types_file, overwrite)
        return
    with progress_bar() as progress:
        report = quantize_file(src, dst, replace(options, progress=progress))
    _print_report(report, as_json)
    _write_types(report.plan, types_file, overwrite, report.destination)


@main.command()
@click.argument("src", type=INPUT)
@click.argument("type", default=DEFAULT_TYPE)
@quantize_options(leave_out=["allow_requantize"])
@tensors_option
@threads_option
@click.option("--overwrite", is_flag=True, help="Replace the file of --write-tensor-types if it exists.")
@json_option
def plan(
    src: str,
    type: str,
    tensors: bool,
    threads: int | None,
    overwrite: bool,
    as_json: bool,
    **values: Any,
) -> None:
    """Show what 'quantize' would write: the type of each tensor, and the exact size.

    TYPE and the options are those of 'quantize'. Reads only the header of SRC. --coverage measured reads a
    sample of its weights as well, and --calibrate runs the model. SRC may also be a JSON file with the shapes
    of a model's tensors.
    """
    from ..pipeline.quantize import plan_file
    from ..plan.shapes_file import SUFFIX as SHAPES
    from ..plan.shapes_file import plan_shapes

    _note_number(type)
    options, types_file = parse_options(type, values, threads=threads)
    if src.endswith(SHAPES):
        found = plan_shapes(src, **of_shapes(options))
    else:
        _check_calibration(src, options)
        _note_guesses(options)
        with progress_bar() as progress:
            found = plan_file(src, replace(options, progress=progress))
    _print_plan(found, as_json, tensors)
    _write_types(found, types_file, overwrite)


@main.command()
@click.argument("src", type=INPUT)
@click.argument("dst", type=OUTPUT)
@click.argument(
    "type",
    type=Choice(list(DEQUANTIZED), case_sensitive=False),
    default="F16",
    metavar="[F16|BF16|F32]",
)
@threads_option
@overwrite_option
@json_option
@click.pass_context
def dequantize(
    ctx: click.Context,
    src: str,
    dst: str,
    type: str,
    threads: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Decode a quantized model SRC to F16 (default), BF16 or F32."""
    if ctx.get_parameter_source("type") is ParameterSource.DEFAULT:
        check_model_name(dst)
    from ..pipeline.export import dequantize_file

    with progress_bar() as progress:
        report = dequantize_file(src, dst, type, threads=threads, overwrite=overwrite, progress=progress)
    _print_report(report, as_json)


@main.command()
@click.argument("src", type=INPUT)
@click.argument("dst", type=OUTPUT)
@click.option(
    "--as",
    "as_",
    type=Choice(list(EXPORTS), case_sensitive=False),
    help="Make a file for stock llama.cpp. Q4_HIFI tensors take this type; drop makes them Q4_K, without"
    " their outliers.",
)
@click.option("--layout", type=Choice(LAYOUTS), help="Keep the Q4_HIFI tensors and change their layout.")
@threads_option
@overwrite_option
@json_option
def export(
    src: str,
    dst: str,
    as_: str | None,
    layout: str | None,
    threads: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Convert a Q4_HIFI model SRC so that other programs load it.

    Without Q4_HIFI tensors in SRC, nothing is written, and the exit status is 1: such a file loads in
    llama.cpp as it is.
    """
    check_model_name(dst)
    from ..pipeline.export import export_file

    with progress_bar() as progress:
        report = export_file(
            src, dst, as_=as_, layout=layout, threads=threads, overwrite=overwrite, progress=progress
        )
    _print_report(report, as_json)


def _note_number(type: str | None) -> None:
    """Print a note to standard error if the type is given by its number in llama-quantize."""
    if type is not None and type.strip().isdecimal():
        click.echo(f"note: {type} is llama-quantize's number of {find_recipe(type).name}", err=True)


def _check_calibration(src: str, options: QuantizeOptions) -> None:
    """Check the file that --calibrate writes, before any work."""
    if options.calibrate is not None:
        imatrix = None if options.imatrix is None else os.fspath(options.imatrix)
        file = calibration_file(src, imatrix, options.include_weights, options.exclude_weights)
        check_output("--calibrate", file, overwrite=True)


def _note_guesses(options: QuantizeOptions) -> None:
    """Print, before the work begins, a note to standard error if sensitivities will be guessed."""
    if options.guesses_sensitivities:
        click.echo(f"note: {GUESSED}", err=True)


def _write_types(plan: Plan, file: str | None, overwrite: bool, written: Sequence[Path] = ()) -> None:
    """Write the file of --write-tensor-types if one is wanted; never over a file of the model's output."""
    if file is not None:
        from ..plan.tensor_types_file import write_tensor_types

        write_tensor_types(plan, file, overwrite=overwrite, sources=written)


def _print_report(report: QuantizeReport, as_json: bool) -> None:
    if as_json:
        print_json(report.as_dict())
    else:
        from .report_tables import report_tables

        console().print(report_tables(report))


def _print_plan(plan: Plan, as_json: bool, tensors: bool) -> None:
    if as_json:
        print_json(plan.as_dict())
        return
    from .plan_tables import notes, role_table, tensor_table, type_table
    from .tables import paragraphs

    whole = plan.tensor_bytes if plan.file_bytes is None else plan.file_bytes
    size = (
        f"{human_bytes(whole)} {'of tensors' if plan.file_bytes is None else 'in all'},"
        f" {plan.bits_per_weight:.3f} bits per weight;"
        f" a token reads {human_bytes(plan.token_bytes)} of weights"
    )
    tables = [[tensor_table(plan)]] if tensors else []
    roles = [role_table(plan)] if plan.measured else []
    console().print(paragraphs(*tables, [type_table(plan)], roles, notes(plan), [size]))
