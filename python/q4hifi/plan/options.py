"""What the user asks of a quantization, checked."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

from ..errors import BadOptionError
from ..files.text_file import read_text_bytes
from ..formats.layout import LAYOUTS, SPLIT
from ..formats.types import MAX_OUTLIERS, Q4_HIFI, TensorType, tensor_type
from ..wording import short_size
from .recipes import Recipe, find_recipe
from .size_classes import Scale, scale_for
from .tensor_patterns import compile_pattern

TensorTypes = Sequence[tuple[str, str]]
"""(regular expression, type) pairs; the first that is found in a tensor's name decides its type."""

_OPPOSITES = {r"\B": r"(?!\b)", r"\D": "[^0-9]", r"\S": "[^[:space:]]", r"\W": "[^[:w:]]"}
"""Escapes that mean the opposite once their case is lowered -> how to write them."""


def parse_tensor_type(text: str) -> tuple[str, str]:
    """Split ``REGEX=TYPE`` at its first ``=`` and lower the pattern's case, as llama-quantize does.

    Blanks around both sides are dropped. Raises :class:`BadOptionError` where a side is missing, and for
    an escape that would mean its opposite in lower case.
    """
    pattern, _, kind = (side.strip() for side in text.partition("="))
    if not (pattern and kind):
        raise BadOptionError(f"--tensor-type {text!r}: write REGEX=TYPE, for example attn_v=q6_k")
    if "=" in kind:
        raise BadOptionError(
            f"--tensor-type {text!r}: the first = ends the pattern, so {kind!r} would be the type;"
            r" write \x3d for the character in a pattern"
        )
    for escape in re.findall(r"\\.", pattern):
        if escape in _OPPOSITES:
            raise BadOptionError(
                f"--tensor-type {text!r}: llama-quantize lowers the case of a pattern, and {escape} would"
                f" become {escape.lower()}; write {_OPPOSITES[escape]}"
            )
    return re.sub("[A-Z]", lambda letter: letter[0].lower(), pattern), kind


def read_tensor_type_file(path: str | Path) -> tuple[tuple[str, str], ...]:
    """Read a ``--tensor-type-file``: ``REGEX=TYPE`` rules, separated by spaces or line ends, in UTF-8.

    Raises :class:`BadOptionError` where it cannot be read as that.
    """
    try:
        return tuple(_rules_in(read_text_bytes(path), os.fspath(path)))
    except BadOptionError as error:
        raise BadOptionError(f"--tensor-type-file {error}") from error


def _rules_in(data: bytes, file: str) -> Iterator[tuple[str, str]]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadOptionError(f"{file}: {error}; save it as UTF-8") from error
    if not text.strip():
        raise BadOptionError(f"{file}: holds no rules; write REGEX=TYPE into it, for example attn_v=q6_k")
    for number, line in enumerate(text.split("\n"), 1):
        for rule in re.split(r"[ \t\r\v\f]+", re.sub(r"[ \t]*=[ \t]*", "=", line)):
            try:
                if rule:
                    yield parse_tensor_type(rule)
            except BadOptionError as error:
                comment = "; such a file has no comments" if rule.startswith("#") else ""
                raise BadOptionError(f"{file}, line {number}: {error}{comment}") from error


SCALE, MEASURED = "scale", "measured"
COVERAGES = (SCALE, MEASURED)
"""How Q4_HIFI decides what a tensor becomes: by the table of :mod:`q4hifi.plan.size_classes`, or by measured
errors."""

MEASURED_NAME = "-measured"
"""Ends the title of a plan that has only stock types, chosen by measured errors."""

DEFAULT_COVERAGE: Mapping[bool, str] = {False: SCALE, True: MEASURED}
"""With an imatrix or without -> the coverage where the user's options ask for none."""


