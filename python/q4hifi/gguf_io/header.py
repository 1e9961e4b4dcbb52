"""GGUF headers: read with every number in them distrusted, and written.

A header is ``GGUF``, version, number of tensors, number of pairs, the key-value pairs, one entry a
tensor, zeros up to the alignment; the data of the tensors follows.

``gguf.GGUFReader`` is not used here: it makes an array object of every string of a vocabulary, which
takes seconds, and it believes what the file says.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod
from typing import NamedTuple, NoReturn

from ..errors import BadFileError, Q4HifiError, UnsupportedModelError
from ..files.file_kinds import HEAD_BYTES, kind_of
from ..files.positioned_file import PositionedFile, os_errors
from ..formats.gguf_constants import GGUF_DEFAULT_ALIGNMENT, GGUF_MAGIC, GGUF_VERSION, GGUFValueType, Keys
from ..formats.layout import FILE_TYPE, FORK, MAX_ELEMENTS, MAX_NAME_BYTES, StoredTensor, padded
from ..formats.types import Q4_HIFI, STORED_TYPES, TensorType
from .metadata import ARRAY_HEAD, SCALARS, U32, U64, Metadata, decode_text, encode_string

ALIGNMENT_KEY = Keys.General.ALIGNMENT
FILE_TYPE_KEY = Keys.General.FILE_TYPE

READABLE_VERSIONS = (2, 3)  # the same layout
MAX_HEADER = 128 << 20  # some times the largest that real models have
MAX_KEY_BYTES = 0xFFFF
MAX_DIMS = 4
MOST_DIMS = 64  # more cannot be meant: the header is damaged
MAX_ARRAY_DEPTH = 8

CUT_OFF = "it is cut off or damaged; download or copy it again"

_HEAD = struct.Struct("<IIQQ")  # magic, version, n_tensors, n_pairs
_MAGIC = GGUF_MAGIC.to_bytes(4, "little")
_MIN_PAIR = U64.size + 1 + U32.size + 1  # one-letter key, one-byte value
_MIN_ENTRY = U64.size + U32.size + U32.size + U64.size  # empty name, no dimensions
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class TensorInfo(StoredTensor):
    """One tensor of an open model: ``offset`` is its first byte in the file of shard ``shard``."""

    shard: int
    offset: int


class Entry(NamedTuple):
    """A tensor as the header lists it: ``offset`` counts from the start of the data section."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int


@dataclass(frozen=True, slots=True)
class Header:
    """What the header of one file says; ``data_start`` is where its data section begins."""

    version: int
    alignment: int
    metadata: Metadata
    entries: tuple[Entry, ...]
    data_start: int
    file_size: int


# ---- writing -------------------------------------------------------------------------------------


def data_offsets(tensors: Sequence[StoredTensor], alignment: int) -> list[int]:
    """Offset of each tensor in the data section, and last the size of the whole section."""
    return list(accumulate((padded(t.nbytes, alignment) for t in tensors), initial=0))


def header_bytes(metadata: Metadata, tensors: Sequence[StoredTensor], alignment: int) -> bytes:
    """Return the header of a file (version 3) with these pairs and tensors, padded to ``alignment``."""
    parts = [_HEAD.pack(GGUF_MAGIC, GGUF_VERSION, len(tensors), len(metadata)), metadata.encode()]
    for tensor, offset in zip(tensors, data_offsets(tensors, alignment), strict=False):
        n = len(tensor.shape)
        entry = struct.pack(f"<I{n}QIQ", n, *tensor.shape, tensor.type.id, offset)
        parts += [encode_string(tensor.name), entry]
    header = b"".join(parts)
    return header.ljust(padded(len(header), alignment), b"\0")


# ---- reading -------------------------------------------------------------------------------------


Complain = Callable[[Q4HifiError], None]
"""What is done about a fault of a header after which the rest can still be read."""


def refuse(fault: Q4HifiError) -> None:
    """Raise the fault: a file with faults is not read."""
    raise fault


