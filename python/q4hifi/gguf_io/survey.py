"""Reads as much as possible of a damaged GGUF file, and lists everything that is wrong with it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..errors import Q4HifiError
from ..formats.layout import ShapedTensor, StoredTensor
from ..wording import counted, some
from .header import FILE_TYPE_KEY, Entry, Header, read_header
from .metadata import Metadata
from .reader import open_file, shards_of
from .tensor_table import TensorInfo, check_apart, tensor_of, types_of

NAMED = 3
"""Missing tensors that the message about them names; it only counts the rest."""


@dataclass(frozen=True, slots=True)
class SurveyedTensor(ShapedTensor):
    """A tensor as the header lists it; ``shape`` has the row length first.

    ``nbytes`` is None if its type is unknown. ``problem`` says why its data cannot be read, or is "".
    """

    type_name: str
    nbytes: int | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Survey:
    """What could be read of one file; ``problems`` has a message for every fault."""

    path: Path
    header: Header
    tensors: tuple[SurveyedTensor, ...]
    problems: tuple[str, ...]

    @property
    def metadata(self) -> Metadata:
        """The pairs that could be read."""
        return self.header.metadata


def survey(path: str | os.PathLike[str]) -> Survey:
    """Read as much as possible of one GGUF file; other shards of the model are not read.

    Raises :class:`Q4HifiError` where nothing can be read: the file does not exist, is not GGUF, or has an
    unsupported version of GGUF.
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
                    sound.append(tensor_of(entry, header, types, path, 0))
                except Q4HifiError as fault:
                    faults.append(fault)
                    problem = str(fault)
            listed.append(SurveyedTensor(entry.name, entry.shape, type_name, nbytes, problem))
        try:
            check_apart(sound, path)
            shards_of(path, header.metadata)
        except Q4HifiError as fault:
            faults.append(fault)
    problems = [str(fault) for fault in faults] + _cut_off(path, header, listed)
    return Survey(path, header, tuple(listed), tuple(problems))


MISSING, CUT = "missing", "cut off"
"""Problems of tensors in a file that ends too early: all, or the end, of their data is not in the file."""


def _missing(entry: Entry, header: Header, nbytes: int | None) -> str:
    """Return :data:`MISSING` or :data:`CUT` if the file ends too early for a tensor's data, "" if not."""
    start = header.data_start + entry.offset
    if nbytes is None or nbytes == 0 or start + nbytes <= header.file_size:
        return ""
    return MISSING if start >= header.file_size else CUT


def _cut_off(path: Path, header: Header, tensors: list[SurveyedTensor]) -> list[str]:
    """Return one message about all tensors whose data are not completely in the file, if any."""
    names = [t.name for t in tensors if t.problem in (MISSING, CUT)]
    if not names:
        return []
    needed = max(
        header.data_start + entry.offset + (tensor.nbytes or 0)
        for entry, tensor in zip(header.entries, tensors, strict=True)
    )
    verb = "is" if len(names) == 1 else "are"
    return [
        f"{path}: {len(names)} of {counted(len(tensors), 'tensor')} {verb} not completely in the file, which"
        f" has {header.file_size} of {needed} bytes: {some(names, NAMED)}; {header.purpose.again}"
    ]
