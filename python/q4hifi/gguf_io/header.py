"""Reads and writes GGUF headers. Files are untrusted: every length and count is checked before it is used.

A header consists of the letters ``GGUF``, the version, the number of tensors, the number of key-value pairs,
the pairs, one entry per tensor, and zeros up to the alignment. The data section with all tensors follows.

``gguf.GGUFReader`` is not used, because it does not check the file, and because it creates an array for every
string of a vocabulary, which takes seconds.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import NamedTuple, NoReturn

from ..errors import BadFileError, Q4HifiError, UnsupportedModelError
from ..files.file_kinds import HEAD_BYTES, MODEL, Purpose, kind_of, remedy_for
from ..files.positioned_file import PositionedFile, os_errors
from ..formats.gguf_constants import GGUF_DEFAULT_ALIGNMENT, GGUF_MAGIC, GGUF_VERSION, GGUFValueType, Keys
from ..formats.layout import MAX_ELEMENTS, MAX_NAME_BYTES, StoredTensor, padded
from ..wording import counted
from .metadata import ARRAY_HEAD, SCALARS, U32, U64, Metadata, decode_text, encode_string

ALIGNMENT_KEY = Keys.General.ALIGNMENT
FILE_TYPE_KEY = Keys.General.FILE_TYPE

READABLE_VERSIONS = (2, 3)  # both have the same layout
MAX_HEADER = 128 << 20  # bytes; several times the largest header of real models
MAX_KEY_BYTES = 0xFFFF
MAX_DIMS = 4  # ggml's limit
ABSURD_DIMS = 64  # a tensor with more dimensions shows that the header is damaged
MAX_ARRAY_DEPTH = 8

_HEAD = struct.Struct("<IIQQ")  # magic, version, n_tensors, n_pairs
_MAGIC = GGUF_MAGIC.to_bytes(4, "little")
_MIN_PAIR = U64.size + 1 + U32.size + 1  # one-letter key, one-byte value
_MIN_ENTRY = U64.size + U32.size + U32.size + U64.size  # empty name, no dimensions
_CHUNK = 1 << 16


class Entry(NamedTuple):
    """A tensor as the header lists it. ``offset`` is in bytes from the start of the data section."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int


@dataclass(frozen=True, slots=True)
class Header:
    """The header of one file, which is wanted as ``purpose``.

    ``data_start`` is the offset in the file of its data section.
    """

    version: int
    alignment: int
    metadata: Metadata
    entries: tuple[Entry, ...]
    data_start: int
    file_size: int
    purpose: Purpose = MODEL


# ---- writing -------------------------------------------------------------------------------------


def data_offsets(tensors: Sequence[StoredTensor], alignment: int) -> list[int]:
    """Return the offset of each tensor in the data section, and as last element the size of the section."""
    return list(accumulate((padded(t.nbytes, alignment) for t in tensors), initial=0))


def header_bytes(metadata: Metadata, tensors: Sequence[StoredTensor], alignment: int) -> bytes:
    """Return the header of a GGUF version 3 file with these pairs and tensors, padded to ``alignment``."""
    parts = [_HEAD.pack(GGUF_MAGIC, GGUF_VERSION, len(tensors), len(metadata)), metadata.encode()]
    for tensor, offset in zip(tensors, data_offsets(tensors, alignment), strict=False):
        n = len(tensor.shape)
        entry = struct.pack(f"<I{n}QIQ", n, *tensor.shape, tensor.type.id, offset)
        parts += [encode_string(tensor.name), entry]
    header = b"".join(parts)
    return header.ljust(padded(len(header), alignment), b"\0")


# ---- reading -------------------------------------------------------------------------------------


OnFault = Callable[[Q4HifiError], None]
"""Called with each fault that is found in a header. If it returns, the rest of the header is read."""


def raise_fault(fault: Q4HifiError) -> None:
    """Raise the fault, so that no file with a fault is read."""
    raise fault


