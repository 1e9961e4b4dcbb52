"""The tensors that a GGUF header lists, with their types; their places in the file are checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ..errors import BadFileError, UnsupportedModelError
from ..formats.layout import FILE_TYPE, FORK, StoredTensor, padded
from ..formats.types import Q4_HIFI, STORED_TYPES, TensorType
from ..wording import counted
from .header import Entry, Header, cut_off


@dataclass(frozen=True, slots=True)
class TensorInfo(StoredTensor):
    """One tensor of an open model. Its data begins at byte ``offset`` of file number ``shard`` (from 0)."""

    shard: int
    offset: int


def tensors_of(header: Header, path: Path, shard: int, file_type: object) -> list[TensorInfo]:
    """Return the tensors of the file ``path``.

    Their data have been checked to be inside the file and not to overlap.
    ``file_type`` is the model's ``general.file_type``. Raises :class:`BadFileError` where the checks fail,
    and :class:`UnsupportedModelError` for a tensor type that the gguf package does not contain.
    """
    types = types_of(header, file_type)
    tensors = [tensor_of(entry, header, types, path, shard) for entry in header.entries]
    check_apart(tensors, path)
    return tensors


def types_of(header: Header, file_type: object) -> Mapping[int, TensorType]:
    """Return the type of each type id in a file: id 41 is Q4_HIFI in the fork layout, and Q1_0 elsewhere."""
    if file_type == FILE_TYPE[FORK] and _is_fork(header):
        return {**STORED_TYPES, Q4_HIFI.id: Q4_HIFI}
    return STORED_TYPES


def check_apart(tensors: Iterable[TensorInfo], path: Path) -> None:
    """Raise :class:`BadFileError` where the data of two tensors overlap; empty tensors are left out."""
    in_order = sorted((t for t in tensors if t.n_elements), key=lambda t: t.offset)
    for first, second in pairwise(in_order):
        if first.offset + first.nbytes > second.offset:
            raise BadFileError(
                f"{path}: the data of tensors {first.name!r} and {second.name!r} overlap"
                f" (bytes {first.offset} and {second.offset} of the file)"
            )


def tensor_of(
    entry: Entry, header: Header, types: Mapping[int, TensorType], path: Path, shard: int
) -> TensorInfo:
    """Return the tensor that an entry describes.

    Raises :class:`BadFileError` where its rows do not consist of whole blocks, its offset is not aligned or
    its data end after the file, and :class:`UnsupportedModelError` for an unknown type id.
    """
    where = f"{path}: tensor {entry.name!r}"
    kind = types.get(entry.type_id)
    if kind is None:
        raise UnsupportedModelError(
            f"{where} has the unknown type id {entry.type_id}; update q4hifi and the gguf package,"
            " or get the model in another type"
        )
    tensor = TensorInfo(entry.name, entry.shape, kind, shard, header.data_start + entry.offset)
    if not kind.divides(tensor.row_length):
        raise BadFileError(
            f"{where} has rows of {counted(tensor.row_length, 'weight')}, not a multiple of {kind}'s"
            f" {kind.block_size}"
        )
    if entry.offset % header.alignment:
        raise BadFileError(
            f"{where} begins at data byte {entry.offset}, not a multiple of {header.alignment}"
        )
    end = tensor.offset + tensor.nbytes
    if end > max(header.file_size, header.data_start):  # a file of empty tensors may end before data_start
        raise BadFileError(
            f"{where} would end at byte {end}, but the file has {header.file_size}: {cut_off(header.purpose)}"
        )
    return tensor


def _is_fork(header: Header) -> bool:
    """Whether type id 41 is Q4_HIFI in a file whose ``general.file_type`` says so.

    It is not if a tensor with this id takes exactly the space that it would take as Q1_0.
    """
    bounds = sorted({entry.offset for entry in header.entries} | {header.file_size - header.data_start})
    next_bound = dict(pairwise(bounds))
    q1_0 = STORED_TYPES[Q4_HIFI.id]
    for entry in header.entries:
        tensor = StoredTensor(entry.name, entry.shape, q1_0)
        if entry.type_id != Q4_HIFI.id or not tensor.n_elements:
            continue
        size = tensor.nbytes
        space = next_bound.get(entry.offset, 0) - entry.offset
        if not Q4_HIFI.divides(tensor.row_length) or size <= space <= padded(size, header.alignment):
            return False
    return True
