"""Writes the types of a plan to a file for the option ``--tensor-type-file`` of q4hifi and llama-quantize."""

from __future__ import annotations

import os
import re
import string
from collections.abc import Sequence

from ..files.output_file import new_file
from .plan import Plan


def write_tensor_types(
    plan: Plan,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    sources: Sequence[str | os.PathLike[str]] = (),
) -> None:
    """Write a line ``^NAME$=TYPE`` for each tensor that ``plan`` quantizes.

    If no tensor is Q4_HIFI, llama-quantize writes the same file as q4hifi when it gets this file, the same
    importance matrix and the plan's file type as its TYPE.

    ``path`` must not be one of the files ``sources``. Raises :class:`BadOptionError` for a destination that
    cannot be used, and :class:`Q4HifiError` where the disk fails.
    """
    lines = [
        f"^{_escaped(t.name)}$={t.type.name.lower()}\n"
        for t in plan.tensors
        if t.type.quantized and not t.copied
    ]
    with new_file(path, overwrite=overwrite, sources=sources) as file:
        file.write("".join(lines).encode())


def _escaped(name: str) -> str:
    """Return a regular expression for exactly this name.

    Capitals become codes, because patterns are lowered when they are read. Bytes that are not UTF-8, which
    Python reads as surrogates, become any character.
    """
    return re.sub(r"[^a-z0-9_\-\x80-\ud7ff\ue000-\U0010ffff]", _escape, name)


def _escape(character: re.Match[str]) -> str:
    c = character[0]
    if "\ud800" <= c <= "\udfff":
        return "."
    return "\\" + c if c in string.punctuation and c != "=" else f"\\x{ord(c):02x}"
