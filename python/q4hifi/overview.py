"""What is in a model file, at a glance: the ``inspect`` command."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from .gguf_constants import GGUFValueType, LlamaFileType
from .gguf_metadata import Metadata
from .layout import FILE_TYPE, FORK
from .model_file import ModelFile, ModelTensor
from .names import role_of
from .report import new_table, paragraphs, unbroken
from .wording import human_bytes, printable

SHOWN = 60
"""Characters of a metadata value that the table shows."""


@dataclass(frozen=True, slots=True)
class Overview:
    """A model file's identity, metadata and tensors; nothing of it is computed from weights."""

    paths: tuple[str, ...]
    file_bytes: int
    gguf_version: int
    alignment: int
    layout: str | None
    metadata: Metadata
    tensors: tuple[ModelTensor, ...]

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
            tuple(model.tensors.values()),
        )

    @property
    def n_params(self) -> int:
        """Number of weights of all tensors."""
        return sum(t.n_elements for t in self.tensors)

    @property
    def n_bytes(self) -> int:
        """Bytes of data of all tensors."""
        return sum(t.nbytes for t in self.tensors)

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
            "metadata": {key: _value(self.metadata, key) for key in self.metadata},
            "tensors": [
                {
                    "name": t.name,
                    "role": role_of(t.name),
                    "shape": list(t.shape),
                    "type": t.type.name,
                    "outliers": t.outliers,
                    "bytes": t.nbytes,
                }
                for t in self.tensors
            ],
        }

    def tables(self, *, tensors: bool = False) -> RenderableType:
        """Return the tables that the command prints, with every tensor or the totals by type."""
        return paragraphs(
            [self._metadata_table()] if self.metadata else [],
            [self._tensor_table() if tensors else self._type_table()],
            [
                *(unbroken(printable(path)) for path in self.paths),
                Text(
                    f"{self.file_type}, {self.n_params:,} parameters in {len(self.tensors)} tensors,"
                    f" {human_bytes(self.file_bytes)}, {self.bits_per_weight:.3f} bits a weight"
                ),
            ],
        )

    def _metadata_table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        table.add_column("key", no_wrap=True)
        table.add_column("value")
        for key in self.metadata:
            text = printable(" ".join(str(_value(self.metadata, key)).split()))
            shown = text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
            table.add_row(Text(printable(key)), Text(shown, no_wrap=True, overflow="ellipsis"))
        return table

    @property
    def file_type(self) -> str:
        """What the file says it is, as people call it: Q4_K_M, or Q4_HIFI and its layout."""
        number = self.metadata.get("general.file_type")
        if self.layout is not None:
            return f"Q4_HIFI, {self.layout} layout"
        if number == FILE_TYPE[FORK]:
            return "file type 42"
        names = {int(t): t.name.removeprefix("MOSTLY_").removeprefix("ALL_") for t in LlamaFileType}
        return names.get(number, f"file type {number}") if isinstance(number, int) else "no file type"

    def _tensor_table(self) -> Table:
        table = new_table("tensor", "shape", "type", "outliers", "bytes")
        for t in self.tensors:
            shape = " x ".join(map(str, t.shape))
            table.add_row(Text(printable(t.name)), shape, t.type.name, str(t.outliers or ""), f"{t.nbytes:,}")
        return table

    def _type_table(self) -> Table:
        table = new_table("type", "tensors", "weights", "bytes")
        for kind in sorted({t.type.name for t in self.tensors}):
            mine = [t for t in self.tensors if t.type.name == kind]
            weights = sum(t.n_elements for t in mine)
            table.add_row(kind, f"{len(mine)}", f"{weights:,}", human_bytes(sum(t.nbytes for t in mine)))
        return table


def _value(metadata: Metadata, key: str) -> Any:
    """A value to show: an array by its kind and length, a float that JSON lacks as text."""
    length = metadata.array_length(key)
    if length is None:
        value = metadata[key]
        return str(value) if isinstance(value, float) and not isfinite(value) else value
    kind = metadata.element_type(key) or GGUFValueType.ARRAY
    return f"array of {length} {kind.name.lower()}"
