"""Every failure is a message and an exit status, and a child of Q4HifiError where a file is at fault."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import q4hifi
from command import Run, script
from q4hifi import BadFileError, BadOptionError, NotFiniteError, Q4HifiError, _core
from q4hifi.allocation.calibration_file import Calibration, load_sensitivities
from q4hifi.codec.core_errors import core_errors
from q4hifi.files import output_file
from q4hifi.files.file_kinds import Purpose
from q4hifi.files.json_file import read_json
from q4hifi.runtime import template_process
from synthetic import EXAMPLE

TEXT = "the quick brown fox opens a file and reads every line of it "


# ---- what is raised becomes a message ------------------------------------------------------------


class Panic(BaseException):
    """As the core's panics arrive in Python: no child of Exception."""


def undecodable() -> UnicodeDecodeError:
    try:
        b"a\xff".decode()
    except UnicodeDecodeError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    ("raised", "status", "message"),
    [
        (Q4HifiError("a.gguf: broken"), 1, "Error: a.gguf: broken"),
        (BadOptionError("no such thing"), 2, "Error: no such thing"),
        (Q4HifiError("a\x1b[2J\n"), 1, r"Error: a\x1b[2J\n"),
        (OSError(errno.EROFS, "Read-only file system", "a/b"), 1, "Error: a/b: Read-only file system"),
        (
            OSError(errno.EROFS, "Read-only file system", b"a/\xff"),
            1,
            r"Error: a/\udcff: Read-only file",
        ),
        (OSError(errno.ENAMETOOLONG, "File name too long", Path("x")), 1, "Error: x: File name too long"),
        (OSError(errno.EIO, "Input/output error"), 1, "Error: Input/output error"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 1, "Error: x: Permission denied"),
        (OSError("no number"), 1, "Error: no number"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
        (
            MemoryError(),
            1,
            "Error: there is not enough memory; close other programs, or take a",
        ),
        (MemoryError("8 GiB"), 1, "Error: there is not enough memory (8 GiB); close other programs"),
        (RecursionError("maximum recursion depth"), 1, "Error: the input is nested too deep"),
        (undecodable(), 1, "Error: the input is not utf-8 text: byte 0xff at position 1"),
        (
            ModuleNotFoundError("No module named 'rich'"),
            1,
            "Error: No module named 'rich'; install q4hifi",
        ),
        (KeyError("x"), 1, "Error: internal error: KeyError: 'x'; please report it, with the output of"),
        (Panic("assertion failed"), 1, "Error: internal error: Panic: assertion failed; please report it"),
        (KeyboardInterrupt(), 130, "\nInterrupted."),
    ],
)
def test_exceptions_become_a_message_and_a_status(
    raised: BaseException, status: int, message: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr("q4hifi.codec.model_file.ModelFile.open", fail)
    monkeypatch.delenv("Q4HIFI_DEBUG", raising=False)
    outcome = run("plan", EXAMPLE)
    assert (outcome.status, outcome.out) == (status, "")
    assert outcome.err.startswith(message) and outcome.err.count("\n") <= message.count("\n") + 1


def test_a_traceback_is_shown_to_those_who_ask_for_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("q4hifi.codec.model_file.ModelFile.open", lambda _: {}["x"])
    monkeypatch.setenv("Q4HIFI_DEBUG", "1")
    outcome = run("plan", EXAMPLE)
    assert outcome.status == 1
    assert outcome.err.startswith("Traceback") and "Error: internal error: KeyError: 'x'" in outcome.err


# ---- standard streams ----------------------------------------------------------------------------


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "Q": script(), "M": str(EXAMPLE)}
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, check=False, cwd=folder, env=environment
    )


@pytest.mark.parametrize(
    "arguments", ["inspect $M", "inspect $M --json", "plan $M", "--help", "--version", "quantize --help"]
)
@pytest.mark.parametrize(
    ("redirection", "reason"), [("> /dev/full", "No space left on device"), (">&-", "Bad file descriptor")]
)
def test_an_output_that_cannot_be_written(
    arguments: str, redirection: str, reason: str, tmp_path: Path
) -> None:
    done = shell(f"$Q {arguments} {redirection}", tmp_path)
    assert (done.returncode, done.stderr) == (1, f"Error: standard output: {reason}\n")


def test_the_work_is_done_although_it_cannot_be_reported(tmp_path: Path) -> None:
    done = shell("$Q quantize $M out.gguf Q8_0 > /dev/full", tmp_path)
    assert (done.returncode, done.stderr) == (1, "Error: standard output: No space left on device\n")
    assert q4hifi.verify_file(tmp_path / "out.gguf") == []


@pytest.mark.parametrize("arguments", ["inspect $M", "plan $M --tensors --json", "quantize --help"])
def test_a_reader_that_ends_is_no_failure_to_tell_of(arguments: str, tmp_path: Path) -> None:
    done = shell(f"$Q {arguments} | (exec <&-; sleep 1); exit ${{PIPESTATUS[0]}}", tmp_path)
    assert (done.returncode, done.stderr) == (141, "")


