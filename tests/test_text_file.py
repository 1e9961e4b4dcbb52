"""Texts that the user names: UTF-8, and what is recognised as something else."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from command import Run
from q4hifi.errors import BadOptionError
from q4hifi.evaluate.chunks import read_text
from q4hifi.files.text_file import SAMPLE
from synthetic import EXAMPLE

TEXTS = {
    "English": "Hello world, this is a text.\nAnd more of it.\n" * 20,
    "German": "Über die Größe der Wörter\n",
    "Russian": "Привет, мир! Это текст.\n" * 20,
    "Chinese": "你好，世界。这是一个文本。\n" * 20,
    "Chinese without lines": "中文字符测试，你好。" * 300,
    "Japanese": "これはテキストです。\n改行もある。\n" * 10,
    "Thai": "สวัสดีชาวโลก นี่คือข้อความ\n" * 20,
    "Emoji": "Hi 😀 there\n" * 20,
    "code": "def f(x):\r\n\treturn x\r\n" * 9,
    "short": "hi\n",
    "one letter": "a",
    "long": "a😀 " * SAMPLE,
}
WIDE = ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]


@pytest.mark.parametrize("encoding", WIDE)
@pytest.mark.parametrize("language", TEXTS)
def test_wide_texts_are_recognised(language: str, encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "a text.txt"
    path.write_bytes(TEXTS[language].encode(encoding))
    with pytest.raises(BadOptionError, match=r"a text\.txt: the text is UTF-\d\d\w*, not UTF-8") as caught:
        read_text(path)
    named = str(caught.value).split("iconv -f ")[1].split()[0]
    assert path.read_bytes().decode(named) == TEXTS[language]  # what the remedy does
    assert f"-t UTF-8 '{path}' > NEW.txt" in str(caught.value)


@pytest.mark.parametrize("language", TEXTS)
def test_texts_are_read_as_they_are(language: str, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    for text in (TEXTS[language], "\ufeff" + TEXTS[language]):  # llama.cpp keeps the mark, too
        path.write_bytes(text.encode())
        assert read_text(path) == text.removesuffix("\n")


OTHERS = [
    *(TEXTS["German"].encode(name) for name in ("latin-1", "cp850")),
    *(TEXTS["Russian"].encode(name) for name in ("cp1251", "koi8-r")),
    *(TEXTS["Chinese"].encode(name) for name in ("gbk", "big5", "gb18030") if name != "big5"),
    *(TEXTS["Japanese"].encode(name) for name in ("shift_jis", "euc-jp")),
]


@pytest.mark.parametrize("data", OTHERS)
def test_other_encodings_of_bytes_are_passed_on_as_llama_cpp_does(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    for raw in (data, data + b"\0", data.replace(b"\n", b"\0")):
        path.write_bytes(raw)
        assert read_text(path).encode("utf-8", "surrogateescape") == raw.removesuffix(b"\n")


@pytest.mark.parametrize(
    "data", [b"hello\0world!", b"a\0b", b"\0" * 100, bytes(range(256)), b"\xf0\x8d\xbf\xae", b"\0"]
)
def test_stray_zeros_and_bytes_are_no_wide_text(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(data)
    assert read_text(path).encode("utf-8", "surrogateescape") == data


def test_random_bytes_are_read(tmp_path: Path) -> None:
    rng, path = random.Random(1), tmp_path / "text.txt"
    for _ in range(200):
        path.write_bytes(rng.randbytes(rng.randint(400, 4000)))
        read_text(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the text is empty"),
        (b"\n", "the text is empty"),
        (b"GGUF\3\0\0\0", "this is a GGUF file, not a text; name a UTF-8 text file"),
        (b"\x1f\x8b\x08\0", "this is a gzip file"),
        (b"PK\x03\x04rest", "this is a ZIP archive"),
        (b"\x28\xb5\x2f\xfd rest", "this is a zstd file"),
        (b"PAR1rest", "this is a Parquet file"),
        (b"%PDF-1.7", "this is a PDF file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "this is a Git LFS pointer, not a text; run 'git"),
        (b"\x93NUMPY\1\0", "this is a NumPy array, not a text"),
        (b"BZh91AY&SY", "this is a bzip2 file, not a text; unpack it first"),
    ],
)
def test_what_is_no_text_is_refused(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(data)
    with pytest.raises(BadOptionError, match=rf"text\.txt: {message}"):
        read_text(path)


@pytest.mark.parametrize("word", ["GGUF", "ggml", "ggjt", "PK", "BZh9", "Rar!", "part", "BM", "{", "<html>"])
def test_a_text_may_begin_with_the_name_of_a_format(word: str, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(f"{word} is how this text begins.")
    assert read_text(path) == f"{word} is how this text begins."


def test_only_the_start_of_a_model_is_read(tmp_path: Path) -> None:
    """A model has many gigabytes; naming one as the text must not fill the memory."""
    path = tmp_path / "model.gguf"
    with path.open("wb") as file:
        file.write(b"GGUF\3\0\0\0")
        file.truncate(1 << 40)
    with pytest.raises(BadOptionError, match="this is a GGUF file, not a text"):
        read_text(path)


@pytest.mark.parametrize(
    "command", [["perplexity"], ["imatrix"], ["calibrate"], ["compare", EXAMPLE], ["generate"]]
)
def test_every_command_that_reads_a_text_says_so(command: list[str], run: Run, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(TEXTS["English"].encode("utf-16"))
    outcome = run(*command, EXAMPLE, "-f", path)
    assert outcome.status == 2 and "the text is UTF-16, not UTF-8" in outcome.err
    outcome = run("quantize", EXAMPLE, tmp_path / "out.gguf", "--calibrate", path)
    assert outcome.status == 2 and "the text is UTF-16, not UTF-8" in outcome.err
