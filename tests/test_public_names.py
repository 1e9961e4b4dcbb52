"""What a public signature or result mentions is public as well."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import q4hifi

ARRAYS_AND_UNIONS = {
    *("Bytes", "Codes", "Correlations", "Doubles", "Floats", "Logits", "Tokens", "TokensLike", "Wanted"),
    *("ArrayLike", "ModelOrPath", "OnSave", "Parts", "FileOrPath", "FilePath", "TensorTypes", "Text"),
}
"""Names of array types and unions, which the docstrings explain where they are used."""

INTERNAL = {
    "Chunks",
    "ErrorsAt",
    "GgufFile",
    "Rewritten",
    "TensorInfo",
    "Vocabulary",
    "GGUFValueType",
    "Entry",
}
"""Classes that only constructors and helpers of classes mention which users do not call themselves."""


def annotations() -> Iterator[tuple[str, str]]:
    """Where a public name mentions a type, and the type."""
    for name in q4hifi.__all__:
        value = getattr(q4hifi, name)
        members: list[tuple[str, Any]] = [(name, value)]
        if inspect.isclass(value):
            members += [
                (
                    f"{name}.{key}",
                    member.fget if isinstance(member, property) else getattr(member, "__func__", member),
                )
                for key, member in vars(value).items()
                if not key.startswith("_")
            ]
        for where, member in members:
            for text in (getattr(member, "__annotations__", None) or {}).values():
                yield from ((where, word) for word in re.findall(r"\b_?[A-Z]\w*|_core\.\w+", str(text)))


def test_types_in_public_signatures_are_exported() -> None:
    known = {*q4hifi.__all__, *ARRAYS_AND_UNIONS, *INTERNAL}
    known |= {
        *dir(__builtins__),
        "Any",
        "Callable",
        "Collection",
        "Counter",
        "ForwardRef",
        "Iterable",
        "Iterator",
    }
    known |= {"Literal", "Mapping", "NDArray", "Path", "PathLike", "Sequence", "None", "True", "False"}
    hidden = {(where, word) for where, word in annotations() if word not in known}
    assert not hidden
