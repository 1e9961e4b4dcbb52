"""Pairs of metadata that a user sets, such as ``tokenizer.ggml.add_bos_token=bool:false``.

The spelling is that of llama.cpp's ``--override-kv``: KEY=TYPE:VALUE, where TYPE is int, float, bool or str.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from ..errors import BadOptionError
from ..formats.gguf_constants import GGUFValueType
from ..gguf_io.metadata import Metadata
from ..wording import shortened

BOOLS: Mapping[str, bool] = {"true": True, "false": False}

FIXED = ("general.alignment", "split.", "q4_hifi.", "GGUF.")
"""Beginnings of the keys that describe the file itself; another value would damage it."""

_INTEGERS = frozenset(
    {
        *(GGUFValueType.UINT8, GGUFValueType.INT8, GGUFValueType.UINT16, GGUFValueType.INT16),
        *(GGUFValueType.UINT32, GGUFValueType.INT32, GGUFValueType.UINT64, GGUFValueType.INT64),
    }
)
_FLOATS = frozenset({GGUFValueType.FLOAT32, GGUFValueType.FLOAT64})


def _float(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError(text)
    return value


@dataclass(frozen=True, slots=True)
class _Kind:
    """A TYPE: how its values are read, and the types of GGUF that can hold them, the usual one first."""

    read: Callable[[str], Any]
    usual: GGUFValueType
    types: frozenset[GGUFValueType]


KINDS: Mapping[str, _Kind] = {
    "int": _Kind(int, GGUFValueType.UINT32, _INTEGERS),
    "float": _Kind(_float, GGUFValueType.FLOAT32, _FLOATS),
    "bool": _Kind(BOOLS.__getitem__, GGUFValueType.BOOL, frozenset({GGUFValueType.BOOL})),
    "str": _Kind(str, GGUFValueType.STRING, frozenset({GGUFValueType.STRING})),
}


@dataclass(frozen=True, slots=True)
class MetadataOverride:
    """A pair to set. It keeps the type of a pair that the file has, where that can hold the value."""

    key: str
    value: Any
    kind: str

    @classmethod
    def parse(cls, text: str) -> MetadataOverride:
        """Read KEY=TYPE:VALUE.

        Raises :class:`BadOptionError` for anything else, and for keys in :data:`FIXED`.
        """
        key, equals, typed = text.partition("=")
        name, colon, value = typed.partition(":")
        wrong = f"`override_kv` {shortened(text)!r}"
        if not (key and equals and colon and name in KINDS):
            raise BadOptionError(f"{wrong}: write KEY=TYPE:VALUE, where TYPE is {', '.join(KINDS)}")
        if key.startswith(FIXED):
            raise BadOptionError(f"{wrong}: {key} describes the file itself and cannot be set; leave it out")
        try:
            return cls(key, KINDS[name].read(value), name)
        except (ValueError, KeyError) as cause:
            raise BadOptionError(f"{wrong}: {shortened(value)!r} is no {name}") from cause

    def set_in(self, metadata: Metadata) -> Metadata:
        """Return the metadata with this pair.

        Raises :class:`BadOptionError` if the value does not fit the type of the pair that there is.
        """
        kind = KINDS[self.kind]
        found = metadata.value_type(self.key) if self.key in metadata else None
        try:
            return metadata.with_value(self.key, self.value, found if found in kind.types else kind.usual)
        except BadOptionError:
            if self.kind != "int" or found in kind.types:
                raise
        return metadata.with_value(self.key, self.value, GGUFValueType.INT64)  # negative, or 2^32 and more


def overridden(metadata: Metadata, overrides: Iterable[MetadataOverride]) -> Metadata:
    """Return the metadata with the pairs ``overrides``."""
    for override in overrides:
        metadata = override.set_in(metadata)
    return metadata
