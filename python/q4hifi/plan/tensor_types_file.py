"""Writing a plan's types as ``--tensor-type-file`` reads them, here and in llama-quantize."""

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
    """Write a line ``^NAME$=TYPE`` for each tensor that ``plan`` encodes.

    llama-quantize with this file, the same imatrix and the plan's file type as its TYPE makes the same
    file, if no tensor is Q4_HIFI. ``sources`` are files that ``path`` must not be. Raises
    :class:`BadOptionError` for a destination that cannot be used.
    """
    lines = [
        f"^{_escaped(t.name)}$={t.type.name.lower()}\n"
        for t in plan.tensors
        if t.type.quantized and not t.copied
    ]
    with new_file(path, overwrite=overwrite, sources=sources) as file:
        file.write("".join(lines).encode())


def _escaped(name: str) -> str:
    """A pattern that matches this name; capitals, which are lowered in patterns, as codes."""
    return re.sub(r"[^a-z0-9_\-\x80-\U0010ffff]", _escape, name)


def _escape(character: re.Match[str]) -> str:
    c = character[0]
    return "\\" + c if c in string.punctuation and c != "=" else f"\\x{ord(c):02x}"