class _Cursor:
    """A position in a file's header. It checks that bytes exist before it reads or allocates them."""

    def __init__(self, file: PositionedFile, on_fault: OnFault, purpose: Purpose) -> None:
        self.file = file
        self.purpose = purpose
        self.on_fault = on_fault
        self.size = file.size()
        self.limit = min(self.size, MAX_HEADER)
        self.data = bytearray()  # the start of the file, as far as it has been read
        self.at = 0  # offset in the file

    def fault(self, message: str) -> BadFileError:
        return BadFileError(f"{self.file.path}: {message} (byte {self.at} of the file)")

    def fail(self, message: str) -> NoReturn:
        raise self.fault(message)

    def require(self, n: int, what: str) -> None:
        """Fail if ``n`` more bytes would exceed the file or the largest header."""
        end = self.at + n
        if end > self.size:
            self.fail(
                f"{what} would end at byte {end}, but the file has {self.size}: {cut_off(self.purpose)}"
            )
        if end > self.limit:
            self.fail(f"{what} would make the header larger than {MAX_HEADER >> 20} MiB")

    def load(self, n: int, what: str) -> None:
        """Make sure that ``data`` contains the next ``n`` bytes."""
        self.require(n, what)
        have, end = len(self.data), self.at + n
        if end <= have:
            return
        more = min(self.limit, max(end, 2 * have, _CHUNK)) - have
        chunk = bytearray(more)
        with os_errors(self.file.path, "be read", BadFileError):
            got = self.file.read_into(have, memoryview(chunk))
        if got < more:
            self.fail("the file became shorter while it was read")
        self.data += chunk

    def unpack(self, form: struct.Struct, what: str) -> tuple[int, ...]:
        self.load(form.size, what)
        start = self.at
        self.at += form.size
        return form.unpack_from(self.data, start)

    def text(self, what: str, max_bytes: int) -> str:
        (n,) = self.unpack(U64, f"the length of {what}")
        self.require(n, what)
        if n > max_bytes:
            self.fail(f"{what} has {counted(n, 'byte')}; at most {max_bytes} are allowed")
        self.load(n, what)
        self.at += n
        return decode_text(bytes(self.data[self.at - n : self.at]))

    def value_type(self, what: str) -> GGUFValueType:
        (number,) = self.unpack(U32, f"the type of {what}")
        if number not in GGUFValueType.__members__.values():
            self.fail(f"unknown value type {number} of {what}")
        return GGUFValueType(number)

    def skip_value(self, kind: GGUFValueType, what: str, depth: int = 0) -> None:
        if kind == GGUFValueType.STRING:
            self.skip_strings(1, what)
        elif kind == GGUFValueType.ARRAY:
            self.skip_array(what, depth + 1)
        else:
            self.require(SCALARS[kind].size, what)
            self.at += SCALARS[kind].size

    def skip_array(self, what: str, depth: int) -> None:
        if depth > MAX_ARRAY_DEPTH:
            self.fail(f"{what} has arrays in arrays more than {MAX_ARRAY_DEPTH} deep")
        kind = self.value_type(f"the elements of {what}")
        (count,) = self.unpack(U64, f"the length of {what}")
        if kind == GGUFValueType.STRING:
            self.skip_strings(count, what)
        elif kind == GGUFValueType.ARRAY:
            self.skip_arrays(count, what, depth + 1)
        else:
            self.require(count * SCALARS[kind].size, what)
            self.at += count * SCALARS[kind].size

    def skip_arrays(self, count: int, what: str, depth: int) -> None:
        self.require(count * ARRAY_HEAD.size, what)
        for _ in range(count):  # there may be millions, so the usual case calls little
            if depth <= MAX_ARRAY_DEPTH and self.at + ARRAY_HEAD.size <= len(self.data):
                kind, n = ARRAY_HEAD.unpack_from(self.data, self.at)
                end = self.at + ARRAY_HEAD.size
                if (form := SCALARS.get(kind)) and (end := end + n * form.size) <= self.limit:
                    self.at = end
                    continue
            self.skip_array(what, depth)

    def skip_strings(self, count: int, what: str) -> None:
        self.require(count * U64.size, what)  # a hostile count must not start the loop
        for _ in range(count):  # runs for every token of a vocabulary, so it calls nothing in the usual case
            if self.at + U64.size > len(self.data):
                self.load(U64.size, what)
            self.at += U64.size + U64.unpack_from(self.data, self.at)[0]
        self.require(0, what)

    def since(self, start: int, what: str) -> bytes:
        """Return the bytes from ``start`` to the current position."""
        self.load(0, what)
        return bytes(self.data[start : self.at])


