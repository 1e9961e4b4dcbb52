"""What the types of a model file are called together: a recipe's name, or the share of each type."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..codec.overview import ListedTensor, Overview
from ..errors import Q4HifiError
from ..formats.layout import Format, ShapedTensor
from ..formats.tensor_names import processing_order
from ..formats.types import TYPES
from ..gguf_io.header import FILE_TYPE_KEY
from .model_shape import ModelShape
from .options import TypeOptions
from .recipes import find_recipe, is_recipe
from .type_rules import choose_types

LEAST_SHARE = 0.01
"""The least share of the bytes of a type that is named."""


@dataclass(frozen=True, slots=True)
class _StoredTensor(ShapedTensor):
    format: Format


def mix_name(overview: Overview) -> str:
    """Return the recipe of ``general.file_type``, such as Q4_K_M, or the types' shares of all bytes.

    The shares are returned if the recipe gives other types to the tensors than the file has. Programs that
    choose types tensor by tensor write the recipe that is most similar.
    """
    if overview.layout is not None or not _has_another_mix(overview):
        return overview.file_type
    sizes: Counter[str] = Counter()
    for tensor in overview.tensors:
        sizes[tensor.type] += tensor.nbytes or 0
    shares = [(size / max(1, sizes.total()), kind) for kind, size in sizes.most_common()]
    named = [f"{share:.0%} {kind}" for share, kind in shares if share >= LEAST_SHARE]
    mixed = "mixed: " * (len(named) > 1)
    return f"{mixed}{', '.join(named)} (general.file_type is {overview.file_type})"


def _has_another_mix(overview: Overview) -> bool:
    """Whether a recipe is named that gives other types. False if that cannot be known."""
    number = overview.metadata.get(FILE_TYPE_KEY)
    if not is_recipe(str(number)) or not all(t.type in TYPES for t in overview.tensors):
        return False
    recipe = find_recipe(str(number))
    if recipe.default is None or not recipe.default.quantized:
        return False
    # a recipe counts tensors in the order of writing: llama-quantize's, or the source's for split files
    orders = (sorted(overview.tensors, key=lambda t: processing_order(t.name)), overview.tensors)
    try:
        return not any(
            _chosen(tensors, overview, recipe.name, has_imatrix) == [t.type for t in tensors]
            for tensors in orders
            for has_imatrix in (True, False)
        )
    except Q4HifiError:  # the metadata do not say enough
        return False


def _chosen(tensors: Sequence[ListedTensor], overview: Overview, recipe: str, has_imatrix: bool) -> list[str]:
    """The type that a recipe gives to each tensor."""
    stored = [_StoredTensor(t.name, t.shape, Format(TYPES[t.type], t.outliers)) for t in tensors]
    shape = ModelShape.from_metadata(overview.metadata)
    choices = choose_types(stored, shape, TypeOptions(recipe), has_imatrix=has_imatrix)
    return [choice.type.name for choice in choices]
