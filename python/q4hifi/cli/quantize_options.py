"""The command-line options of 'quantize' and 'plan', made from the fields of :class:`QuantizeOptions`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import Field, fields
from typing import Any, TypeVar

from ..errors import BadOptionError
from ..pipeline.quantize_options import QuantizeOptions
from ..plan.option import by_section, text_of
from ..plan.options import BY_TENSOR, OUTPUT, SECTIONS, TypeOptions
from ..plan.pruning import parse_layers
from ..plan.tensor_type_rules import parse_tensor_type, read_tensor_type_file
from .choice import Choice
from .files import INPUT, OutputFile
from .numbers import Number, Whole
from .sections import GENERAL, options_of

Command = TypeVar("Command", bound=Callable[..., Any])
Decorator = Callable[[Command], Command]


def _size(text: str) -> int:
    """A number of bytes, written with a unit."""
    from ..gguf_io.split import parse_size

    return parse_size(text)


def _layers(given: str | tuple[int, ...]) -> tuple[int, ...]:
    """Numbers of layers. Click also converts the default, which is none."""
    return parse_layers(given) if isinstance(given, str) else given


KINDS: Mapping[str, dict[str, Any]] = {
    "str": {},
    "str | None": {},
    "bool": {"is_flag": True},
    "bool | None": {},
    "int | None": {"type": Whole()},
    "float | None": {"type": Number()},
    "Bytes | None": {"type": _size},
    "FilePath | None": {"type": INPUT},
    "TensorTypes": {"type": parse_tensor_type, "multiple": True},
    "Sequence[str]": {"multiple": True},
    "Sequence[int]": {"type": _layers},
}
"""The annotation of a field -> what click needs to know of its option."""

NAMES: Mapping[str, str] = {"tensor_types": "--tensor-type"}
"""The fields whose options have another name."""

MADE_BY_COMMANDS = frozenset({"type", "threads", "overwrite", "progress"})
"""The fields that commands fill in by themselves: from an argument, or from an option of all commands."""


def field_option(field: Field[Any]) -> Decorator[Any]:
    """Return the decorator that adds the option of a field of :class:`QuantizeOptions` to a command."""
    text, kind = text_of(field), dict(KINDS[str(field.type)])
    name = NAMES.get(field.name, "--" + field.name.replace("_", "-"))
    if field.type == "bool | None":
        name += f"/--no-{name.removeprefix('--')}"
    if text.choices:
        kind["type"] = Choice(text.choices)
    if text.between:
        in_range: Any = Whole if field.type == "int | None" else Number
        kind["type"] = in_range(*text.between)
    help_text = text.help
    if kind.get("multiple"):
        help_text += " Repeatable."
    if text.unset:
        help_text += f" [default: {text.unset}]"
    return options_of(text.section or GENERAL)(
        name,
        field.name,
        default=None if kind.get("multiple") else field.default,
        show_default=bool(field.default),
        metavar=text.metavar,
        help=help_text,
        **kind,
    )


def option_of(name: str) -> Decorator[Any]:
    """Return the decorator that adds one option of :class:`QuantizeOptions` to another command."""
    return field_option(next(field for field in fields(QuantizeOptions) if field.name == name))


_tensor_type_file = options_of(BY_TENSOR)(
    "--tensor-type-file", type=INPUT, metavar="FILE", help="Read REGEX=TYPE entries from FILE."
)
_write_tensor_types = options_of(OUTPUT)(
    "--write-tensor-types",
    type=OutputFile(),
    metavar="FILE",
    help="Write the type of each tensor to FILE, for --tensor-type-file. With --stock, llama-quantize can"
    " read it too.",
)


def quantize_options(*, leave_out: Collection[str] = ()) -> Decorator[Any]:
    """Return a decorator that adds the options of quantizing, except ``leave_out``, to a command."""

    def decorators() -> Iterator[Decorator[Any]]:
        for _, options in by_section(QuantizeOptions, SECTIONS):
            for field in options:
                if field.name not in MADE_BY_COMMANDS and field.name not in leave_out:
                    yield field_option(field)
                if field.name == "tensor_types":
                    yield _tensor_type_file
        yield _write_tensor_types

    def decorate(command: Command) -> Command:
        for decorator in reversed(list(decorators())):
            command = decorator(command)
        return command

    return decorate


def parse_options(type: str, values: Mapping[str, Any], **more: Any) -> tuple[QuantizeOptions, str | None]:
    """Return the options that the ``values`` of the command line mean, and the file of --write-tensor-types.

    ``more`` are the fields that the command fills in. Raises :class:`BadOptionError`.
    """
    found = {**values, **more}
    types_file = found.pop("write_tensor_types")
    rules_file = found.pop("tensor_type_file")
    found["tensor_types"] += read_tensor_type_file(rules_file) if rules_file else ()
    return QuantizeOptions(type, **found), types_file


def of_shapes(options: QuantizeOptions) -> dict[str, Any]:
    """Return the options that a plan of shapes uses. Raises :class:`BadOptionError` for any other."""
    known = {field.name for field in fields(TypeOptions)}
    given = {f.name for f in fields(options) if getattr(options, f.name) != f.default}
    if unknown := sorted(given - known - MADE_BY_COMMANDS):
        raise BadOptionError(
            f"{', '.join(f'`{name}`' for name in unknown)}: for a model file; a file of shapes has no weights"
            " and no header"
        )
    return {name: getattr(options, name) for name in known}
