"""An overview of a model file: its metadata, its tensors and, if it is damaged, its faults."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import isfinite
from typing import Any

from ..errors import Q4HifiError
from ..formats.gguf_constants import GGUFValueType, LlamaFileType
from ..formats.layout import FILE_TYPE, FORK, ShapedTensor
from ..formats.tensor_names import role_of
from ..gguf_io.metadata import Metadata
from ..gguf_io.survey import Survey, survey
from .model_file import ModelFile


@dataclass(frozen=True, slots=True)
class ListedTensor(ShapedTensor):
    """A tensor of a file; ``shape`` has the row length first, ``outliers`` is per block.

    ``nbytes`` is None if its type is unknown. ``problem`` says why its data cannot be read, or is "".
    """

    type: str
    outliers: int
    nbytes: int | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Overview:
    """The header of a model as data; no weights are read.

    ``problems`` are the faults of a file that cannot be opened as a model. The other fields then contain what
    could be read, and the companions of Q4_HIFI tensors are listed as tensors of their own.
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
        """Read the overview of a file, which may be damaged.

        Raises :class:`Q4HifiError` where nothing can be read.
        """
        try:
            with ModelFile.open(path) as model:
                return cls.of(model)
        except Q4HifiError as fault:
            return cls.of_damaged(survey(path), fault)

    @classmethod
    def of(cls, model: ModelFile) -> Overview:
        """Return the overview of an open model."""
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
        """Return the overview of a damaged file that could not be opened because of ``fault``."""
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
        """Number of weights in all tensors."""
        return sum(t.n_elements for t in self.tensors)

    @property
    def n_bytes(self) -> int:
        """Bytes of data in all tensors of known types."""
        return sum(t.nbytes or 0 for t in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data per weight, over the whole model."""
        return 8 * self.n_bytes / max(1, self.n_params)

    def as_dict(self) -> dict[str, Any]:
        """Return the overview in JSON types. Arrays of metadata become text with their length and type."""
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
        """The usual name of ``general.file_type``, such as Q4_K_M; or Q4_HIFI and its layout.

        The tensors may have other types: see :func:`q4hifi.plan.mix_name.mix_name`.
        """
        number = self.metadata.get("general.file_type")
        if self.layout is not None:
            return f"Q4_HIFI, {self.layout} layout"
        if not isinstance(number, int):
            return "no file type"
        names = {int(t): t.name.removeprefix("MOSTLY_").removeprefix("ALL_") for t in LlamaFileType}
        known = names.get(number) if number != FILE_TYPE[FORK] else None
        return known or f"file type {number}"


def shown_value(metadata: Metadata, key: str) -> Any:
    """Return a value of metadata as a JSON type.

    An array becomes text with its length and type; NaN and infinity, which JSON does not have, become text.
    """
    length = metadata.array_length(key)
    if length is None:
        value = metadata[key]
        return str(value) if isinstance(value, float) and not isfinite(value) else value
    kind = metadata.element_type(key) or GGUFValueType.ARRAY
    return f"array of {length} {kind.name.lower()}"
