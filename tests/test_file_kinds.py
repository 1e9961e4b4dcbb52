"""Files that are no GGUF: each is told for what it is, with what to do, by every command."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from command import Run
from q4hifi.errors import BadFileError
from q4hifi.files.file_kinds import kind_of
from q4hifi.gguf_io.reader import GgufFile


def archive(name: str) -> bytes:
    """Return a ZIP archive with one file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(name, b"\x80\x02}q\x00.")
    return buffer.getvalue()


def safetensors() -> bytes:
    """Return a safetensors file of one tensor."""
    head = json.dumps({"w": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(head)) + head + bytes(4)


def array() -> bytes:
    """Return a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, np.ones(3))
    return buffer.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"

# what it is, its bytes, what the error says
CASES: list[tuple[str, bytes, str]] = [
    ("LFS pointer", POINTER, "a Git LFS pointer does; run 'git lfs pull'"),
    ("safetensors", safetensors(), "a safetensors file does; convert .*convert_hf_to_gguf.py"),
    ("web page", b"<!DOCTYPE html>\n<html><head>", "a web page does; the download gave an HTML page"),
    ("web page with spaces", b"\xef\xbb\xbf\n  <HTML lang=en>", "a web page does; .*/resolve/"),
    ("XML", b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "an XML document .*download it again"),
    ("JSON", b'{"error": "Repository not found"}', "a JSON document does; it may be a server's error"),
    ("Ollama manifest", b'{"schemaVersion":2,"layers":[]}', "a manifest of Ollama .*sha256"),
    ("safetensors index", b'{"metadata": {}, "weight_map": {}}', "an index of safetensors .*convert_hf"),
    ("config", b'{"architectures": ["LlamaForCausalLM"]}', "config.json does; convert"),
    ("refusal", b"Access to model x is restricted. You must be authenticated.", "a text does; .*read it"),
    ("PyTorch", archive("archive/data.pkl"), "a PyTorch checkpoint does; convert"),
    ("pickle", b"\x80\x02}q\x00.", "a PyTorch checkpoint does; convert"),
    ("ZIP", archive("model.gguf"), "a ZIP archive does; unpack it first"),
    ("gzip", gzip.compress(b"GGUF" + bytes(99)), "a gzip file does; unpack it first, with gunzip"),
    ("zstd", b"\x28\xb5\x2f\xfd\x04\x00", "a zstd file does; unpack"),
    ("xz", b"\xfd7zXZ\0\0\4", "an xz file does; unpack"),
    ("bzip2", b"BZh91AY&SY", "a bzip2 file does; unpack"),
    ("7z", b"7z\xbc\xaf\x27\x1c\0\4", "a 7z archive does; unpack"),
    ("tar", b"model.gguf".ljust(257, b"\0") + b"ustar\0" + b"00", "a tar archive does; unpack"),
    ("GGML", b"lmgg" + struct.pack("<iii", 32000, 4096, 256), "GGML or GGJT model .*as GGUF"),
    ("GGJT", b"tjgg" + struct.pack("<iiii", 3, 32000, 4096, 256), "GGML or GGJT model .*convert"),
    ("GGMF", b"fmgg" + struct.pack("<iiii", 1, 32000, 4096, 256), "GGML or GGJT model"),
    ("HDF5", b"\x89HDF\r\n\x1a\n", "an HDF5 file does; convert"),
    ("NumPy", array(), "a NumPy array does"),
    ("log-probabilities", b"_logits_" + bytes(12), "--kl-divergence-base"),
    ("imatrix", struct.pack("<ii", 3, 12) + b"token.weight" + bytes(8), "--imatrix"),
    ("zeros", bytes(5000), "an unfinished download does; there are only zeros"),
    ("empty", b"", "0 bytes is not a GGUF file.* it is empty; download or copy it again"),
    ("cut off", b"GGUF\3\0\0\0", "8 bytes is not a GGUF file: it is cut off"),
    ("unknown", b"\x07\x01\x02\x03 and so on", r"begins with b'\\x07\\x01\\x02\\x03' and not with b'GGUF'"),
]


@pytest.mark.parametrize(("data", "match"), [pytest.param(*case[1:], id=case[0]) for case in CASES])
def test_a_file_is_told_for_what_it_is(data: bytes, match: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with pytest.raises(BadFileError, match=match) as raised:
        GgufFile.open(path)
    assert str(raised.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    "command",
    [
        ("inspect", "m.gguf"),
        ("verify", "m.gguf"),
        ("plan", "m.gguf"),
        ("quantize", "m.gguf", "o.gguf", "Q8_0"),
        ("dequantize", "m.gguf", "o.gguf"),
        ("export", "m.gguf", "o.gguf", "--as", "q8_0"),
        ("perplexity", "m.gguf", "-f", "text.txt"),
    ],
    ids=lambda command: command[0],
)
def test_every_command_gives_the_hint(
    command: tuple[str, ...], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.gguf").write_bytes(POINTER)
    (tmp_path / "text.txt").write_text("a text")
    outcome = run(*command)
    assert outcome.status == 1
    assert "git lfs pull" in outcome.out + outcome.err


def test_nothing_is_said_of_a_gguf_file_or_of_nothing() -> None:
    assert kind_of(b"GGUF\3\0\0\0") is None
    assert kind_of(b"") is None


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["a.gguf", "b.gguf"], r"a folder; name the model in it, such as .*a\.gguf"),
        (["model.safetensors", "config.json"], "a folder; convert the model to GGUF first"),
        ([], "a folder; name a GGUF file"),
    ],
)
def test_a_folder_is_told_with_what_is_in_it(names: list[str], match: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(BadFileError, match=match):
        GgufFile.open(tmp_path)
