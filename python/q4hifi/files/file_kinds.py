"""What a file that is not GGUF seems to be, and what to do about it: a table of how files begin."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import NamedTuple

HEAD_BYTES = 4096
"""How much of a file's beginning :func:`kind_of` looks at."""


class FileKind(NamedTuple):
    """A kind of file, with its article, and what its owner should do."""

    name: str
    remedy: str


Test = Callable[[bytes], bool]


def _starts(*beginnings: bytes) -> Test:
    return lambda head: head.startswith(beginnings)


def _text_starts(*beginnings: bytes) -> Test:
    """Any case, after white space and a byte order mark."""
    return lambda head: head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(beginnings)


def _json_with(*keys: bytes) -> Test:
    return lambda head: _is_json(head) and any(b'"%s"' % key in head for key in keys)


_is_json = _text_starts(b"{", b"[")


def _is_safetensors(head: bytes) -> bool:
    """A length, and that many bytes of JSON."""
    return len(head) > 8 and head[8:9] == b"{" and 2 <= struct.unpack_from("<Q", head)[0] < 1 << 32


def _is_legacy_imatrix(head: bytes) -> bool:
    """A number of entries, then the length of a name and the name."""
    if len(head) < 8:
        return False
    count, length = struct.unpack_from("<ii", head)
    return 0 < count < 1 << 20 and 0 < length < 256 and b".weight" in head[8 : 8 + length]


def _is_zeros(head: bytes) -> bool:
    return not any(head)


def _is_text(head: bytes) -> bool:
    return re.fullmatch(rb"[\t\n\r\x20-\x7e]+", head) is not None


_AGAIN = "download it again"
CONVERT = "convert the model to GGUF first, with llama.cpp's convert_hf_to_gguf.py"
"""What to do with models of other programs."""

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
        FileKind("an XML document", f"a server's error message, perhaps: read it, and {_AGAIN}"),
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
    (_is_json, FileKind("a JSON document", f"a server's error message, perhaps: read it, and {_AGAIN}")),
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
        # four letters as a little-endian number, or as text
        _starts(*(m for name in (b"ggml", b"ggmf", b"ggjt", b"ggla") for m in (name, name[::-1]))),
        FileKind(
            "a GGML or GGJT model of before GGUF",
            "get the model as GGUF, or convert it with llama.cpp's convert_llama_ggml_to_gguf.py",
        ),
    ),
    (_starts(b"\x89HDF"), FileKind("an HDF5 file", CONVERT)),
    (_starts(b"\x93NUMPY"), FileKind("a NumPy array", "give a model in GGUF form")),
    (
        _starts(b"_logits_"),
        FileKind("a file of log-probabilities", "it goes to the option --kl-divergence-base"),
    ),
    (_is_legacy_imatrix, FileKind("an importance matrix", "it goes to the option --imatrix")),
    (_is_zeros, FileKind("an unfinished download", f"there are only zeros: {_AGAIN}")),
    (_is_text, FileKind("a text", f"a server's error message, perhaps: read it, and {_AGAIN}")),
)
"""The first test that holds for a file's beginning tells its kind."""


def kind_of(head: bytes) -> FileKind | None:
    """Return what a file with this beginning (up to :data:`HEAD_BYTES`) seems to be, if that is known."""
    return next((kind for test, kind in KINDS if head and test(head)), None)
