"""Whether an importance matrix was made from a given model: names, layers and lengths of its entries."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from math import prod
from typing import Protocol

from ..errors import BadFileError
from ..formats.tensor_names import is_quantizable, layer_of, role_of
from .file import Importance

UNSEEN = frozenset({"token_embd", "output", "lm_head"})
"""Roles of matrices that llama-imatrix leaves out."""

NEXTN = ".nextn."
"""In names of the layers that predict further tokens, which llama-imatrix does not run."""

LEAST_SHARE = 0.25
"""Of the matrices in the layers, those that an imatrix of the model has entries of."""


class ShapedTensor(Protocol):
    """What is read of a model's tensor; ``shape`` has the row length first."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions, row length first."""


def check_fit(
    importance: Importance,
    tensors: Mapping[str, ShapedTensor],
    architecture: str,
    *,
    model: str,
    allow_missing: bool = False,
) -> None:
    """Check that an importance matrix is of the model whose ``tensors`` are given by name.

    It counts as another's where it names less than :data:`LEAST_SHARE` of the matrices in the layers, where
    the model lacks more than half of the tensors that it names, or where it ends at another layer. Single
    matrices may lack an entry: llama-imatrix has none of embeddings, of layers that predict further tokens
    and of experts that no token reached, and programs fuse and split matrices. The lengths of the entries
    that are used must agree, even with ``allow_missing``.

    Raises :class:`BadFileError`; ``model`` is the model's name in its message.
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
    """Why entries of these names are not of the model; it ends where the model's name follows."""
    ours, theirs = _layers(tensors), _layers(known)
    unrun = {n for layers in ours.values() for names in layers.values() for n in _unless_run(names)}
    inside = [name for name in matrices if role_of(name) not in UNSEEN and name not in unrun]
    covered = sum(name in known for name in inside)
    if covered < LEAST_SHARE * len(inside):
        return f"its {len(known)} entries name {covered} of the {len(inside)} matrices in the layers of"
    strange = [name for name in known if name not in tensors]
    if 2 * len(strange) > len(known):
        return f"{len(strange)} of its {len(known)} entries, such as {min(strange)}, are of no tensor of"
    wide = _layers(name for name in inside if len(matrices[name]) < 3)
    for prefix, layers in ours.items():
        numbers = theirs.get(prefix, {})
        if numbers and max(numbers) > max(layers):
            return f"its entries go up to {prefix}blk.{max(numbers)}, past the last layer of"
        run = sorted(number for number, names in layers.items() if not _unless_run(names))
        first = run[: len(numbers)]
        dense = [wide[prefix][i] for i in first if prefix in wide and i in wide[prefix]]
        complete = len(dense) == len(first) and all(name in known for names in dense for name in names)
        if numbers and complete and sorted(numbers) == first and first != run:
            return f"its entries end at {prefix}blk.{max(numbers)}, before the last layer of"
    return None


def _unless_run(names: list[str]) -> list[str]:
    """The names of a layer's tensors if llama-imatrix does not run it, else none."""
    return names if any(NEXTN in name for name in names) else []


def _layers(names: Iterable[str]) -> dict[str, dict[int, list[str]]]:
    """What stands before "blk." in a name -> number of a layer -> its names."""
    found: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in names:
        number = layer_of(name)
        if number is not None:
            found[name.partition("blk.")[0]][number].append(name)
    return found
