"""A temporary copy of a model with Q4_HIFI tensors, in which llama.cpp finds types that it knows."""

from __future__ import annotations

from pathlib import Path

from ...codec.model_file import ModelFile, row_ranges
from ...codec.rows import encode
from ...formats.layout import KEYS, Format, StoredTensor
from ...formats.types import F16, Q4_HIFI
from ...gguf_io.writer import GgufWriter


def has_q4_hifi(model: ModelFile) -> bool:
    """Return whether a model has tensors of the type Q4_HIFI, which llama.cpp does not load."""
    return any(tensor.type == Q4_HIFI for tensor in model.tensors.values())


def write_readable(model: ModelFile, path: Path, *, threads: int = 0) -> None:
    """Write a copy of a model to ``path``, in which Q4_HIFI tensors are F16; all others are copied.

    ``threads`` 0 is one per core. Raises :class:`BadFileError` if the model cannot be read, and
    :class:`Q4HifiError` if the copy cannot be written.
    """
    formats = {
        name: Format(F16) if tensor.type == Q4_HIFI else tensor.format
        for name, tensor in model.tensors.items()
    }
    stored = {name: StoredTensor(name, t.shape, formats[name].type) for name, t in model.tensors.items()}
    metadata = model.gguf.metadata.without(*KEYS)
    with GgufWriter(path, metadata, list(stored.values()), alignment=model.gguf.alignment) as writer:
        for name, tensor in model.tensors.items():
            (row_bytes,) = formats[name].part_row_bytes(tensor.row_length)
            for rows in row_ranges(tensor):
                parts = model.read_rows(rows)
                if tensor.type == Q4_HIFI:
                    with model.errors_at(name):
                        parts, _ = encode(
                            parts, tensor.format, formats[name], tensor.row_length, threads=threads
                        )
                writer.write_at(name, rows.first * row_bytes, parts[0])
        writer.commit()
