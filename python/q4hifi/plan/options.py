"""The options that decide the type of every tensor: :class:`TypeOptions`, checked."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import TypeAlias

from ..errors import BadOptionError
from ..formats.layout import LAYOUTS, SPLIT
from ..formats.types import MAX_OUTLIERS, Q4_HIFI, REFINABLE_TYPES
from ..wording import enumerated, short_size
from .option import document, option
from .option_values import check_values
from .recipes import Recipe, find_recipe
from .size_classes import SizeClass, size_class_for
from .tensor_type_rules import TensorTypes, checked_rule, checked_type

FilePath: TypeAlias = str | os.PathLike[str]
Bytes: TypeAlias = int

SCALE, MEASURED = "scale", "measured"
COVERAGES = (SCALE, MEASURED)
"""How the type Q4_HIFI chooses the tensors' types: from a table for the model's size
(:mod:`q4hifi.plan.size_classes`), or by measured errors (:mod:`q4hifi.allocation`)."""

DEFAULT_COVERAGE: Mapping[bool, str] = {False: SCALE, True: MEASURED}
"""Whether there is an imatrix -> the coverage, unless an option asks for one."""

MEASURED_NAME = "-measured"
"""Ends the title of a plan that has only stock types, chosen by measured errors."""

GENERAL = ""
IMATRIX = "Importance matrix"
BY_TENSOR = "Types of single tensors"
HIFI = "Type Q4_HIFI"
BY_ERROR = "Type Q4_HIFI, coverage measured: the best types within a budget"
BY_SIZE = "Type Q4_HIFI, coverage scale: types from a table"
OUTPUT = "Output"
SECTIONS = (GENERAL, IMATRIX, BY_TENSOR, HIFI, BY_ERROR, BY_SIZE, OUTPUT)
"""The headings of the options, in the order of the help."""

SINGLE_TYPES = ("output_tensor_type", "token_embedding_type")
"""Options that name the type of a single tensor."""

BUDGETS = ("target_size", "target_bpw", "like")
SENSITIVITY_SOURCES = ("sensitivities", "calibrate")
ONLY_MEASURED = (*BUDGETS, "stock", *SENSITIVITY_SOURCES)
"""Options that have a meaning for measured coverage only."""

ONLY_SCALE = ("outliers", "ffn_down_coverage", "minimal", "pure")
"""Options that have a meaning for coverage by size only."""


@dataclass(frozen=True)
class TypeOptions:
    """The options that decide the type of every tensor.

    All are given by keyword; ``type`` may also come first without one. Creating it raises
    :class:`BadOptionError` for a value that is not possible, and for options that exclude each other.
    """

    type: str = option(
        "Q4_HIFI",
        "Recipe, which says what type each tensor gets: Q4_HIFI, or one of llama-quantize, such as Q4_K_M.",
        details="In capitals or small letters.",
    )
    _: KW_ONLY
    pure: bool = option(False, "Give every matrix the main type of the mix, such as Q4_K for Q4_K_M.")
    refine: bool | None = option(
        None,
        "Search longer for blocks with less error. Types and sizes stay the same.",
        details=f"Finds blocks of {enumerated(REFINABLE_TYPES)} with less weighted error than ggml's"
        " encoder. If the imatrix holds the input correlations of a matrix, error feedback (GPTQ, LDLQ) is"
        " used as well, for every type of blocks. Encoding takes two to five times as long.",
        unset="only for Q4_HIFI; other types get llama-quantize's bytes",
    )
    no_fallback: bool = option(
        False, "Fail if the rows of a tensor do not fit its type, instead of using another type."
    )
    tensor_types: TensorTypes = option(
        (),
        "Type of the tensors whose name matches, such as attn_v=q6_k. The first match counts.",
        section=BY_TENSOR,
        metavar="REGEX=TYPE",
        details="Pairs of a regular expression, in llama-quantize's dialect, and a type. A type that q4hifi"
        " cannot encode is allowed for tensors that have it already: they are copied.",
    )
    output_tensor_type: str | None = option(
        None, "Type of output.weight, such as Q6_K.", section=BY_TENSOR, metavar="TYPE"
    )
    token_embedding_type: str | None = option(
        None, "Type of token_embd.weight, such as Q8_0.", section=BY_TENSOR, metavar="TYPE"
    )
    leave_output_tensor: bool = option(False, "Do not quantize output.weight.", section=BY_TENSOR)
    coverage: str | None = option(
        None,
        "How the type of each tensor is chosen. measured: by the errors of all types within a budget. scale:"
        " by a table for the model's size.",
        section=HIFI,
        choices=COVERAGES,
        details="Measuring encodes a sample of the rows of every tensor in each type that it may take.",
        unset="measured with an importance matrix or a budget, else scale",
    )
    target_size: Bytes | None = option(
        None,
        "Budget: the size of the output, such as 470MiB or 3.5GB.",
        section=BY_ERROR,
        metavar="SIZE",
        details="A number of bytes.",
    )
    target_bpw: float | None = option(
        None, "Budget: bits per weight, such as 4.5.", section=BY_ERROR, metavar="BITS", between=(0, 32)
    )
    like: str | None = option(
        None,
        "Budget: the size of a file of this type, such as Q4_K_M.",
        section=BY_ERROR,
        metavar="TYPE",
        details="Without any budget it is the size of Q4_K_S and 1.5 to 6 % more, less for larger models.",
    )
    stock: bool = option(False, "Use only types that stock llama.cpp loads.", section=BY_ERROR)
    sensitivities: FilePath | None = option(
        None,
        "Read from FILE how much an error in each tensor harms the model, as 'q4hifi calibrate' writes it.",
        section=BY_ERROR,
        metavar="FILE",
    )
    calibrate: FilePath | None = option(
        None,
        "Measure first how much an error in each tensor harms the model, by running it on the text in FILE."
        " The result is kept beside the importance matrix, or beside the model, and used again.",
        section=BY_ERROR,
        metavar="FILE",
        details="See q4hifi.calibrate.",
    )
    outliers: int | None = option(
        None,
        "Number of weights in a block of 256 that are kept in 16 bits: its outliers.",
        section=BY_SIZE,
        metavar="N",
        between=(0, MAX_OUTLIERS),
    )
    ffn_down_coverage: float | None = option(
        None,
        "Share of the layers whose ffn_down becomes Q4_HIFI.",
        section=BY_SIZE,
        metavar="SHARE",
        between=(0, 1),
    )
    minimal: bool = option(
        False, "Use the least Q4_HIFI. For models above 100 B parameters.", section=BY_SIZE
    )
    layout: str = option(
        SPLIT,
        "How Q4_HIFI is stored. split: with the outliers in tensors of their own. fork: as the llama.cpp"
        " branch with this type reads it.",
        section=OUTPUT,
        choices=LAYOUTS,
    )

    def __post_init__(self) -> None:
        """Check every option, and that they fit together."""
        check_values(self)
        recipe = self.recipe
        named = {f"`{option}`": getattr(self, option) for option in SINGLE_TYPES}
        kinds = {checked_type(option, kind) for option, kind in named.items() if kind is not None}
        kinds |= {checked_rule(pattern, kind) for pattern, kind in self.tensor_types}
        if self.layout not in LAYOUTS:
            raise BadOptionError(f"unknown layout {self.layout!r}; choose one of {', '.join(LAYOUTS)}")
        if self.outliers is not None and self.outliers not in range(MAX_OUTLIERS + 1):
            raise BadOptionError(f"`outliers` is {self.outliers}; choose 0 to {MAX_OUTLIERS} per block")
        if self.ffn_down_coverage is not None and not 0 <= self.ffn_down_coverage <= 1:
            raise BadOptionError(f"`ffn_down_coverage` is {self.ffn_down_coverage}; choose 0 to 1")
        if recipe.default is None and kinds:
            raise BadOptionError("COPY changes no tensor's type; leave out the options that name types")
        if recipe.default != Q4_HIFI and (self.minimal or self.ffn_down_coverage is not None):
            raise BadOptionError(f"`minimal` and `ffn_down_coverage` are for type Q4_HIFI, not {recipe.name}")
        if self.outliers is not None and Q4_HIFI not in {recipe.default, *kinds}:
            raise BadOptionError(f"`outliers` is for Q4_HIFI, and {recipe.name} makes no such tensor")
        if self.stock and Q4_HIFI in kinds:
            raise BadOptionError(
                "`stock` excludes Q4_HIFI, which another option names for a tensor; leave out one of them"
            )
        self._check_coverage()

    def _check_coverage(self) -> None:
        if self.coverage not in (None, *COVERAGES):
            raise BadOptionError(f"unknown coverage {self.coverage!r}; choose one of {', '.join(COVERAGES)}")
        measured, by_size = self._given(ONLY_MEASURED), self._given(ONLY_SCALE)
        if self.recipe.default != Q4_HIFI and (self.coverage is not None or measured):
            what = _keywords(measured) or "`coverage`"
            name = self.recipe.name
            raise BadOptionError(
                f"{what}: for type Q4_HIFI, and {name} is a fixed mix; leave out {name} or {what}"
            )
        if measured and (self.coverage == SCALE or by_size):
            raise BadOptionError(
                f"{_keywords(measured)}: for `coverage='measured'`, and not with "
                + (_keywords(by_size) or "`coverage='scale'`")
            )
        if self.coverage == MEASURED and by_size:
            raise BadOptionError(
                f"{_keywords(by_size)}: not for `coverage='measured'`, which decides by errors"
            )
        for rivals in (BUDGETS, SENSITIVITY_SOURCES):
            given = self._given(rivals)
            if len(given) > 1:
                raise BadOptionError(f"{_keywords(given, ' and ')} cannot go together; choose one")
        if self.target_size is not None and self.target_size <= 0:
            raise BadOptionError(f"`target_size` is {self.target_size}; give a number of bytes")
        if self.target_bpw is not None and not 0 < self.target_bpw <= 32:
            raise BadOptionError(f"`target_bpw` is {self.target_bpw}; give more than 0 and at most 32 bits")
        if self.like is not None:
            _check_like(self.like)

    def _given(self, names: Collection[str]) -> list[str]:
        """Those of the options ``names`` that were given."""
        return [name for name in names if getattr(self, name) not in (None, False)]

    def is_measured(self, has_imatrix: bool) -> bool:
        """Whether measured errors decide the tensors' types."""
        if self.recipe.default != Q4_HIFI or self._given(ONLY_SCALE):
            return False
        default = MEASURED if self._given(ONLY_MEASURED) else DEFAULT_COVERAGE[has_imatrix]
        return (self.coverage or default) == MEASURED

    @property
    def is_refined(self) -> bool:
        """Whether blocks are refined, and not those of ggml's encoders."""
        return self.recipe.default == Q4_HIFI if self.refine is None else self.refine

    @property
    def title(self) -> str:
        """The recipe's name; with ``stock``, the budget and :data:`MEASURED_NAME`.

        ``Q4_K_M-measured`` has at most the size of Q4_K_M, but its tensors have other types.
        """
        return f"{self._budget or 'Q4'}{MEASURED_NAME}" if self.stock else self.recipe.name

    @property
    def file_title(self) -> str:
        """The end of the default name of the output: the title, and of Q4_HIFI within a budget the budget."""
        if self.stock or self._budget is None:
            return self.title
        return f"{self.title}-{self._budget}{MEASURED_NAME}"

    @property
    def _budget(self) -> str | None:
        """The budget as a part of a name, such as Q4_K_M, 4.5bpw or 470MiB; None if none is given."""
        if self.like is not None:
            return find_recipe(self.like).name
        if self.target_bpw is not None:
            return f"{self.target_bpw:g}bpw"
        return None if self.target_size is None else short_size(self.target_size)

    @property
    def recipe(self) -> Recipe:
        """The recipe that ``type`` names."""
        return find_recipe(self.type)

    def size_class(self, n_params: int) -> SizeClass:
        """Return the size class of a model with ``n_params`` weights, changed as the options say."""
        found = size_class_for(n_params, minimal=self.minimal)
        if self.outliers is not None:
            found = replace(found, outliers=self.outliers)
        if self.ffn_down_coverage is not None:
            found = replace(found, ffn_down_coverage=self.ffn_down_coverage)
        return found


document(TypeOptions, TypeOptions, SECTIONS)


def _keywords(names: Sequence[str], separator: str = ", ") -> str:
    return separator.join(f"`{name}`" for name in names)


def _check_like(name: str) -> None:
    """Raise :class:`BadOptionError` unless ``name`` is a recipe of a fixed size."""
    try:
        recipe = find_recipe(name)
    except BadOptionError as error:
        raise BadOptionError(f"`like`: {error}") from None
    if recipe.default in (None, Q4_HIFI):
        raise BadOptionError(f"`like` is {name}; name a recipe whose size is fixed, such as Q4_K_M")
