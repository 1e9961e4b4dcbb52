"""Recipes as a table: the type of each tensor role in Q4_HIFI and in llama.cpp's mixes, such as Q4_K_M.

:mod:`q4hifi.plan.type_rules` applies a recipe to the tensors of a model. The mixes are those of llama.cpp's
function ``llama_tensor_get_type``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import takewhile

from ..errors import BadOptionError
from ..formats.gguf_constants import LlamaFileType
from ..formats.types import BF16, F16, F32, Q4_HIFI, TYPES, TensorType

Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 = (TYPES[name] for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"))
Q2_K, Q3_K, Q4_K, Q5_K, Q6_K = (TYPES[f"Q{bits}_K"] for bits in (2, 3, 4, 5, 6))
IQ4_NL, IQ4_XS = TYPES["IQ4_NL"], TYPES["IQ4_XS"]


def _all(i: int, n: int) -> bool:
    return True


def _first_two(i: int, n: int) -> bool:
    return i < 2


def _first_four(i: int, n: int) -> bool:
    return i < 4


def _first_eighth(i: int, n: int) -> bool:
    return i < n // 8


def _first_sixteenth(i: int, n: int) -> bool:
    return i < n // 16


def _more_bits(i: int, n: int) -> bool:
    """The first and the last eighth, and every third in between (llama.cpp's ``use_more_bits``)."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


Bumps = tuple[tuple[Callable[[int, int], bool], TensorType], ...]
"""Exceptions to a recipe's default type: (applies, type).

``applies(i, n)`` is whether tensor ``i`` (from 0) of the ``n`` tensors of a role takes ``type``. The first
exception that applies decides.
"""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A named mix of tensor types.

    ``file_type``
        ``general.file_type`` of the output; None if the layout (Q4_HIFI) or the source (COPY) decides it.
    ``default``
        The type of all matrices to which no other field applies; None copies every tensor.
    ``attn_v``, ``ffn_down``, ``attn_output``
        Exceptions for matrices of these roles.
    ``attn_v_grouped``
        The type of attn_v in models with at least four query heads per key-value head.
    ``ffn_down_imatrix``, ``ffn_down_plain``
        Further exceptions for ffn_down, with an importance matrix and without one.
    ``ffn_down_falcon``, ``attn_output_falcon``
        Replace the other fields of the role in the architecture falcon.
    ``attn_output_of_8_experts``
        Replaces ``attn_output`` in models with eight experts.
    ``requires_imatrix``
        Whether matrices that take ``default`` need an importance matrix.
    """

    name: str
    file_type: int | None
    default: TensorType | None
    attn_v: Bumps = ()
    attn_v_grouped: TensorType | None = None
    ffn_down: Bumps = ()
    ffn_down_falcon: Bumps | None = None
    ffn_down_imatrix: Bumps = ()
    ffn_down_plain: Bumps = ()
    attn_output: TensorType | None = None
    attn_output_falcon: TensorType | None = None
    attn_output_of_8_experts: TensorType | None = None
    requires_imatrix: bool = False

    def chooses_by_layer(self, has_imatrix: bool) -> bool:
        """Return whether a matrix's type depends on its layer and on the number of layers in the model."""
        by_imatrix = self.ffn_down_imatrix if has_imatrix else self.ffn_down_plain
        bumps = (*self.attn_v, *self.ffn_down, *by_imatrix)
        return self.default == Q4_HIFI or any(applies is not _all for applies, _ in bumps)


_F = LlamaFileType
_RECIPES = (
    Recipe("Q4_HIFI", None, Q4_HIFI),
    Recipe(
        "Q4_K_S",
        _F.MOSTLY_Q4_K_S,
        Q4_K,
        attn_v=((_first_four, Q5_K),),
        ffn_down=((_first_eighth, Q5_K),),
        ffn_down_falcon=(),
        attn_output_of_8_experts=Q5_K,
    ),
    Recipe(
        "Q4_K_M",
        _F.MOSTLY_Q4_K_M,
        Q4_K,
        attn_v=((_more_bits, Q6_K),),
        ffn_down=((_more_bits, Q6_K),),
        ffn_down_falcon=((_first_sixteenth, Q6_K), (_more_bits, Q5_K)),
        attn_output_of_8_experts=Q5_K,
    ),
    Recipe("Q5_K_S", _F.MOSTLY_Q5_K_S, Q5_K),
    Recipe(
        "Q5_K_M",
        _F.MOSTLY_Q5_K_M,
        Q5_K,
        attn_v=((_more_bits, Q6_K),),
        ffn_down=((_more_bits, Q6_K),),
    ),
    Recipe(
        "Q2_K",
        _F.MOSTLY_Q2_K,
        Q2_K,
        attn_v=((_all, Q3_K),),
        attn_v_grouped=Q4_K,
        ffn_down=((_all, Q3_K),),
        attn_output=Q3_K,
        attn_output_of_8_experts=Q5_K,
    ),
    Recipe(
        "Q2_K_S",
        _F.MOSTLY_Q2_K_S,
        Q2_K,
        attn_v_grouped=Q4_K,
        ffn_down=((_first_eighth, Q4_K),),
        requires_imatrix=True,
    ),
    Recipe("Q3_K_S", _F.MOSTLY_Q3_K_S, Q3_K, attn_output_of_8_experts=Q5_K),
    Recipe(
        "Q3_K_M",
        _F.MOSTLY_Q3_K_M,
        Q3_K,
        attn_v=((_first_two, Q5_K), (_all, Q4_K)),
        ffn_down=((_first_sixteenth, Q5_K), (_all, Q4_K)),
        ffn_down_falcon=((_first_sixteenth, Q5_K), (_more_bits, Q4_K)),
        attn_output=Q4_K,
        attn_output_of_8_experts=Q5_K,
    ),
    Recipe(
        "Q3_K_L",
        _F.MOSTLY_Q3_K_L,
        Q3_K,
        attn_v=((_all, Q5_K),),
        ffn_down=((_all, Q5_K),),
        ffn_down_falcon=((_all, Q4_K),),
        attn_output=Q5_K,
        attn_output_falcon=Q4_K,
    ),
    Recipe("Q6_K", _F.MOSTLY_Q6_K, Q6_K),
    Recipe("Q8_0", _F.MOSTLY_Q8_0, Q8_0),
    Recipe("Q4_0", _F.MOSTLY_Q4_0, Q4_0, ffn_down_imatrix=((_first_eighth, Q4_1),)),
    Recipe("Q4_1", _F.MOSTLY_Q4_1, Q4_1),
    Recipe("Q5_0", _F.MOSTLY_Q5_0, Q5_0, ffn_down_imatrix=((_first_eighth, Q5_1),)),
    Recipe("Q5_1", _F.MOSTLY_Q5_1, Q5_1),
    *(
        Recipe(
            kind.name,
            file_type,
            kind,
            attn_v_grouped=Q5_K,
            ffn_down_plain=((_first_eighth, Q5_K),),
            attn_output_of_8_experts=Q5_K,
        )
        for kind, file_type in ((IQ4_NL, _F.MOSTLY_IQ4_NL), (IQ4_XS, _F.MOSTLY_IQ4_XS))
    ),
    Recipe("F16", _F.MOSTLY_F16, F16),
    Recipe("BF16", _F.MOSTLY_BF16, BF16),
    Recipe("F32", _F.ALL_F32, F32),
    Recipe("COPY", None, None),
)
RECIPES: Mapping[str, Recipe] = {recipe.name: recipe for recipe in _RECIPES}
"""Name -> recipe."""

ALIASES: Mapping[str, str] = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
"""llama-quantize's short names of recipes."""


_BY_FILE_TYPE = {str(int(r.file_type)): r for r in _RECIPES if r.file_type is not None}


def find_recipe(name: str) -> Recipe:
    """Return the recipe called ``name``: in any case, an alias, or a ``general.file_type`` as digits.

    Raises :class:`BadOptionError`, which lists the recipes, if there is none.
    """
    found = _find(str(name))
    if found is None:
        hint = type_hint(str(name))
        raise BadOptionError(
            f"unknown type {name!r}; {f'{hint} ' if hint else ''}choose one of {', '.join(RECIPES)}"
        )
    return found


def is_recipe(name: str) -> bool:
    """Return whether :func:`find_recipe` finds a recipe called ``name``."""
    return _find(name) is not None


def _find(name: str) -> Recipe | None:
    key = name.strip().upper()
    return RECIPES.get(ALIASES.get(key, key)) or _BY_FILE_TYPE.get(key)


def type_hint(name: str) -> str:
    """Return a hint for the error message about ``name``, which is not the name of a recipe; "" for none."""
    supported = {_letters(recipe): recipe for recipe in RECIPES}
    unsupported = {_letters(kind): kind for kind in _UNSUPPORTED.values()}
    unsupported |= {_letters(kind.removesuffix("_MOE")): kind for kind in _UNSUPPORTED.values()}
    key = _letters(_UNSUPPORTED.get(name.strip(), name))
    if key in unsupported:
        return f"llama-quantize has {unsupported[key]}, but q4hifi cannot write it."
    if key.isdecimal():
        return ""

    def similarity(word: str) -> tuple[float, int]:
        same_start = takewhile(lambda pair: pair[0] == pair[1], zip(word, key, strict=False))
        return SequenceMatcher(None, word, key).ratio(), len(list(same_start))

    best = max(map(similarity, supported))
    similar = [recipe for word, recipe in supported.items() if similarity(word) == best]
    return f"did you mean {' or '.join(similar)}?" if best[0] >= _SIMILAR else ""


def _letters(name: str) -> str:
    """Return only the letters and digits of a name, in upper case."""
    return "".join(c for c in name.upper() if c.isalnum())


_SIMILAR = 0.6
"""The least ratio of :class:`SequenceMatcher` between a mistyped name and a suggestion."""

_UNSUPPORTED = {
    str(int(kind)): kind.name.removeprefix("MOSTLY_")
    for kind in LlamaFileType
    if kind != LlamaFileType.GUESSED and str(int(kind)) not in _BY_FILE_TYPE
}
"""llama-quantize's types without a recipe in q4hifi: ``general.file_type`` as digits -> name."""
