"""Checks that an importance matrix was made from a given model, by the names and lengths of its entries."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from math import prod
from typing import Protocol

from ..errors import BadFileError
from ..formats.tensor_names import is_quantizable, role_of, split_at_layer
from ..wording import counted
from .importance import Importance

UNSEEN = frozenset({"token_embd", "output", "lm_head"})
"""Roles of the matrices that llama-imatrix leaves out."""

NEXTN = ".nextn."
"""Part of the names in layers for multi-token prediction. llama-imatrix does not run these layers."""

LEAST_SHARE = 0.25
"""An imatrix of the model has entries for at least this share of the matrices in the layers."""


class ShapedTensor(Protocol):
    """The part of a model's tensor that the check needs."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The dimensions, row length first."""


def check_belongs(
    importance: Importance,
    tensors: Mapping[str, ShapedTensor],
    architecture: str,
    *,
    model: str,
    allow_missing: bool = False,
) -> None:
    """Check that an importance matrix was made from the model with these ``tensors``, given by name.

    It counts as another model's if one of these holds:

    - it has entries for less than :data:`LEAST_SHARE` of the matrices in the layers;
    - more than half of its entries name no tensor of the model;
    - its last layer is not the model's last layer.

    Single matrices may lack an entry. llama-imatrix writes none for embeddings, for layers of multi-token
    prediction and for experts that received no token. Some programs fuse or split matrices.

    ``allow_missing`` skips these checks. The lengths of the entries in use must fit in any case.

    Raises :class:`BadFileError`. ``model`` is the model's name in the message.
    """
    matrices = {name: t.shape for name, t in tensors.items() if is_quantizable(name, t.shape, architecture)}
    for name, shape in matrices.items():
        importance.has_weights(name, shape[0], prod(shape[2:3]))
    reason = None if allow_missing else _of_another_model(importance.names_in_file, matrices, tensors)
    if reason is not None:
        raise BadFileError(
            f"{importance.file}: {reason} {model}; use an imatrix made from this model, or allow it with"
            " `allow_missing_importance=True`"
        )


def _of_another_model(
    known: Collection[str], matrices: Mapping[str, tuple[int, ...]], tensors: Collection[str]
) -> str | None:
    """Return why entries of these names belong to another model, or None if they fit.

    The text ends where the model's name follows.
    """
    ours, theirs = _layers(tensors), _layers(known)
    unrun = {n for layers in ours.values() for names in layers.values() for n in _unless_run(names)}
    inside = [name for name in matrices if role_of(name) not in UNSEEN and name not in unrun]
    covered = sum(name in known for name in inside)
    if covered < LEAST_SHARE * len(inside):
        return (
            f"its {counted(len(known), 'entry names', 'entries name')} {covered} of the"
            f" {counted(len(inside), 'matrix')} in the layers of"
        )
    unknown = [name for name in known if name not in tensors]
    if 2 * len(unknown) > len(known):
        return (
            f"{len(unknown)} of its {counted(len(known), 'entry', 'entries')}, such as {min(unknown)},"
            " name no tensor of"
        )
    wide = _layers(name for name in inside if len(matrices[name]) < 3)
    for prefix, layers in ours.items():
        named = theirs.get(prefix, {})
        if named and max(named) > max(layers):
            return f"its entries go up to {prefix}blk.{max(named)}, past the last layer of"
        run = sorted(layer for layer, names in layers.items() if not _unless_run(names))
        first = run[: len(named)]
        dense = [wide[prefix][i] for i in first if prefix in wide and i in wide[prefix]]
        complete = len(dense) == len(first) and all(name in known for names in dense for name in names)
        if named and complete and sorted(named) == first and first != run:
            return f"its entries end at {prefix}blk.{max(named)}, before the last layer of"
    return None


def _unless_run(names: list[str]) -> list[str]:
    """Return the names of a layer's tensors if llama-imatrix does not run the layer, else an empty list."""
    return names if any(NEXTN in name for name in names) else []


def _layers(names: Iterable[str]) -> dict[str, dict[int, list[str]]]:
    """Group names by layer: the part before "blk." -> layer index -> the names."""
    layers: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in names:
        prefix, layer, _ = split_at_layer(name)
        if layer is not None:
            layers[prefix][layer].append(name)
    return layers