def test_closed_streams_do_not_become_the_output_file(tmp_path: Path) -> None:
    done = shell("$Q quantize $M out.gguf Q8_0 --json >&- 2>&- <&-; exit $?", tmp_path)
    assert done.returncode == 1
    assert shell("$Q verify out.gguf", tmp_path).returncode == 0


def test_messages_that_nobody_can_read_change_no_status(tmp_path: Path) -> None:
    assert shell("$Q inspect missing.gguf 2> /dev/full", tmp_path).returncode == 1
    assert shell("$Q quantize 2>&-", tmp_path).returncode == 2


@pytest.mark.parametrize("data", [TEXT.encode() * 30, np.random.default_rng(1).bytes(3000)])
def test_texts_from_standard_input_are_those_of_files(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(data)
    read, piped = (
        shell(f"$Q perplexity $M -c 32 --chunks 2 {source}", tmp_path)
        for source in ("-f text", "-f - < text")
    )
    assert (read.returncode, piped.returncode) == (0, 0)
    assert read.stdout == piped.stdout
    notes = [done.stderr.partition(" characters ")[0] for done in (read, piped)]
    expected = "" if data.isascii() else "note: {}: 1259 bytes among the first 2894"
    assert notes == [expected.format("text"), expected.format("-")]


def test_no_standard_input_is_an_empty_text(tmp_path: Path) -> None:
    done = shell("$Q perplexity $M -c 32 -f - <&-", tmp_path)
    assert done.returncode == 2 and "the text is empty" in done.stderr


# ---- JSON files ----------------------------------------------------------------------------------

JSON_READERS: list[Callable[[Path], Any]] = [Calibration.load, load_sensitivities, q4hifi.plan_shapes]


@pytest.mark.parametrize("read", JSON_READERS)
@pytest.mark.parametrize(
    "text",
    [
        *("[" * 200_000, '{"a":' * 200_000, "[" * 200_000 + "]" * 200_000),
        *("", "null", "[]", "{}", "1", '"text"', "\x00", "\ufeff{}", "{"),
        '{"version": 1, "sensitivities": 3, "tensors": 3, "matrices": []}',
        '{"version": 1, "sensitivities": {"a": []}, "matrices": {"a": []}}',
        '{"architecture": "a", "block_count": Infinity, "head_count": 1, "head_count_kv": 1, "tensors": {}}',
        '{"architecture": "a", "block_count": NaN, "head_count": 1, "head_count_kv": 1, "tensors": {}}',
        '{"architecture": "a", "block_count": 1, "head_count": 1, "head_count_kv": 1,'
        ' "tensors": {"a": [256, 1' + "0" * 400 + "]}}",
        '{"sensitivities": {"a": ' + "9" * 10_000 + "}}",
        '{"sensitivities": {"a": 1' + "0" * 400 + "}}",
    ],
    ids=range(19),
)
def test_json_files_that_hold_something_else(read: Callable[[Path], Any], text: str, tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    file.write_text(text, "utf-8", "surrogatepass")
    with pytest.raises(BadFileError, match=r"file\.json: "):
        read(file)


@pytest.mark.parametrize("read", JSON_READERS)
def test_json_files_that_are_not_there_or_not_text(read: Callable[[Path], Any], tmp_path: Path) -> None:
    for file in (tmp_path / "missing.json", tmp_path, tmp_path / ("x" * 300)):
        with pytest.raises(
            BadFileError, match=r"cannot be read|not a file but a folder; name the file in it"
        ):
            read(file)
    (tmp_path / "bytes.json").write_bytes(b"\xff\x00" * 10)
    with pytest.raises(BadFileError, match=r"bytes\.json: "):
        read(tmp_path / "bytes.json")


def test_only_so_much_of_a_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("q4hifi.files.json_file.MAX_BYTES", 1 << 20)
    purpose = Purpose("a test", "write one", "write it again")
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate((1 << 20) + 1)
    with pytest.raises(BadFileError, match="is a test; it is larger than 1 MiB"):
        read_json(tmp_path / "large.json", purpose, "is a test", dict)
    with pytest.raises(
        BadFileError, match="/dev/zero: not a regular file, but a device or pipe; save its contents"
    ):
        read_json(Path("/dev/zero"), purpose, "is a test", dict)
    (tmp_path / "small.json").write_text(json.dumps({"a": 1}))
    assert read_json(tmp_path / "small.json", purpose, "is a test", dict) == {"a": 1}


def test_the_command_reads_deep_json(run: Run, tmp_path: Path) -> None:
    deep = tmp_path / "deep.json"
    deep.write_text("[" * 200_000)
    for arguments in (["plan", deep], ["quantize", EXAMPLE, tmp_path / "a.gguf", "--sensitivities", deep]):
        outcome = run(*arguments)
        assert (outcome.status, outcome.out) == (1, "")
        assert outcome.err.startswith(f"Error: {deep}: ") and "nested too deep" in outcome.err


# ---- the core's exceptions -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (_core.NotFinite("not finite", 70), NotFiniteError, "the weight in row 14, column 6 is NaN"),
        (_core.BadBlock("block 3", 3, "too many"), BadFileError, "block 3: too many"),
        (_core.BadModel("it is odd", "other", None, None), BadOptionError, "it is odd"),
        (_core.Unavailable("no threads"), BadOptionError, "no threads"),
        (ValueError("a length"), BadOptionError, "a length"),
        (OverflowError("too large"), BadOptionError, "too large"),
        (NotFiniteError("one of ours"), NotFiniteError, "one of ours"),
    ],
)
def test_the_cores_exceptions_are_told_apart(
    raised: Exception, expected: type[Q4HifiError], message: str
) -> None:
    with (
        pytest.raises(expected) as caught,
        core_errors(BadOptionError, row_length=16, first_row=10),
    ):
        raise raised
    assert type(caught.value) is expected
    assert str(caught.value).startswith(message)


