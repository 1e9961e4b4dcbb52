"""What is in a model file, at a glance."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import isfinite, prod
from typing import Any

from ..errors import Q4HifiError
from ..formats.gguf_constants import GGUFValueType, LlamaFileType
from ..formats.layout import FILE_TYPE, FORK
from ..formats.tensor_names import role_of
from ..gguf_io.metadata import Metadata
from ..gguf_io.survey import Survey, survey
from .model_file import ModelFile


@dataclass(frozen=True, slots=True)
class ListedTensor:
    """A tensor of a file; ``shape`` has the row length first.

    ``nbytes`` is None where its type is not known; ``problem`` says why it cannot be read, "" where it can.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    outliers: int
    nbytes: int | None
    problem: str = ""

    @property
    def n_elements(self) -> int:
        """Number of weights."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Overview:
    """A model file's identity, metadata and tensors; nothing of it is computed from weights.

    ``problems`` are messages about a file that cannot be read as a model: then the rest is what could be
    read of it, with the companions of Q4_HIFI tensors listed as tensors.
    """

    paths: tuple[str, ...]
    file_bytes: int
    gguf_version: int
    alignment: int
    layout: str | None
    metadata: Metadata
    tensors: tuple[ListedTensor, ...]
    problems: tuple[str, ...] = ()

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Overview:
        """Look into a file, whether it is sound or not.

        Raises :class:`Q4HifiError` where nothing of it can be read.
        """
        try:
            with ModelFile.open(path) as model:
                return cls.of(model)
        except Q4HifiError as fault:
            return cls.of_damaged(survey(path), fault)

    @classmethod
    def of(cls, model: ModelFile) -> Overview:
        """Look at an open model."""
        return cls(
            tuple(str(path) for path in model.paths),
            model.n_bytes,
            model.gguf.version,
            model.gguf.alignment,
            model.layout,
            model.gguf.metadata,
            tuple(
                ListedTensor(t.name, t.shape, t.type.name, t.outliers, t.nbytes)
                for t in model.tensors.values()
            ),
        )

    @classmethod
    def of_damaged(cls, found: Survey, fault: Q4HifiError) -> Overview:
        """Look at what was found of a file that cannot be read for ``fault``."""
        return cls(
            (str(found.path),),
            found.header.file_size,
            found.header.version,
            found.header.alignment,
            None,
            found.metadata,
            tuple(ListedTensor(t.name, t.shape, t.type_name, 0, t.nbytes, t.problem) for t in found.tensors),
            found.problems or (str(fault),),
        )

    @property
    def n_params(self) -> int:
        """Number of weights of all tensors."""
        return sum(t.n_elements for t in self.tensors)

    @property
    def n_bytes(self) -> int:
        """Bytes of data of all tensors whose type is known."""
        return sum(t.nbytes or 0 for t in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data a weight, over the whole model."""
        return 8 * self.n_bytes / max(1, self.n_params)

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain JSON types, arrays of metadata by their lengths."""
        return {
            "paths": list(self.paths),
            "file_bytes": self.file_bytes,
            "gguf_version": self.gguf_version,
            "alignment": self.alignment,
            "layout": self.layout,
            "n_params": self.n_params,
            "bits_per_weight": self.bits_per_weight,
            "metadata": {key: shown_value(self.metadata, key) for key in self.metadata},
            "tensors": [
                {
                    "name": t.name,
                    "role": role_of(t.name),
                    "shape": list(t.shape),
                    "type": t.type,
                    "outliers": t.outliers,
                    "bytes": t.nbytes,
                }
                | ({"problem": t.problem} if t.problem else {})
                for t in self.tensors
            ],
            "problems": list(self.problems),
        }

    @property
    def file_type(self) -> str:
        """What the file says it is, as people call it: Q4_K_M, or Q4_HIFI and its layout."""
        number = self.metadata.get("general.file_type")
        if self.layout is not None:
            return f"Q4_HIFI, {self.layout} layout"
        if not isinstance(number, int):
            return "no file type"
        names = {int(t): t.name.removeprefix("MOSTLY_").removeprefix("ALL_") for t in LlamaFileType}
        known = names.get(number) if number != FILE_TYPE[FORK] else None
        return known or f"file type {number}"


def shown_value(metadata: Metadata, key: str) -> Any:
    """A value to show: an array by its kind and length, a float that JSON lacks as text."""
    length = metadata.array_length(key)
    if length is None:
        value = metadata[key]
        return str(value) if isinstance(value, float) and not isfinite(value) else value
    kind = metadata.element_type(key) or GGUFValueType.ARRAY
    return f"array of {length} {kind.name.lower()}"
