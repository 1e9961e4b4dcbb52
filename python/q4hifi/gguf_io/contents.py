"""What a GGUF file holds, by its metadata: a model, an importance matrix, a saved comparison."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import BadFileError, UnsupportedModelError
from ..files.file_kinds import IMATRIX_NAME
from ..formats.gguf_constants import Keys

COMPARISON_KEYS = "q4hifi.comparison."
"""The beginning of the keys of a saved comparison."""

COMPARISON_NAME = "a saved comparison"

_TYPES = {
    "imatrix": IMATRIX_NAME,
    "adapter": "an adapter (LoRA) of a model",
    "mmproj": "a projector of images or sound (mmproj)",
    "vocab": "a vocabulary without weights",
}
"""``general.type`` -> what the file holds."""

_NO_WEIGHTS = {
    IMATRIX_NAME: "name a model, and give this file to the option --imatrix",
    COMPARISON_NAME: "name one of the models that were compared",
}
"""What a file without weights holds -> what to do."""


def contents_of(metadata: Mapping[str, Any]) -> str:
    """Return what a GGUF file with these metadata holds, with an article."""
    kind = metadata.get(Keys.General.TYPE)
    if isinstance(kind, str) and kind in _TYPES:
        return _TYPES[kind]
    if any(key.startswith(COMPARISON_KEYS) for key in metadata):
        return COMPARISON_NAME
    architecture = metadata.get(Keys.General.ARCHITECTURE)
    if architecture == "clip":
        return _TYPES["mmproj"]  # its type is missing in old files
    return f"a model ({architecture:.80})" if isinstance(architecture, str) else "a GGUF file of another kind"


def check_has_weights(metadata: Mapping[str, Any], path: Path) -> None:
    """Raise :class:`BadFileError` if the file ``path`` is known not to hold the weights of a model."""
    contents = contents_of(metadata)
    if contents in _NO_WEIGHTS:
        raise BadFileError(f"{path}: this is {contents}, not a model; {_NO_WEIGHTS[contents]}")


def check_is_whole_model(metadata: Mapping[str, Any], path: Path) -> None:
    """Raise :class:`UnsupportedModelError` if the file ``path`` is known to hold only a part of a model."""
    contents = contents_of(metadata)
    if contents in _TYPES.values():
        raise UnsupportedModelError(
            f"{path}: this is {contents}, which does not read a text by itself; 'q4hifi quantize' takes it"
            " without an importance matrix"
        )