class _Cursor:
    """A position in a file's header. Nothing is read or allocated before it is known to be there."""

    def __init__(self, file: PositionedFile, complain: Complain) -> None:
        self.file = file
        self.complain = complain
        self.size = file.size()
        self.limit = min(self.size, MAX_HEADER)
        self.data = bytearray()  # the file's beginning, as far as it was needed
        self.at = 0

    def fault(self, message: str) -> BadFileError:
        return BadFileError(f"{self.file.path}: {message} (byte {self.at} of the file)")

    def fail(self, message: str) -> NoReturn:
        raise self.fault(message)

    def require(self, n: int, what: str) -> None:
        """Fail unless the header can have ``n`` more bytes."""
        end = self.at + n
        if end > self.size:
            self.fail(f"{what} would end at byte {end}, but the file has {self.size}: {CUT_OFF}")
        if end > self.limit:
            self.fail(f"{what} would make the header larger than {MAX_HEADER >> 20} MiB")

    def load(self, n: int, what: str) -> None:
        """Have the next ``n`` bytes in ``data``."""
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
            self.fail(f"{what} has {n} bytes; at most {max_bytes} are allowed")
        self.load(n, what)
        self.at += n
        return decode_text(bytes(self.data[self.at - n : self.at]))

    def value_type(self, what: str) -> GGUFValueType:
        (number,) = self.unpack(U32, f"the type of {what}")
        if number not in GGUFValueType.__members__.values():
            self.fail(f"{what} has the unknown value type {number}")
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
            self.require(count * ARRAY_HEAD.size, what)
            for _ in range(count):
                self.skip_array(what, depth + 1)
        else:
            self.require(count * SCALARS[kind].size, what)
            self.at += count * SCALARS[kind].size

    def skip_strings(self, count: int, what: str) -> None:
        self.require(count * U64.size, what)  # so that a lying count does not even begin the loop
        for _ in range(count):  # a vocabulary passes here: no calls in the usual case
            if self.at + U64.size > len(self.data):
                self.load(U64.size, what)
            self.at += U64.size + U64.unpack_from(self.data, self.at)[0]
        self.require(0, what)

    def since(self, start: int, what: str) -> bytes:
        """Bytes from ``start`` to here."""
        self.load(0, what)
        return bytes(self.data[start : self.at])


def read_header(file: PositionedFile, complain: Complain = refuse) -> Header:
    """Read and check the header of ``file``.

    Raises :class:`BadFileError` where it is malformed, :class:`UnsupportedModelError` for GGUF versions
    that are not read. With another ``complain``, which gets these errors, the header has what could be read;
    a file that is not GGUF is always refused. What the tensors' types and offsets say is checked by
    :func:`tensors_of`.
    """
    cursor = _Cursor(file, complain)
    _check_kind(cursor)
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
    except BadFileError as fault:  # what follows cannot be found
        complain(fault)
    start = padded(cursor.at, alignment)
    return Header(version, alignment, Metadata(pairs), tuple(entries), start, cursor.size)


def _check_kind(cursor: _Cursor) -> None:
    """Refuse a file that is not GGUF, and say what it seems to be and what to do."""
    begin = bytearray(min(cursor.size, HEAD_BYTES))
    with os_errors(cursor.file.path, "be read", BadFileError):
        got = cursor.file.read_into(0, memoryview(begin))
    begin = begin[:got]
    magic = bytes(begin[:4])
    if magic != _MAGIC:
        known = kind_of(bytes(begin))
        what = f", as {known.name} does; {known.remedy}" if known else " and not with b'GGUF'"
        if not magic:
            what = ": it is empty; download or copy it again"
            raise BadFileError(f"{cursor.file.path}: a file of 0 bytes is not a GGUF file{what}")
        raise BadFileError(f"{cursor.file.path}: not a GGUF file: it begins with {magic!r}{what}")
    if cursor.size < _HEAD.size:
        cursor.fail(f"a file of {cursor.size} bytes is not a GGUF file: {CUT_OFF}")


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
    """Complain of counts that the file has no room for; reading would end at the end of the file."""
    try:
        cursor.require(
            n_pairs * _MIN_PAIR + n_tensors * _MIN_ENTRY, f"{n_pairs} pairs and {n_tensors} tensors"
        )
    except BadFileError as fault:
        cursor.complain(fault)


def _read_metadata(cursor: _Cursor, n_pairs: int, pairs: dict[str, bytes]) -> None:
    for i in range(n_pairs):
        start = cursor.at
        key = cursor.text(f"key {i + 1}", MAX_KEY_BYTES)
        if not key or key in pairs:
            cursor.complain(
                cursor.fault(f"key {key!r:.80} is there twice" if key else f"key {i + 1} is empty")
            )
        what = f"the value of {key!r:.80}"
        cursor.skip_value(cursor.value_type(what), what)
        pairs.setdefault(key, cursor.since(start, what))


def _alignment(cursor: _Cursor, metadata: Metadata) -> int:
    try:
        return alignment_of(metadata)
    except BadFileError as cause:
        cursor.complain(cursor.fault(str(cause)))
        return GGUF_DEFAULT_ALIGNMENT


def alignment_of(metadata: Metadata) -> int:
    """Return the alignment that ``general.alignment`` states, or GGUF's default."""
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
            cursor.complain(cursor.fault(f"two tensors are called {entry.name!r}"))
        names.add(entry.name)
        entries.append(entry)


