"""Makes the ``--tensor-type`` options with which tensors keep their types, to be suggested to a user."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ..formats.tensor_names import is_quantizable, split_at_layer
from ..formats.types import Q4_HIFI, TensorType
from .tensor_rules import SourceTensor

LONGEST = 300
"""Characters. No longer option text is suggested."""

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_-")


def keep_rules(kept: Iterable[SourceTensor], tensors: Sequence[SourceTensor]) -> str:
    """Return ``--tensor-type`` options with which the tensors ``kept`` keep their types.

    ``tensors`` are all tensors of the model. Returns "" if the options would be longer than :data:`LONGEST`,
    or if a kept tensor is Q4_HIFI.
    """
    names: dict[TensorType, list[str]] = {}
    for tensor in kept:
        names.setdefault(tensor.format.type, []).append(tensor.name)
    rules = []
    for kind, kept_names in names.items():
        others = [
            t.name
            for t in tensors
            if t.format.type != kind and is_quantizable(t.name, t.shape, architecture="")
        ]
        rules.append(f"--tensor-type '{_pattern(kept_names, others)}={kind.name.lower()}'")
    text = " ".join(rules)
    return "" if Q4_HIFI in names or len(text) > LONGEST else text


def _pattern(names: Sequence[str], others: Sequence[str]) -> str:
    """Return a regular expression, short if possible, that matches all ``names`` and none of ``others``."""
    parts = sorted({split_at_layer(name)[2].removeprefix(".").removesuffix(".weight") for name in names})
    for pattern in ("ffn_.*_exps", "|".join(map(_escaped, parts))):
        found = re.compile(pattern).search
        if all(map(found, names)) and not any(map(found, others)):
            return pattern
    return "|".join(f"^{_escaped(name)}$" for name in names)


def _escaped(name: str) -> str:
    """Return a regular expression for a name; unusual characters become ".", which matches any character.

    Capitals must become "." because rules are lowered when they are read, and "=" because it ends a pattern.
    """
    return "".join(c if c in _PLAIN else r"\." if c == "." else "." for c in name)
