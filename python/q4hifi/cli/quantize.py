"""Commands that make models: quantize, plan, dequantize, export.

Options that llama-quantize has are spelled as there, and so is the order of its arguments.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..errors import BadOptionError
from ..layout import LAYOUTS, SPLIT
from ..limits import DEQUANTIZED, EXPORTS
from ..options import COVERAGES, Options, parse_tensor_type, read_tensor_type_file
from ..recipes import RECIPES, find_recipe
from ..wording import human_bytes
from .common import (
    console,
    exclude_option,
    include_option,
    json_option,
    overwrite_option,
    print_json,
    progress_bar,
    tensors_option,
    threads_option,
    usable_threads,
)
from .files import INPUT, OUTPUT, check_output
from .group import main

if TYPE_CHECKING:
    from ..plan import Plan
    from ..report import QuantizeReport

Command = TypeVar("Command", bound=Callable[..., Any])


def _quantize_options(command: Command) -> Command:
    """Add the options that ``quantize`` and ``plan`` share, all of them keywords of quantize_file."""
    options = [
        click.option(
            "--imatrix", type=INPUT, metavar="FILE", help="Importance matrix of llama-imatrix, either form."
        ),
        include_option,
        exclude_option,
        click.option(
            "--allow-missing-importance",
            is_flag=True,
            help="Use the imatrix although it looks like another model's.",
        ),
        click.option(
            "--tensor-type",
            "tensor_types",
            multiple=True,
            metavar="REGEX=TYPE",
            help="Type of the tensors whose name matches; the first match counts. Repeatable.",
        ),
        click.option("--tensor-type-file", type=INPUT, metavar="FILE", help="A file of REGEX=TYPE entries."),
        click.option("--output-tensor-type", metavar="TYPE", help="Type of output.weight."),
        click.option("--token-embedding-type", metavar="TYPE", help="Type of token_embd.weight."),
        click.option("--leave-output-tensor", is_flag=True, help="Keep output.weight as it is."),
        click.option("--pure", is_flag=True, help="Give every matrix the recipe's main type."),
        click.option(
            "--refine/--no-refine",
            default=None,
            help="Search for blocks with less error than llama-quantize's, and let errors cancel."
            " [default: for Q4_HIFI]",
        ),
        click.option("--no-fallback", is_flag=True, help="Fail where a row does not fit its type."),
        click.option("--keep-split", is_flag=True, help="Cut the output into files as the source is."),
        click.option(
            "--split-max-size", metavar="SIZE", help="Cut the output into files of at most that much data."
        ),
        click.option(
            "--coverage",
            type=click.Choice(COVERAGES),
            help="Q4_HIFI: by the table of model scales, or the types that measure best within a budget.",
        ),
        click.option(
            "--target-size", metavar="SIZE", help="Measured: the most bytes of the output, such as 3.5GiB."
        ),
        click.option("--target-bpw", type=float, metavar="BITS", help="Measured: the most bits a weight."),
        click.option("--like", metavar="TYPE", help="Measured: the most is the size of this recipe."),
        click.option("--stock", is_flag=True, help="Measured: only types that stock llama.cpp loads."),
        click.option(
            "--sensitivities",
            type=INPUT,
            metavar="FILE",
            help="Measured: what an error in each tensor costs, in JSON.",
        ),
        click.option(
            "--calibrate",
            type=INPUT,
            metavar="TEXT",
            help="Measured: find that out on this text; kept and used again.",
        ),
        click.option(
            "--write-tensor-types",
            type=OUTPUT,
            metavar="FILE",
            help="Write the types as --tensor-type-file reads them; with --stock for llama-quantize.",
        ),
        click.option("--outliers", type=click.IntRange(0, 32), help="Q4_HIFI: outliers a block of 256."),
        click.option(
            "--ffn-down-coverage",
            type=click.FloatRange(0, 1),
            help="Q4_HIFI: share of the layers whose ffn_down is covered.",
        ),
        click.option("--minimal", is_flag=True, help="Q4_HIFI: least coverage, for models above 100 B."),
        click.option(
            "--layout",
            type=click.Choice(LAYOUTS),
            default=SPLIT,
            show_default=True,
            help="Q4_HIFI: file layout.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
@click.argument("src", type=INPUT)
@click.argument("rest", nargs=-1, metavar="[DST] [TYPE] [THREADS]")
@_quantize_options
@click.option("--allow-requantize", is_flag=True, help="Quantize tensors that are quantized already.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done, as 'plan' does.")
@threads_option
@overwrite_option
@json_option
def quantize(
    src: str,
    rest: tuple[str, ...],
    allow_requantize: bool,
    dry_run: bool,
    threads: int | None,
    overwrite: bool,
    as_json: bool,
    **choices: Any,
) -> None:
    """Quantize the model SRC to DST.

    TYPE is Q4_HIFI (default) or one of llama.cpp's mixes: Q2_K, Q2_K_S, Q3_K_S, Q3_K_M, Q3_K_L, Q4_K_S,
    Q4_K_M, Q5_K_S, Q5_K_M, Q6_K, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL, IQ4_XS, F16, BF16, F32, COPY. DST
    defaults to SRC's name with the type.
    """
    dst, kind, rest_threads = _positional(src, rest)
    choices, types_file = _choices(choices)
    if not dry_run:
        check_output("DST", dst)
    from ..quantize import plan_file, quantize_file

    if dry_run:
        with progress_bar() as progress:
            found = plan_file(src, kind, threads=threads or rest_threads, progress=progress, **choices)
        _print_plan(found, as_json, tensors=False)
        _write_types(found, types_file, overwrite)
        return
    with progress_bar() as progress:
        report = quantize_file(
            src,
            dst,
            kind,
            allow_requantize=allow_requantize,
            threads=threads or rest_threads,
            overwrite=overwrite,
            progress=progress,
            **choices,
        )
    _print_report(report, as_json)
    _write_types(report.plan, types_file, overwrite)


@main.command()
@click.argument("src", type=INPUT)
@click.argument("type", default="Q4_HIFI")
@_quantize_options
@tensors_option
@threads_option
@overwrite_option
@json_option
def plan(
    src: str,
    type: str,
    tensors: bool,
    threads: int | None,
    overwrite: bool,
    as_json: bool,
    **choices: Any,
) -> None:
    """Say what 'quantize' would make of SRC, sizes to the byte.

    Reads no weights, but some for measured coverage. SRC may also be a JSON file of a model's shapes.
    """
    from ..quantize import plan_file
    from ..shapes import SUFFIX as SHAPES
    from ..shapes import plan_shapes

    choices, types_file = _choices(choices)
    if src.endswith(SHAPES):
        found = plan_shapes(src, type, **_of_shapes(choices))
    else:
        with progress_bar() as progress:
            found = plan_file(src, type, threads=threads, progress=progress, **choices)
    _print_plan(found, as_json, tensors)
    _write_types(found, types_file, overwrite)


@main.command()
@click.argument("src", type=INPUT)
@click.argument("dst", type=OUTPUT)
@click.argument("type", type=click.Choice(list(DEQUANTIZED), case_sensitive=False), default="F16")
@threads_option
@overwrite_option
@json_option
def dequantize(src: str, dst: str, type: str, threads: int | None, overwrite: bool, as_json: bool) -> None:
    """Decode all quantized tensors of SRC to F16 (default), BF16 or F32."""
    from ..export import dequantize_file

    with progress_bar() as progress:
        report = dequantize_file(src, dst, type, threads=threads, overwrite=overwrite, progress=progress)
    _print_report(report, as_json)


@main.command()
@click.argument("src", type=INPUT)
@click.argument("dst", type=OUTPUT)
@click.option(
    "--as",
    "as_",
    type=click.Choice(list(EXPORTS), case_sensitive=False),
    help="For stock llama.cpp: drop the outliers, or store their tensors in this type.",
)
@click.option("--layout", type=click.Choice(LAYOUTS), help="Or keep Q4_HIFI and change its file layout.")
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
    """Bring the Q4_HIFI model SRC into a form that other programs load."""
    from ..export import export_file

    with progress_bar() as progress:
        report = export_file(
            src, dst, as_=as_, layout=layout, threads=threads, overwrite=overwrite, progress=progress
        )
    _print_report(report, as_json)


def _positional(src: str, rest: tuple[str, ...]) -> tuple[str, str, int | None]:
    """DST, TYPE and THREADS as llama-quantize tells them apart: a lone argument may be a type."""
    words = list(rest)
    dst = None if words and _is_type(words[0]) else words.pop(0) if words else None
    kind = find_recipe(words.pop(0)).name if words else "Q4_HIFI"
    threads = None
    if words:
        text = words.pop(0)
        if not (text.isascii() and text.isdecimal()):
            raise BadOptionError(
                f"{text!r} is not a number of threads; the order of the arguments is SRC DST TYPE THREADS"
            )
        threads = usable_threads(click.get_current_context(), None, int(text[:9]))
    if words:
        raise BadOptionError(f"too many arguments: {' '.join(words)}")
    return dst or _default_destination(src, kind), kind, threads


def _is_type(word: str) -> bool:
    try:
        find_recipe(word)
    except BadOptionError:
        return False
    return True


_TYPE_IN_NAME = re.compile(rf"[-._]({'|'.join(RECIPES)})$", re.IGNORECASE)
_SHARD_IN_NAME = re.compile(r"-\d{5}-of-\d{5}$")


def _default_destination(src: str, kind: str) -> str:
    """SRC's name with its type replaced: model-f16.gguf -> model-Q4_HIFI.gguf."""
    path = Path(src)
    stem = _SHARD_IN_NAME.sub("", path.name.removesuffix(".gguf"))
    return str(path.with_name(f"{_TYPE_IN_NAME.sub('', stem)}-{kind}.gguf"))