def _keywords(names: Sequence[str], separator: str = ", ") -> str:
    return separator.join(f"`{name}`" for name in names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the user asked for; every field is checked on construction (:class:`BadOptionError`).

    ``tensor_types`` holds (regular expression, type) pairs (:mod:`q4hifi.plan.tensor_patterns`): the first
    that is found in a tensor's name decides its type. None leaves a choice to the recipe and the model's
    scale.

    ``target_size`` (bytes of the file), ``target_bpw`` (bits a weight) and ``like`` (a recipe, whose size
    counts) are budgets of measured coverage, ``stock`` keeps it to types that stock llama.cpp loads, and
    ``sensitivities`` is a file that says what an error in each tensor costs, ``calibrate`` a text to
    measure that on. ``refine`` None is where no other program's bytes are to be met: for Q4_HIFI.
    """

    type: str = "Q4_HIFI"
    layout: str = SPLIT
    outliers: int | None = None
    ffn_down_coverage: float | None = None
    minimal: bool = False
    tensor_types: TensorTypes = ()
    output_tensor_type: str | None = None
    token_embedding_type: str | None = None
    leave_output_tensor: bool = False
    pure: bool = False
    no_fallback: bool = False
    coverage: str | None = None
    target_size: int | None = None
    target_bpw: float | None = None
    like: str | None = None
    stock: bool = False
    sensitivities: str | os.PathLike[str] | None = None
    calibrate: str | os.PathLike[str] | None = None
    refine: bool | None = None

    def __post_init__(self) -> None:
        """Check every field, and that they fit together."""
        recipe = self.recipe
        named = [kind for kind in (self.output_tensor_type, self.token_embedding_type) if kind is not None]
        kinds = {tensor_type(kind, codec=False) for kind in named}
        kinds |= {_checked_rule(pattern, kind) for pattern, kind in self.tensor_types}
        if self.layout not in LAYOUTS:
            raise BadOptionError(f"unknown layout {self.layout!r}; choose one of {', '.join(LAYOUTS)}")
        if self.outliers is not None and self.outliers not in range(MAX_OUTLIERS + 1):
            raise BadOptionError(f"`outliers` is {self.outliers}; choose 0 to {MAX_OUTLIERS} a block")
        if self.ffn_down_coverage is not None and not 0 <= self.ffn_down_coverage <= 1:
            raise BadOptionError(f"`ffn_down_coverage` is {self.ffn_down_coverage}; choose 0 to 1")
        if recipe.default is None and kinds:
            raise BadOptionError("COPY changes no tensor's type; leave out the options that name types")
        if recipe.default != Q4_HIFI and (self.minimal or self.ffn_down_coverage is not None):
            raise BadOptionError(f"`minimal` and `ffn_down_coverage` are for type Q4_HIFI, not {recipe.name}")
        if self.outliers is not None and Q4_HIFI not in {recipe.default, *kinds}:
            raise BadOptionError(f"`outliers` is for Q4_HIFI, and {recipe.name} makes no such tensor")
        self._check_coverage()

    def _check_coverage(self) -> None:
        if self.coverage not in (None, *COVERAGES):
            raise BadOptionError(f"unknown coverage {self.coverage!r}; choose one of {', '.join(COVERAGES)}")
        measured, by_scale = self._only_measured, self._only_scale
        if self.recipe.default != Q4_HIFI and (self.coverage is not None or measured):
            what = _keywords(measured) or "`coverage`"
            raise BadOptionError(f"{what}: for type Q4_HIFI, and {self.recipe.name} is a fixed mix")
        if measured and (self.coverage == SCALE or by_scale):
            raise BadOptionError(
                f"{_keywords(measured)}: for `coverage='measured'`, and not with "
                + (_keywords(by_scale) or "`coverage='scale'`")
            )
        if self.coverage == MEASURED and by_scale:
            raise BadOptionError(
                f"{_keywords(by_scale)}: not for `coverage='measured'`, which decides by errors"
            )
        for rivals in (("target_size", "target_bpw", "like"), ("sensitivities", "calibrate")):
            given = [name for name in measured if name in rivals]
            if len(given) > 1:
                raise BadOptionError(f"{_keywords(given, ' and ')} cannot go together; choose one")
        if self.target_size is not None and self.target_size <= 0:
            raise BadOptionError(f"`target_size` is {self.target_size}; give a number of bytes")
        if self.target_bpw is not None and not 0 < self.target_bpw < inf:
            raise BadOptionError(f"`target_bpw` is {self.target_bpw}; give a number of bits above zero")
        if self.like is not None and find_recipe(self.like).default in (None, Q4_HIFI):
            raise BadOptionError(f"`like` is {self.like}; name a recipe whose size is fixed, such as Q4_K_M")

    @property
    def _only_measured(self) -> list[str]:
        """The names of the options given that mean something to measured coverage only."""
        names = ("target_size", "target_bpw", "like", "stock", "sensitivities", "calibrate")
        return [name for name in names if getattr(self, name) not in (None, False)]

    @property
    def _only_scale(self) -> list[str]:
        """The names of the options given that mean something to the table of scales only."""
        names = ("outliers", "ffn_down_coverage", "minimal", "pure")
        return [name for name in names if getattr(self, name) not in (None, False)]

    def is_measured(self, has_imatrix: bool) -> bool:
        """Whether measured errors decide what the tensors become."""
        if self.recipe.default != Q4_HIFI or self._only_scale:
            return False
        default = MEASURED if self._only_measured else DEFAULT_COVERAGE[has_imatrix]
        return (self.coverage or default) == MEASURED

    @property
    def is_refined(self) -> bool:
        """Whether blocks are searched for beyond ggml's encoders."""
        return self.recipe.default == Q4_HIFI if self.refine is None else self.refine

    @property
    def title(self) -> str:
        """The recipe's name, or where only stock types are taken, the size that they are for.

        ``Q4_K_M-measured`` is within the size of Q4_K_M, but its tensors have other types than Q4_K_M's.
        """
        if not self.stock:
            return self.recipe.name
        if self.like is not None:
            return find_recipe(self.like).name + MEASURED_NAME
        if self.target_bpw is not None:
            return f"{self.target_bpw:g}bpw{MEASURED_NAME}"
        if self.target_size is not None:
            return short_size(self.target_size) + MEASURED_NAME
        return f"Q4{MEASURED_NAME}"

    @property
    def recipe(self) -> Recipe:
        """The recipe that ``type`` names."""
        return find_recipe(self.type)

    def scale(self, n_params: int) -> Scale:
        """Return the scale for a model of that many parameters, with the user's numbers put in."""
        scale = scale_for(n_params, minimal=self.minimal)
        if self.outliers is not None:
            scale = replace(scale, outliers=self.outliers)
        if self.ffn_down_coverage is not None:
            scale = replace(scale, ffn_down_coverage=self.ffn_down_coverage)
        return scale


def _checked_rule(pattern: str, kind: str) -> TensorType:
    """The type of a rule whose pattern and type are sound."""
    compile_pattern(pattern)
    try:
        return tensor_type(kind, codec=False)  # what cannot be encoded can be kept
    except BadOptionError as error:
        raise BadOptionError(f"--tensor-type {pattern}={kind}: {error}") from None
