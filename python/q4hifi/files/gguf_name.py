"""The ending of the names of GGUF files, in upper or lower case."""

from __future__ import annotations

SUFFIX = ".gguf"


def is_gguf_name(name: str) -> bool:
    """Return whether a file's name ends as the names of GGUF files do."""
    return name.lower().endswith(SUFFIX)


def gguf_stem(name: str) -> str:
    """Return a file's name without the ending of GGUF files."""
    return name[: -len(SUFFIX)] if is_gguf_name(name) else name
