"""Looking into a GGUF file that cannot be read as a model: what is in it, and what is wrong with it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..errors import Q4HifiError
from ..formats.layout import StoredTensor
from .header import (
    FILE_TYPE_KEY,
    Entry,
    Header,
    TensorInfo,
    check_apart,
    read_header,
    tensor_of,
    types_of,
)
from .metadata import Metadata
from .reader import open_file, shards_of

NAMED = 3
"""How many of the tensors that a file lacks are named in the message."""


@dataclass(frozen=True, slots=True)
class SurveyedTensor:
    """A tensor as the header lists it; ``shape`` has the row length first.

    ``nbytes`` is None where the type is not known. ``problem`` says why it cannot be read, "" where it can.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    nbytes: int | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Survey:
    """What could be read of one file, and every fault that was found, each a message of its own."""

    path: Path
    header: Header
    tensors: tuple[SurveyedTensor, ...]
    problems: tuple[str, ...]

    @property
    def metadata(self) -> Metadata:
        """The pairs that could be read."""
        return self.header.metadata


def survey(path: str | os.PathLike[str]) -> Survey:
    """Read as much as can be read of a GGUF file, one of its shards alone.

    Raises :class:`Q4HifiError` where nothing can: the file is not there, or not GGUF of a version that is
    read.
    """
    path = Path(path)
    faults: list[Q4HifiError] = []
    with open_file(path) as file:
        header = read_header(file, faults.append)
        types = types_of(header, header.metadata.get(FILE_TYPE_KEY))
        sound: list[TensorInfo] = []
        listed: list[SurveyedTensor] = []
        for entry in header.entries:
            kind = types.get(entry.type_id)
            stored = kind and StoredTensor(entry.name, entry.shape, kind)
            type_name = kind.name if kind else f"type id {entry.type_id}"
            nbytes = stored.nbytes if stored else None
            problem = _missing(entry, header, nbytes)
            if not problem:
                try:
                    sound.append(tensor_of(entry, header, types, file, 0))
                except Q4HifiError as fault:
                    faults.append(fault)
                    problem = str(fault)
            listed.append(SurveyedTensor(entry.name, entry.shape, type_name, nbytes, problem))
        try:
            check_apart(sound, file)
            shards_of(path, header.metadata)
        except Q4HifiError as fault:
            faults.append(fault)
    problems = [str(fault) for fault in faults] + _cut_off(path, header, listed)
    return Survey(path, header, tuple(listed), tuple(problems))


MISSING, CUT = "missing", "cut off"
"""Problems of the tensors of a file that ends too early."""


def _missing(entry: Entry, header: Header, nbytes: int | None) -> str:
    """Whether the file ends before or in the data of a tensor; "" where it does not."""
    start = header.data_start + entry.offset
    if nbytes is None or nbytes == 0 or start + nbytes <= header.file_size:
        return ""
    return MISSING if start >= header.file_size else CUT


def _cut_off(path: Path, header: Header, tensors: list[SurveyedTensor]) -> list[str]:
    """One message about all tensors that the file lacks."""
    names = [t.name for t in tensors if t.problem in (MISSING, CUT)]
    if not names:
        return []
    needed = max(
        header.data_start + entry.offset + (tensor.nbytes or 0)
        for entry, tensor in zip(header.entries, tensors, strict=True)
    )
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return [
        f"{path}: {len(names)} of {len(tensors)} tensors are not or not wholly in the file, which has"
        f" {header.file_size} of {needed} bytes: {', '.join(names[:NAMED])}{more}; download or copy it again"
    ]
