"""Saying with ``--tensor-type`` that tensors keep the type that they have."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ..formats.tensor_names import is_quantizable
from ..formats.types import Q4_HIFI, TensorType
from .type_rules import SourceTensor

LONGEST = 300
"""Characters of a rule that a person may be asked to type."""


_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_-")


def keep_rules(kept: Iterable[SourceTensor], tensors: Sequence[SourceTensor]) -> str:
    """Return the options with which ``kept``, of a model's ``tensors``, keep their types.

    "" where there are none that a person would type.
    """
    names: dict[TensorType, list[str]] = {}
    for tensor in kept:
        names.setdefault(tensor.format.type, []).append(tensor.name)
    rules = []
    for kind, mine in names.items():
        others = [
            t.name
            for t in tensors
            if t.format.type != kind and is_quantizable(t.name, t.shape, architecture="")
        ]
        rules.append(f"--tensor-type '{_pattern(mine, others)}={kind.name.lower()}'")
    text = " ".join(rules)
    return "" if Q4_HIFI in names or len(text) > LONGEST else text


def _pattern(names: Sequence[str], others: Sequence[str]) -> str:
    """A regular expression, short if possible, that is found in all ``names`` and in none of ``others``."""
    parts = sorted({re.sub(r"^blk\.\d+\.|\.weight$", "", name) for name in names})
    for pattern in ("ffn_.*_exps", "|".join(map(_escaped, parts))):
        found = re.compile(pattern).search
        if all(map(found, names)) and not any(map(found, others)):
            return pattern
    return "|".join(f"^{_escaped(name)}$" for name in names)


def _escaped(name: str) -> str:
    """A pattern for a name. Rules are read in lower case, and end at "=": "." stands for such letters."""
    return "".join(c if c in _PLAIN else r"\." if c == "." else "." for c in name)
