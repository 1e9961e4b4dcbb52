"""Whether an importance matrix was made from a given model: names, layers and lengths of its entries."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from math import prod
from typing import Protocol

from .errors import BadFileError
from .importance import Importance
from .names import is_quantizable, layer_of, role_of

UNSEEN = frozenset({"token_embd", "output", "lm_head"})
"""Roles of matrices that llama-imatrix leaves out."""

NEXTN = ".nextn."
"""In names of the layers that predict further tokens, which llama-imatrix does not run."""


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

    It is of another one where none of its entries is of a matrix in the layers, where the model lacks more
    than half of the tensors that it has entries of, or where it ends at another layer. A matrix without an
    entry is no reason: llama-imatrix knows neither embeddings nor layers that predict further tokens, nor
    experts that no token reached, and programs fuse and split matrices. Where it does name a tensor, the
    lengths must agree, ``allow_missing`` or not.

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
    inside = [name for name in matrices if role_of(name) not in UNSEEN]
    if inside and not any(name in known for name in inside):
        return f"its {len(known)} entries, such as {min(known)}, are of none of the matrices in the layers of"
    strange = [name for name in known if name not in tensors]
    if 2 * len(strange) > len(known):
        return f"{len(strange)} of its {len(known)} entries, such as {min(strange)}, are of no tensor of"
    ours, theirs, wide = _layers(tensors), _layers(known), _layers(n for n in inside if len(matrices[n]) < 3)
    for prefix, layers in ours.items():
        numbers = theirs.get(prefix, {})
        if numbers and max(numbers) > max(layers):
            return f"its entries go up to {prefix}blk.{max(numbers)}, past the last layer of"
        run = sorted(i for i, names in layers.items() if not any(NEXTN in name for name in names))
        first = run[: len(numbers)]
        dense = [wide[prefix][i] for i in first if prefix in wide and i in wide[prefix]]
        complete = len(dense) == len(first) and all(name in known for names in dense for name in names)
        if numbers and complete and sorted(numbers) == first and first != run:
            return f"its entries end at {prefix}blk.{max(numbers)}, before the last layer of"
    return None


def _layers(names: Iterable[str]) -> dict[str, dict[int, list[str]]]:
    """What stands before "blk." in a name -> number of a layer -> its names."""
    found: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in names:
        number = layer_of(name)
        if number is not None:
            found[name.partition("blk.")[0]][number].append(name)
    return found