def cut_off(purpose: Purpose) -> str:
    """Return the end of a message about a file that ends too early."""
    return f"it is cut off or damaged; {purpose.again}"


def read_header(file: PositionedFile, on_fault: OnFault = raise_fault, *, purpose: Purpose = MODEL) -> Header:
    """Read and check the header of ``file``; the tensors' types and offsets are not checked.

    ``purpose`` is what the file is wanted as.

    ``on_fault`` is called with each fault. By default it raises the fault, a :class:`BadFileError`. If it
    returns, the header contains what could be read. Two faults are always raised: a file that is not GGUF
    (:class:`BadFileError`), and another version of GGUF (:class:`UnsupportedModelError`).
    """
    cursor = _Cursor(file, on_fault, purpose)
    _check_magic(cursor)
    _, version, n_tensors, n_pairs = cursor.unpack(_HEAD, "the start of the header")
    _check_version(file, version)
    pairs: dict[str, bytes] = {}
    entries: list[Entry] = []
    alignment = GGUF_DEFAULT_ALIGNMENT
    try:
        _check_counts(cursor, n_pairs, n_tensors)
        _read_metadata(cursor, n_pairs, pairs)
        alignment = _alignment(cursor, Metadata(pairs))
        _read_entries(cursor, n_tensors, entries)
    except BadFileError as fault:  # the rest of the header cannot be located
        on_fault(fault)
    start = padded(cursor.at, alignment)
    return Header(version, alignment, Metadata(pairs), tuple(entries), start, cursor.size, purpose)


def _check_magic(cursor: _Cursor) -> None:
    """Raise :class:`BadFileError` for a file that is not GGUF; the message names its apparent format."""
    begin = bytearray(min(cursor.size, HEAD_BYTES))
    with os_errors(cursor.file.path, "be read", BadFileError):
        got = cursor.file.read_into(0, memoryview(begin))
    begin = begin[:got]
    magic = bytes(begin[:4])
    if magic != _MAGIC:
        known = kind_of(bytes(begin))
        what = f", as {known.name} does; {remedy_for(known, cursor.purpose)}" if known else ""
        if not magic:
            what = f": it is empty; {cursor.purpose.again}"
            raise BadFileError(f"{cursor.file.path}: a file of 0 bytes is not a GGUF file{what}")
        what = what or f" and not with {_MAGIC!r}; {cursor.purpose.source}"
        raise BadFileError(f"{cursor.file.path}: not a GGUF file: it begins with {magic!r}{what}")
    if cursor.size < _HEAD.size:
        cursor.fail(f"a file of {counted(cursor.size, 'byte')} is not a GGUF file: {cut_off(cursor.purpose)}")


def _check_version(file: PositionedFile, version: int) -> None:
    if version in READABLE_VERSIONS:
        return
    if version & 0xFFFF == 0 and version:
        message = (
            "a big-endian GGUF file; convert it first (gguf-convert-endian FILE little, of the gguf package)"
        )
    else:
        message = (
            f"GGUF version {version}; versions {READABLE_VERSIONS[0]} to {READABLE_VERSIONS[-1]} are read;"
            + (" update q4hifi" if version > READABLE_VERSIONS[-1] else " get the model in a newer form")
        )
    raise UnsupportedModelError(f"{file.path}: {message}")


