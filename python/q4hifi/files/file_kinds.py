"""Recognises files that are given instead of the wanted one, by their first bytes, and says what to do.

:data:`KINDS` is the table: a test of the first bytes, and the format. A reader of files describes what it
wants by a :class:`Purpose`, and gets a message such as "this is a text, not an importance matrix".
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

HEAD_BYTES = 4096
"""Bytes at the start of a file that :func:`kind_of` examines."""


class Pipes(Enum):
    """The pipes that a reader accepts."""

    NONE = "none: the file is not read from its beginning to its end"
    OPENED = "standard input and <(...), which have a writer"
    ALL = "named pipes as well, although opening one waits for its writer"


class FileKind(NamedTuple):
    """A file format: its name with an article ("a ZIP archive"), and what the user should do.

    ``remedy`` leads to the wanted file, whatever that is; it is "" where only another file can help. In it,
    ``{again}`` is replaced by the purpose's remedy for damaged files. ``for_model`` is the remedy if a model
    is wanted. ``is_text`` says whether the file may be used as a text.
    """

    name: str
    remedy: str = ""
    for_model: str = ""
    is_text: bool = False


class Purpose(NamedTuple):
    """What a file is read as: its name with an article, where to get one, how to replace a damaged one.

    ``pipes`` says which pipes may be given instead of a regular file. ``most_bytes`` is the largest size that
    is read, None where there is no limit.
    """

    name: str
    source: str
    again: str
    pipes: Pipes = Pipes.NONE
    most_bytes: int | None = None


MODEL = Purpose("a GGUF model", "name a GGUF model", "download or copy it again")

Test = Callable[[bytes], bool]
"""(first bytes of a file) -> whether it is of this format."""


def _starts(*beginnings: bytes) -> Test:
    return lambda head: head.startswith(beginnings)


def _number_after(*beginnings: bytes) -> Test:
    """Test for letters that a small binary number follows, so that a text with this word is not meant."""
    return lambda head: head.startswith(beginnings) and b"\0" in head[4:8]


def _text_starts(*beginnings: bytes) -> Test:
    """Test for text at the start, in any case, after white space and a byte order mark."""
    return lambda head: head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(beginnings)


def _json_with(*keys: bytes) -> Test:
    return lambda head: _is_json(head) and any(b'"%s"' % key in head for key in keys)


_is_json = _text_starts(b"{", b"[")


def _is_safetensors(head: bytes) -> bool:
    """Whether there is a length (u64), followed by JSON."""
    return len(head) > 8 and head[8:9] == b"{" and 2 <= struct.unpack_from("<Q", head)[0] < 1 << 32


def _is_legacy_imatrix(head: bytes) -> bool:
    """Whether there is a number of entries (i32), followed by the length (i32) and the name of a tensor."""
    if len(head) < 8:
        return False
    count, length = struct.unpack_from("<ii", head)
    return 0 < count < 1 << 20 and 0 < length < 256 and b".weight" in head[8 : 8 + length]


def _is_zeros(head: bytes) -> bool:
    return len(head) >= 64 and not any(head)  # a few zeros may be anything


def _is_text(head: bytes) -> bool:
    return re.fullmatch(rb"[\t\n\r\x20-\x7e]+", head) is not None


_SERVER_ERROR = "it may be a server's error message: read it, and download it again"
CONVERT = "convert the model to GGUF first, with llama.cpp's convert_hf_to_gguf.py"
"""The remedy for models in the formats of other programs."""

IMATRIX_NAME = "an importance matrix"
SENSITIVITIES_NAME = "a file of sensitivities"
SHAPES_NAME = "a file of shapes"
JSON = FileKind("a JSON document", for_model=_SERVER_ERROR, is_text=True)

KINDS: tuple[tuple[Test, FileKind], ...] = (
    (_number_after(b"GGUF"), FileKind("a GGUF file")),
    (
        _starts(b"version https://git-lfs"),
        FileKind("a Git LFS pointer", "run 'git lfs pull' in its repository to get the file itself"),
    ),
    (_is_safetensors, FileKind("a safetensors file", for_model=CONVERT)),
    (
        _text_starts(b"<!doctype html", b"<html", b"<head", b"<body", b"<script", b"<!--"),
        FileKind(
            "a web page",
            "the download gave an HTML page instead of the file: log in if the site asks for it, and use the"
            " link of the file itself (on Hugging Face with /resolve/, not /blob/)",
            is_text=True,
        ),
    ),
    (
        _text_starts(b"<?xml", b"<error"),
        FileKind("an XML document", for_model=_SERVER_ERROR, is_text=True),
    ),
    (
        _json_with(b"schemaVersion"),
        FileKind(
            "a manifest of Ollama",
            for_model="the model is the file blobs/sha256-... that its layer of type"
            " application/vnd.ollama.image.model names",
            is_text=True,
        ),
    ),
    (
        _json_with(b"weight_map"),
        FileKind("an index of safetensors files", for_model=CONVERT, is_text=True),
    ),
    (
        _json_with(b"sensitivities", b"matrices"),
        FileKind(SENSITIVITIES_NAME, for_model="give it to the option --sensitivities", is_text=True),
    ),
    (
        _json_with(b"block_count"),
        FileKind(SHAPES_NAME, for_model="'q4hifi plan' takes it if its name ends in .json", is_text=True),
    ),
    (
        _json_with(b"architectures", b"model_type"),
        FileKind("a model's config.json", for_model=CONVERT, is_text=True),
    ),
    (_json_with(b"added_tokens"), FileKind("a model's tokenizer.json", for_model=CONVERT, is_text=True)),
    (_is_json, JSON),
    (_is_legacy_imatrix, FileKind(IMATRIX_NAME, for_model="give it to the option --imatrix")),
    (
        lambda head: head.startswith(b"PK\3\4") and b"data.pkl" in head,
        FileKind("a PyTorch checkpoint", for_model=CONVERT),
    ),
    (_starts(b"PK\3\4", b"PK\5\6"), FileKind("a ZIP archive", "unpack it first, with unzip")),
    (
        _starts(*(b"\x80%c" % version for version in range(2, 6))),
        FileKind("a PyTorch checkpoint", for_model=CONVERT),
    ),
    (_starts(b"\x1f\x8b"), FileKind("a gzip file", "unpack it first, with gunzip")),
    (_starts(b"\x28\xb5\x2f\xfd"), FileKind("a zstd file", "unpack it first, with unzstd")),
    (_starts(b"\xfd7zXZ\0"), FileKind("an xz file", "unpack it first, with unxz")),
    (
        lambda head: re.match(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", head) is not None,
        FileKind("a bzip2 file", "unpack it first, with bunzip2"),
    ),
    (_starts(b"7z\xbc\xaf\x27\x1c"), FileKind("a 7z archive", "unpack it first, with 7z")),
    (_starts(b"Rar!\x1a\7"), FileKind("a RAR archive", "unpack it first, with unrar")),
    (lambda head: head[257:262] == b"ustar", FileKind("a tar archive", "unpack it first, with tar -xf")),
    (
        # some programs wrote the four letters as text, others as a little-endian integer: reversed
        _number_after(*(m for name in (b"ggml", b"ggmf", b"ggjt", b"ggla") for m in (name, name[::-1]))),
        FileKind(
            "a GGML or GGJT model (older than GGUF)",
            for_model="get the model as GGUF, or convert it with llama.cpp's convert_llama_ggml_to_gguf.py",
        ),
    ),
    (_starts(b"\x89HDF"), FileKind("an HDF5 file", for_model=CONVERT)),
    (_starts(b"\x93NUMPY"), FileKind("a NumPy array", for_model="give a model in GGUF form")),
    (_starts(b"PAR1"), FileKind("a Parquet file")),
    (_starts(b"%PDF-"), FileKind("a PDF file")),
    (_starts(b"\x89PNG", b"\xff\xd8\xff"), FileKind("an image")),
    (
        _starts(b"_logits_"),
        FileKind("a file of log-probabilities", for_model="give it to the option --kl-divergence-base"),
    ),
    (
        _number_after(b"part"),
        FileKind("an unfinished file of log-probabilities", "complete it with 'q4hifi perplexity --resume'"),
    ),
    (_is_zeros, FileKind("an unfinished download", "there are only zeros: {again}", is_text=True)),
    (_is_text, FileKind("a text", for_model=_SERVER_ERROR, is_text=True)),
)
"""(test, format). The first test that the start of a file passes decides, so specific tests come first."""


def kind_of(head: bytes) -> FileKind | None:
    """Return the format of a file whose first bytes are ``head`` (at most :data:`HEAD_BYTES`).

    None where no test passes, and for an empty file.
    """
    return next((kind for test, kind in KINDS if head and test(head)), None)


def remedy_for(kind: FileKind, purpose: Purpose) -> str:
    """Return what to do about a file of format ``kind`` that is given for ``purpose``."""
    remedy = kind.remedy or (kind.for_model if purpose is MODEL else "") or purpose.source
    return remedy.format(again=purpose.again)


def mistaken(head: bytes, purpose: Purpose) -> str | None:
    """Return a message about a file of another format than the wanted one: "this is A, not B; remedy".

    ``head`` has the first bytes of the file. None where its format is not known, or is the wanted one.
    """
    kind = kind_of(head)
    if kind is None or kind.name == purpose.name:
        return None
    return f"this is {kind.name}, not {purpose.name}; {remedy_for(kind, purpose)}"
