"""The options that 'quantize' and 'plan' share, and what they mean as keywords of quantize_file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from ..errors import BadOptionError
from ..formats.layout import LAYOUTS, SPLIT
from ..plan.options import COVERAGES, Options, parse_tensor_type, read_tensor_type_file
from .common import exclude_option, imatrix_option, include_option
from .files import INPUT, OUTPUT
from .sections import options_of

Command = TypeVar("Command", bound=Callable[..., Any])

_by_tensor = options_of("Types of single tensors")
_q4_hifi = options_of("Type Q4_HIFI")
_measured = options_of("Type Q4_HIFI, --coverage measured: the best types within a budget")
_scale = options_of("Type Q4_HIFI, --coverage scale: types from a table")
_output = options_of("Output")

_QUANTIZE_OPTIONS = (
    click.option(
        "--pure", is_flag=True, help="Give every matrix the main type of TYPE, such as Q4_K for Q4_K_M."
    ),
    click.option(
        "--refine/--no-refine", default=None,
        help="Search longer for blocks with less error. Types and sizes stay the same."
        " [default: only for Q4_HIFI; other types get llama-quantize's bytes]",
    ),
    click.option(
        "--no-fallback", is_flag=True,
        help="Fail if the rows of a tensor do not fit its type, instead of using another type.",
    ),
    imatrix_option(
        "--imatrix", type=INPUT, metavar="FILE", help="Importance matrix, of q4hifi or llama-imatrix."
    ),
    include_option,
    exclude_option,
    imatrix_option(
        "--allow-missing-importance", is_flag=True, help="Use it even if it seems to be of another model."
    ),
    _by_tensor(
        "--tensor-type", "tensor_types", multiple=True, metavar="REGEX=TYPE",
        help="Type of the tensors whose name matches. The first match counts. Repeatable.",
    ),
    _by_tensor(
        "--tensor-type-file", type=INPUT, metavar="FILE", help="Read REGEX=TYPE entries from a file."
    ),
    _by_tensor("--output-tensor-type", metavar="TYPE", help="Type of output.weight."),
    _by_tensor("--token-embedding-type", metavar="TYPE", help="Type of token_embd.weight."),
    _by_tensor("--leave-output-tensor", is_flag=True, help="Do not quantize output.weight."),
    _q4_hifi(
        "--coverage", type=click.Choice(COVERAGES),
        help="How the type of each tensor is chosen: by measured errors, or by a table for the model's scale."
        " [default: measured with an importance matrix, else scale]",
    ),
    _measured(
        "--target-size", metavar="SIZE", help="Budget: the size of the output, such as 470MiB or 3.5GB."
    ),
    _measured("--target-bpw", type=float, metavar="BITS", help="Budget: bits per weight, such as 4.5."),
    _measured("--like", metavar="TYPE", help="Budget: the size of a file of this type, such as Q4_K_M."),
    _measured("--stock", is_flag=True, help="Use only types that stock llama.cpp loads."),
    _measured(
        "--sensitivities", type=INPUT, metavar="FILE",
        help="Read from a JSON file how much an error in each tensor harms the model.",
    ),
    _measured(
        "--calibrate", type=INPUT, metavar="TEXT",
        help="Measure this first, by running the model on a text. The result is kept and used again.",
    ),
    _scale(
        "--outliers", type=click.IntRange(0, 32), metavar="N",
        help="Outliers per block of 256 weights, kept in 16 bits.",
    ),
    _scale(
        "--ffn-down-coverage", type=click.FloatRange(0, 1), metavar="SHARE",
        help="Share of the layers whose ffn_down becomes Q4_HIFI.",
    ),
    _scale("--minimal", is_flag=True, help="Use the least Q4_HIFI. For models above 100 B parameters."),
    _output(
        "--layout", type=click.Choice(LAYOUTS), default=SPLIT, show_default=True,
        help="How Q4_HIFI is stored: with the outliers in tensors of their own, or as the llama.cpp branch"
        " with this type reads it.",
    ),
    _output("--keep-split", is_flag=True, help="Split the output into as many files as the source."),
    _output(
        "--split-max-size", metavar="SIZE",
        help="Split the output into files of at most this size, such as 4GB.",
    ),
    _output(
        "--write-tensor-types", type=OUTPUT, metavar="FILE",
        help="Write the types to FILE, for --tensor-type-file. With --stock, llama-quantize can read it too.",
    ),
)  # fmt: skip


def quantize_options(command: Command) -> Command:
    """Add the shared options to a command."""
    for option in reversed(_QUANTIZE_OPTIONS):
        command = option(command)
    return command


def parse_choices(options: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Keywords of quantize_file from the shared options, and the file that --write-tensor-types names."""
    from ..gguf_io.split import parse_size

    choices = dict(options)
    types_file = choices.pop("write_tensor_types")
    named = [parse_tensor_type(text) for text in choices["tensor_types"]]
    file = choices.pop("tensor_type_file")
    choices["tensor_types"] = named + list(read_tensor_type_file(file) if file else ())
    for name in ("split_max_size", "target_size"):
        if choices[name] is not None:
            choices[name] = parse_size(choices[name])
    return choices, types_file


def of_shapes(choices: Mapping[str, Any]) -> dict[str, Any]:
    """The choices that a plan of shapes alone can follow."""
    known = _of_options(choices)
    unknown = [name for name, value in choices.items() if name not in known and value]
    if unknown:
        raise BadOptionError(
            f"{', '.join(unknown)}: for a model file; shapes alone have no weights and no header"
        )
    return known


def options_for(kind: str, choices: Mapping[str, Any]) -> Options:
    """The options of a recipe with these choices. Raises :class:`BadOptionError` where they do not fit."""
    return Options(type=kind, **_of_options(choices))


def _of_options(choices: Mapping[str, Any]) -> dict[str, Any]:
    """The choices that decide about types."""
    return {name: choices[name] for name in choices if name in Options.__dataclass_fields__}