@pytest.fixture
def nan_model(tmp_path: Path) -> Path:
    """The example with a weight that is NaN, in the embedding of a token that no text here has."""
    data = bytearray(EXAMPLE.read_bytes())
    with q4hifi.open(EXAMPLE) as model:
        (embeddings,) = model.tensors["token_embd.weight"].parts
    at = embeddings.offset + 3000 * 512
    data[at : at + 2] = np.float16(np.nan).tobytes()
    (tmp_path / "nan.gguf").write_bytes(data)
    return tmp_path / "nan.gguf"


def test_a_model_with_a_nan_is_named_and_the_status_is_1(nan_model: Path, run: Run) -> None:
    text = nan_model.with_name("text.txt")
    text.write_text(TEXT * 100)
    where = f"Error: {nan_model}: chunk 1 of the text: "
    outcome = run("imatrix", nan_model, "-f", text, "-c", "64", "--chunks", "4", "-o", nan_model.parent / "i")
    assert (outcome.status, outcome.out) == (1, "")
    assert outcome.err == f"{where}the model's logits are not finite; 'q4hifi verify' finds damaged weights\n"
    chunks = ["-f", text, "-c", "64"]
    for command in (["perplexity", *chunks], ["calibrate", *chunks], ["generate", "-p", TEXT]):
        outcome = run(command[0], nan_model, *command[1:])
        assert outcome.status == 1
        assert outcome.err.startswith(f"Error: {nan_model}: ") and "('" not in outcome.err
    with pytest.raises(NotFiniteError, match=r"nan\.gguf: it gives logits that are not finite"):
        q4hifi.Model(nan_model).fisher(list(range(64)))


# ---- keywords and options ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "keywords", "python", "command"),
    [
        ([], {"target_bpw": float("nan")}, "`target_bpw` is nan", "'nan' is not a finite number"),
        ([], {"like": "COPY"}, "`like` is COPY", "--like is COPY"),
        (["Q4_K_M"], {"outliers": 3}, "`outliers` is for Q4_HIFI", "--outliers is for Q4_HIFI"),
        (
            [], {"stock": True, "coverage": "scale"},
            "`stock`: for `coverage='measured'`, and", "--stock: for --coverage measured, and",
        ),
        (
            [], {"keep_split": True, "split_max_size": 1_000_000},
            "`keep_split` and `split_max_size` cannot", "--keep-split and --split-max-size cannot",
        ),
    ],
)  # fmt: skip
def test_messages_name_keywords_in_python_and_options_in_the_command(
    arguments: list[str], keywords: dict[str, Any], python: str, command: str, run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "out.gguf"
    with pytest.raises(BadOptionError) as caught:
        q4hifi.quantize_file(EXAMPLE, out, *arguments, **keywords)
    assert python in str(caught.value)
    options = [
        word
        for name, value in keywords.items()
        for word in (f"--{name.replace('_', '-')}", *([] if value is True else [str(value)]))
    ]
    outcome = run("quantize", EXAMPLE, out, *arguments, *options)
    assert outcome.status == 2 and command in outcome.err and "`" not in outcome.err


def subclasses(of: type[Q4HifiError]) -> list[type[Q4HifiError]]:
    return [of, *(each for child in of.__subclasses__() for each in subclasses(child))]


def test_every_error_is_made_of_its_message() -> None:
    found = subclasses(Q4HifiError)
    assert {output_file.DestinationExistsError, template_process.TemplateLimitError} < set(found)
    for each in found:
        assert str(each("the message")) == "the message"


def test_the_remedy_is_an_option_in_the_command(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.touch()
    with pytest.raises(BadOptionError, match="allow to replace it with `overwrite=True`"):
        q4hifi.quantize_file(EXAMPLE, out)
    outcome = run("quantize", EXAMPLE, out)
    assert outcome.err.endswith("allow to replace it with --overwrite\n")
    with pytest.raises(BadOptionError, match="choose one of `as_` and `layout`"):
        q4hifi.export_file(EXAMPLE, out)
    assert run("export", EXAMPLE, tmp_path / "b.gguf").err == "Error: choose one of --as and --layout\n"