def _check_counts(cursor: _Cursor, n_pairs: int, n_tensors: int) -> None:
    """Report counts that cannot be right because the file is too small for them."""
    try:
        cursor.require(
            n_pairs * _MIN_PAIR + n_tensors * _MIN_ENTRY,
            f"{counted(n_pairs, 'pair')} and {counted(n_tensors, 'tensor')}",
        )
    except BadFileError as fault:
        cursor.on_fault(fault)


def _read_metadata(cursor: _Cursor, n_pairs: int, pairs: dict[str, bytes]) -> None:
    for i in range(n_pairs):
        start = cursor.at
        key = cursor.text(f"key {i + 1}", MAX_KEY_BYTES)
        if not key or key in pairs:
            cursor.on_fault(
                cursor.fault(f"key {key!r:.80} is there twice" if key else f"key {i + 1} is empty")
            )
        what = f"the value of {key!r:.80}"
        cursor.skip_value(cursor.value_type(what), what)
        pairs.setdefault(key, cursor.since(start, what))


def _alignment(cursor: _Cursor, metadata: Metadata) -> int:
    try:
        return alignment_of(metadata)
    except BadFileError as cause:
        cursor.on_fault(cursor.fault(str(cause)))
        return GGUF_DEFAULT_ALIGNMENT


def alignment_of(metadata: Metadata) -> int:
    """Return ``general.alignment`` in bytes, or GGUF's default.

    Raises :class:`BadFileError` where it has another type or is not a power of two.
    """
    if ALIGNMENT_KEY not in metadata:
        return GGUF_DEFAULT_ALIGNMENT
    kind = metadata.value_type(ALIGNMENT_KEY)
    if kind != GGUFValueType.UINT32:
        raise BadFileError(f"{ALIGNMENT_KEY} is of type {kind.name}; it must be UINT32")
    alignment: int = metadata[ALIGNMENT_KEY]
    if alignment.bit_count() != 1:
        raise BadFileError(f"{ALIGNMENT_KEY} is {alignment}, which is not a power of two")
    return alignment


def _read_entries(cursor: _Cursor, n_tensors: int, entries: list[Entry]) -> None:
    names: set[str] = set()
    for i in range(n_tensors):
        entry = _read_entry(cursor, i)
        if entry.name in names:
            cursor.on_fault(cursor.fault(f"two tensors are called {entry.name!r}"))
        names.add(entry.name)
        entries.append(entry)


def _read_entry(cursor: _Cursor, i: int) -> Entry:
    name = cursor.text(f"the name of tensor {i + 1}", MAX_KEY_BYTES)
    n_bytes = len(name.encode("utf-8", "surrogateescape"))
    if n_bytes > MAX_NAME_BYTES:
        cursor.on_fault(
            cursor.fault(
                f"the name of tensor {i + 1} has {counted(n_bytes, 'byte')}; at most {MAX_NAME_BYTES}"
                " are allowed:"
                f" {name!r:.80}"
            )
        )
    what = f"the entry of tensor {name!r:.80}"
    (n_dims,) = cursor.unpack(U32, what)
    if n_dims > MAX_DIMS:
        fault = cursor.fault(f"tensor {name!r:.80} has {n_dims} dimensions; at most {MAX_DIMS} are allowed")
        cursor.on_fault(fault)
        if n_dims > ABSURD_DIMS:
            raise fault
    shape = cursor.unpack(struct.Struct(f"<{n_dims}Q"), what)
    if prod(n or 1 for n in shape) > MAX_ELEMENTS:
        cursor.on_fault(cursor.fault(f"tensor {name!r:.80} has the impossible shape {list(shape)}"))
    (type_id,) = cursor.unpack(U32, what)
    (offset,) = cursor.unpack(U64, what)
    return Entry(name, shape, type_id, offset)
