"""Files that are no GGUF: each is told for what it is, with what to do, by every command."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from command import Run
from q4hifi.errors import BadFileError
from q4hifi.evaluate.comparison_file import write_comparison
from q4hifi.files.file_kinds import kind_of
from q4hifi.gguf_io.reader import GgufFile
from synthetic import EXAMPLE, write_imatrix


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
    (
        "unfinished",
        b"part" + bytes(16),
        "an unfinished file of log-probabilities does; complete it with 'q4hifi",
    ),
    ("sensitivities", b'{"version": 1, "matrices": {}}', "a file of sensitivities does; .* --sensitivities"),
    ("shapes", b'{"architecture": "llama", "block_count": 2}', r"a file of shapes does; .* ends in \.json"),
    ("tokenizer", b'{"version": "1.0", "added_tokens": []}', "tokenizer.json does; convert"),
    ("Parquet", b"PAR1" + bytes(9), "a Parquet file does; name a GGUF model"),
    ("image", b"\x89PNG\r\n\x1a\n", "an image does; name a GGUF model"),
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


def test_nothing_is_said_of_nothing() -> None:
    assert kind_of(b"") is None
    assert kind_of(bytes(4)) is None


# ---- other files than models ---------------------------------------------------------------------

PLAIN = b"Plain words are no matrix.\n"
GGUF = EXAMPLE.read_bytes()
OTHER_JSON = b'{"architectures": ["LlamaForCausalLM"]}'
IMATRIX = struct.pack("<ii", 3, 12) + b"token.weight" + bytes(8)

# the options of a command that reads a file -> what it wants
WANTED = {
    ("quantize", EXAMPLE, "out.gguf", "--imatrix"): "an importance matrix",
    ("imatrix", "--show-statistics", "--in-file"): "an importance matrix",
    ("quantize", EXAMPLE, "out.gguf", "--sensitivities"): "a file of sensitivities",
    ("calibrate", EXAMPLE, "-f", "text.txt", "-c", "8", "-o"): "a file of sensitivities",
    ("perplexity", EXAMPLE, "--kl-divergence", "--kl-divergence-base"): "a file of log-probabilities",
    ("plan",): "a file of shapes",
}

GIVEN = [
    (PLAIN, "this is a text, not {wanted}; "),
    (safetensors(), "this is a safetensors file, not {wanted}; "),
    (b"<!DOCTYPE html>\n<html><head>", "this is a web page, not {wanted}; the download gave an HTML page"),
    (POINTER, "this is a Git LFS pointer, not {wanted}; run 'git lfs pull'"),
    (gzip.compress(b"GGUF"), "this is a gzip file, not {wanted}; unpack it first"),
    (OTHER_JSON, "this is a model's config.json, not {wanted}; "),
    (b'{"weight_map": {}}', "this is an index of safetensors files, not {wanted}; "),
    (GGUF, r"this is a (GGUF file|model \(qwen3\)), not {wanted}(; |: the key imatrix.datasets is missing)"),
    (IMATRIX, "this is an importance matrix, not {wanted}; "),
    (b"_logits_" + bytes(12), "this is a file of log-probabilities, not {wanted}; "),
    (b'{"sensitivities": 3}', "this is a file of sensitivities, not {wanted}; "),
    (b'{"block_count": 3}', "this is a file of shapes, not {wanted}; "),
]


@pytest.mark.parametrize("command", WANTED, ids=lambda command: f"{command[0]} {command[-1]}")
@pytest.mark.parametrize(("data", "match"), GIVEN, ids=[match[:24] for _, match in GIVEN])
def test_a_file_of_another_kind_is_recognised(
    data: bytes,
    match: str,
    command: tuple[str, ...],
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = WANTED[command]
    if match.startswith(f"this is {wanted}"):
        pytest.skip("it is the wanted kind")
    name = "given.json" if command[0] == "plan" else "given.dat"
    (tmp_path / name).write_bytes(data)
    (tmp_path / "text.txt").write_text("words " * 200)
    outcome = run(*command, name)
    assert outcome.status == 1 and outcome.err.count("\n") == 1
    assert re.search(rf"Error: {name}: " + match.format(wanted=wanted) + ".", outcome.err), outcome.err
    assert "download it again" not in outcome.err
    assert (tmp_path / name).read_bytes() == data and not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize(
    "command",
    [
        ("quantize", "m.gguf", "o.gguf", "Q8_0"),
        ("plan", "m.gguf"),
        ("dequantize", "m.gguf", "o.gguf"),
        ("export", "m.gguf", "o.gguf", "--as", "q8_0"),
        ("bench", "m.gguf"),
        ("generate", "m.gguf", "-p", "a"),
    ],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize("kind", ["imatrix", "comparison"])
def test_a_gguf_file_without_weights_is_no_model(
    kind: str, command: tuple[str, ...], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if kind == "imatrix":
        write_imatrix(tmp_path / "m.gguf", {"blk.0.attn_q.weight": (np.ones(256), np.ones(1))})
    else:
        write_comparison(tmp_path / "m.gguf", {}, {})
    outcome = run(*command)
    what = "an importance matrix" if kind == "imatrix" else "a saved comparison"
    assert outcome.status == 1
    assert outcome.err.startswith(f"Error: m.gguf: this is {what}, not a model; name ")
    assert not (tmp_path / "o.gguf").exists()


@pytest.mark.parametrize("kind", ["folder", "pipe"])
@pytest.mark.parametrize(
    "command",
    [
        ("inspect",),
        ("quantize",),
        ("quantize", EXAMPLE, "o.gguf", "--imatrix"),
        ("perplexity", EXAMPLE, "--kl-divergence", "--kl-divergence-base"),
    ],
    ids=lambda command: f"{command[0]} {command[-1]}",
)
def test_folders_and_pipes_are_recognised_everywhere(
    kind: str, command: tuple[str, ...], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if kind == "folder":
        (tmp_path / "given").mkdir()
    else:
        os.mkfifo(tmp_path / "given")
    outcome = run(*command, "given")
    what = "not a file but a folder; " if kind == "folder" else "not a regular file, but a device or pipe; "
    assert outcome.status == 1 and f"Error: given: {what}" in outcome.err


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