def _read_entry(cursor: _Cursor, i: int) -> Entry:
    name = cursor.text(f"the name of tensor {i + 1}", MAX_KEY_BYTES)
    n_bytes = len(name.encode("utf-8", "surrogateescape"))
    if n_bytes > MAX_NAME_BYTES:
        cursor.complain(
            cursor.fault(
                f"the name of tensor {i + 1} has {n_bytes} bytes; at most {MAX_NAME_BYTES} are allowed:"
                f" {name!r:.80}"
            )
        )
    what = f"the entry of tensor {name!r:.80}"
    (n_dims,) = cursor.unpack(U32, what)
    if n_dims > MAX_DIMS:
        fault = cursor.fault(f"tensor {name!r:.80} has {n_dims} dimensions; at most {MAX_DIMS} are allowed")
        cursor.complain(fault)
        if n_dims > MOST_DIMS:
            raise fault
    shape = cursor.unpack(struct.Struct(f"<{n_dims}Q"), what)
    if prod(n or 1 for n in shape) > MAX_ELEMENTS:
        cursor.complain(cursor.fault(f"tensor {name!r:.80} has the impossible shape {list(shape)}"))
    (type_id,) = cursor.unpack(U32, what)
    (offset,) = cursor.unpack(U64, what)
    return Entry(name, shape, type_id, offset)


def tensors_of(header: Header, file: PositionedFile, shard: int, file_type: object) -> list[TensorInfo]:
    """Tensors of one file, their data known to lie apart from each other and inside of the file.

    ``file_type`` is the model's ``general.file_type``. Raises :class:`BadFileError`, and
    :class:`UnsupportedModelError` for a tensor type that the gguf package does not know.
    """
    types = types_of(header, file_type)
    tensors = [tensor_of(entry, header, types, file, shard) for entry in header.entries]
    check_apart(tensors, file)
    return tensors


def types_of(header: Header, file_type: object) -> Mapping[int, TensorType]:
    """Return what the type ids of a file mean: id 41 is Q4_HIFI's in the fork layout."""
    if file_type == FILE_TYPE[FORK] and _is_fork(header):
        return {**STORED_TYPES, Q4_HIFI.id: Q4_HIFI}
    return STORED_TYPES


def check_apart(tensors: Iterable[TensorInfo], file: PositionedFile) -> None:
    """Raise :class:`BadFileError` where two tensors share bytes; those without elements have none."""
    in_order = sorted((t for t in tensors if t.n_elements), key=lambda t: t.offset)
    for first, second in pairwise(in_order):
        if first.offset + first.nbytes > second.offset:
            raise BadFileError(
                f"{file.path}: the data of tensors {first.name!r} and {second.name!r} overlap"
                f" (bytes {first.offset} and {second.offset} of the file)"
            )


def tensor_of(
    entry: Entry, header: Header, types: Mapping[int, TensorType], file: PositionedFile, shard: int
) -> TensorInfo:
    """Return the tensor that an entry describes; raises as :func:`tensors_of`."""
    where = f"{file.path}: tensor {entry.name!r}"
    kind = types.get(entry.type_id)
    if kind is None:
        raise UnsupportedModelError(
            f"{where} has the unknown type id {entry.type_id}; update q4hifi and the gguf package,"
            " or get the model in another type"
        )
    tensor = TensorInfo(entry.name, entry.shape, kind, shard, header.data_start + entry.offset)
    if tensor.row_length % kind.block_size:
        raise BadFileError(
            f"{where} has rows of {tensor.row_length} weights, not a multiple of {kind}'s {kind.block_size}"
        )
    if entry.offset % header.alignment:
        raise BadFileError(
            f"{where} begins at data byte {entry.offset}, not a multiple of {header.alignment}"
        )
    end = tensor.offset + tensor.nbytes
    if end > max(header.file_size, header.data_start):  # a file of empty tensors may end before its data
        raise BadFileError(f"{where} would end at byte {end}, but the file has {header.file_size}: {CUT_OFF}")
    return tensor


def _is_fork(header: Header) -> bool:
    """Whether type id 41 means Q4_HIFI in a file that says so: not where Q1_0 fills the space exactly."""
    ends = sorted({entry.offset for entry in header.entries} | {header.file_size - header.data_start})
    following = dict(pairwise(ends))
    q1_0 = STORED_TYPES[Q4_HIFI.id]
    for entry in header.entries:
        tensor = StoredTensor(entry.name, entry.shape, q1_0)
        if entry.type_id != Q4_HIFI.id or not tensor.n_elements:
            continue
        size = tensor.nbytes
        room = following.get(entry.offset, 0) - entry.offset
        if tensor.row_length % Q4_HIFI.block_size or size <= room <= padded(size, header.alignment):
            return False
    return True
