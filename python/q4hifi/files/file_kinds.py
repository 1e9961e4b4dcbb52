"""Recognises files that are given instead of a GGUF model, by their first bytes, and says what to do.

:data:`KINDS` is the table: a test of the first bytes, the name of the format, and a remedy for the user.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import NamedTuple

HEAD_BYTES = 4096
"""Bytes at the start of a file that :func:`kind_of` examines."""


class FileKind(NamedTuple):
    """A file format: its name with an article ("a ZIP archive"), and what the user should do."""

    name: str
    remedy: str


Test = Callable[[bytes], bool]
"""(first bytes of a file) -> whether it is of this format."""


def _starts(*beginnings: bytes) -> Test:
    return lambda head: head.startswith(beginnings)


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
    return not any(head)


def _is_text(head: bytes) -> bool:
    return re.fullmatch(rb"[\t\n\r\x20-\x7e]+", head) is not None


_AGAIN = "download it again"
_SERVER_ERROR = f"it may be a server's error message: read it, and {_AGAIN}"
CONVERT = "convert the model to GGUF first, with llama.cpp's convert_hf_to_gguf.py"
"""The remedy for models in the formats of other programs."""

KINDS: tuple[tuple[Test, FileKind], ...] = (
    (
        _starts(b"version https://git-lfs"),
        FileKind("a Git LFS pointer", "run 'git lfs pull' in its repository to get the model"),
    ),
    (_is_safetensors, FileKind("a safetensors file", CONVERT)),
    (
        _text_starts(b"<!doctype html", b"<html", b"<head", b"<body", b"<script", b"<!--"),
        FileKind(
            "a web page",
            "the download gave an HTML page instead of the model: log in if the site asks for it, and use the"
            " link of the file itself (on Hugging Face with /resolve/, not /blob/)",
        ),
    ),
    (
        _text_starts(b"<?xml", b"<error"),
        FileKind("an XML document", _SERVER_ERROR),
    ),
    (
        _json_with(b"schemaVersion"),
        FileKind(
            "a manifest of Ollama",
            "the model is the file blobs/sha256-... that its layer of type application/vnd.ollama.image.model"
            " names",
        ),
    ),
    (_json_with(b"weight_map"), FileKind("an index of safetensors files", CONVERT)),
    (_json_with(b"architectures", b"model_type"), FileKind("a model's config.json", CONVERT)),
    (_is_json, FileKind("a JSON document", _SERVER_ERROR)),
    (
        lambda head: head.startswith(b"PK\3\4") and b"data.pkl" in head,
        FileKind("a PyTorch checkpoint", CONVERT),
    ),
    (_starts(b"PK\3\4", b"PK\5\6"), FileKind("a ZIP archive", "unpack it first, with unzip")),
    (_starts(*(b"\x80%c" % version for version in range(2, 6))), FileKind("a PyTorch checkpoint", CONVERT)),
    (_starts(b"\x1f\x8b"), FileKind("a gzip file", "unpack it first, with gunzip")),
    (_starts(b"\x28\xb5\x2f\xfd"), FileKind("a zstd file", "unpack it first, with unzstd")),
    (_starts(b"\xfd7zXZ\0"), FileKind("an xz file", "unpack it first, with unxz")),
    (_starts(b"BZh"), FileKind("a bzip2 file", "unpack it first, with bunzip2")),
    (_starts(b"7z\xbc\xaf\x27\x1c"), FileKind("a 7z archive", "unpack it first, with 7z")),
    (_starts(b"Rar!"), FileKind("a RAR archive", "unpack it first, with unrar")),
    (lambda head: head[257:262] == b"ustar", FileKind("a tar archive", "unpack it first, with tar -xf")),
    (
        # some programs wrote the four letters as text, others as a little-endian integer: reversed
        _starts(*(m for name in (b"ggml", b"ggmf", b"ggjt", b"ggla") for m in (name, name[::-1]))),
        FileKind(
            "a GGML or GGJT model (older than GGUF)",
            "get the model as GGUF, or convert it with llama.cpp's convert_llama_ggml_to_gguf.py",
        ),
    ),
    (_starts(b"\x89HDF"), FileKind("an HDF5 file", CONVERT)),
    (_starts(b"\x93NUMPY"), FileKind("a NumPy array", "give a model in GGUF form")),
    (
        _starts(b"_logits_"),
        FileKind("a file of log-probabilities", "give it to the option --kl-divergence-base"),
    ),
    (_is_legacy_imatrix, FileKind("an importance matrix", "give it to the option --imatrix")),
    (_is_zeros, FileKind("an unfinished download", f"there are only zeros: {_AGAIN}")),
    (_is_text, FileKind("a text", _SERVER_ERROR)),
)
"""(test, format). The first test that the start of a file passes decides, so specific tests come first."""


def kind_of(head: bytes) -> FileKind | None:
    """Return the format of a file whose first bytes are ``head`` (at most :data:`HEAD_BYTES`).

    None where no test passes, and for an empty file.
    """
    return next((kind for test, kind in KINDS if head and test(head)), None)