def _choices(options: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Keywords of quantize_file from the shared options, and the file that --write-tensor-types names."""
    from ..gguf_split import parse_size

    choices = dict(options)
    types_file = choices.pop("write_tensor_types")
    named = [parse_tensor_type(text) for text in choices["tensor_types"]]
    file = choices.pop("tensor_type_file")
    choices["tensor_types"] = named + list(read_tensor_type_file(file) if file else ())
    for name in ("split_max_size", "target_size"):
        if choices[name] is not None:
            choices[name] = parse_size(choices[name])
    return choices, types_file


def _of_shapes(choices: Mapping[str, Any]) -> dict[str, Any]:
    """The choices that a plan of shapes alone can follow."""
    known = {name: choices[name] for name in choices if name in Options.__dataclass_fields__}
    unknown = [name for name, value in choices.items() if name not in known and value]
    if unknown:
        raise BadOptionError(
            f"{', '.join(unknown)}: for a model file; shapes alone have no weights and no header"
        )
    return known


def _write_types(plan: Plan, file: str | None, overwrite: bool) -> None:
    if file is not None:
        from ..tensor_types import write_tensor_types

        write_tensor_types(plan, file, overwrite=overwrite)


def _print_report(report: QuantizeReport, as_json: bool) -> None:
    if as_json:
        print_json(report.as_dict())
    else:
        console().print(report)


def _print_plan(plan: Plan, as_json: bool, tensors: bool) -> None:
    if as_json:
        print_json(plan.as_dict())
        return
    from ..report import notes, paragraphs, role_table, tensor_table, type_table

    whole = plan.tensor_bytes if plan.file_bytes is None else plan.file_bytes
    size = (
        f"{human_bytes(whole)} {'of tensors' if plan.file_bytes is None else 'in all'},"
        f" {plan.bits_per_weight:.3f} bits a weight; a token reads {human_bytes(plan.token_bytes)} of weights"
    )
    tables = [[tensor_table(plan)]] if tensors else []
    roles = [role_table(plan)] if plan.measured else []
    console().print(paragraphs(*tables, [type_table(plan)], roles, notes(plan), [size]))
