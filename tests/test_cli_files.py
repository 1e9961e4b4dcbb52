"""No output is ever one of the files that a command was given: every command, every option, every name."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from command import Run
from q4hifi.cli.files import InputFile, OutputFile
from q4hifi.cli.group import main
from synthetic import EXAMPLE, write_runnable

LINES = {
    "quantize": "quantize {model} {OUT} Q4_K_M --imatrix {imatrix} --tensor-type-file {rules}",
    "quantize calibrated": "quantize {model} {OUT} --calibrate {text} --imatrix {imatrix}",
    "quantize sensitivities": "quantize {model} {OUT} --sensitivities {json} --imatrix {imatrix}",
    "quantize types": "quantize {model} {new} --imatrix {imatrix} --stock --write-tensor-types {OUT}",
    "plan": "plan {model} --imatrix {imatrix} --tensor-type-file {rules} --write-tensor-types {OUT}",
    "plan of shapes": "plan {json} --write-tensor-types {OUT}",
    "dequantize": "dequantize {model} {OUT}",
    "export": "export {model} {OUT} --as q6_k",
    "imatrix": "imatrix {model} -f {text} -c 16 -o {OUT}",
    "imatrix of matrices": "imatrix --in-file {imatrix} --in-file {imatrix} -o {OUT}",
    "imatrix with matrices": "imatrix {model} -f {text} -c 16 --in-file {imatrix} -o {OUT}",
    "calibrate": "calibrate {model} -f {text} --imatrix {imatrix} -o {OUT}",
    "perplexity": "perplexity {model} -f {text} -c 16 --kl-divergence-base {OUT}",
    "compare": "compare {model} {other} -f {text} -c 16 --save {OUT}",
    "plot": "compare {model} {other} -f {text} -c 16 --plot {OUT}",
}
WITHOUT_OVERWRITE = {"calibrate"}  # it goes on from its output

CHECKED_BY_THE_COMMAND = {
    ("quantize", "rest"),
    ("perplexity", "save_log_probs"),
    ("imatrix", "output"),
    ("calibrate", "output"),
    ("compare", "output"),
}
"""Outputs that have a default name, or are an input at other times."""

NO_FILES = {
    *("type", "as_", "layout", "prompt", "system", "tensor_types", "output_tensor_type", "like", "coverage"),
    *("token_embedding_type", "include_weights", "exclude_weights", "split_max_size", "target_size", "form"),
    *("words", "template"),
}
"""Parameters that are texts, but no names of files."""


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of each kind that commands read."""
    folder = tmp_path_factory.mktemp("given")
    write_runnable(folder / "model.gguf", "llama")
    shutil.copy(folder / "model.gguf", folder / "other.gguf")
    shutil.copy(folder / "model.gguf", folder / "imatrix.gguf")  # it is not even opened
    (folder / "text.txt").write_text("words " * 200)
    (folder / "rules.txt").write_text("attn_v=q8_0\n")
    (folder / "shapes.json").write_text("{}")
    return folder


FILES = {
    "model": "model.gguf",
    "other": "other.gguf",
    "imatrix": "imatrix.gguf",
    "text": "text.txt",
    "rules": "rules.txt",
    "json": "shapes.json",
}

CASES = [(line, slot) for line, words in LINES.items() for slot in FILES if f"{{{slot}}}" in words]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(("line", "slot"), CASES)
def test_an_output_over_an_input_is_refused(line: str, slot: str, given: Path, run: Run) -> None:
    before = contents(given)
    paths = {name: str(given / file) for name, file in FILES.items()} | {"new": str(given / "new.gguf")}
    words = LINES[line].format(OUT=paths[slot], **paths).split()
    found = run(*words, *([] if line in WITHOUT_OVERWRITE else ["--overwrite"]))
    assert found.status == 2
    if line != "plot":  # a plot's name has another ending
        assert f"is the source {paths[slot]} itself; choose another destination" in found.err
    assert contents(given) == before


@pytest.mark.parametrize("name", ["symlink", "hardlink", "relative", "shard"])
def test_other_names_of_an_input_are_refused(
    name: str, given: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("words " * 200)
    model, dst = given / "model.gguf", tmp_path / "dst"
    if name == "symlink":
        dst.symlink_to(text)
    elif name == "hardlink":
        dst.hardlink_to(text)
    elif name == "relative":
        monkeypatch.chdir(tmp_path)
        dst = Path("..", tmp_path.name, "text.txt")
    else:
        model = tmp_path / "m-00001-of-00002.gguf"
        shutil.copy(EXAMPLE, model)
        dst = tmp_path / "m-00002-of-00002.gguf"
        shutil.copy(EXAMPLE, dst)
    before = dst.read_bytes()
    found = run("imatrix", model, "-f", text, "-c", "16", "-o", dst, "--overwrite")
    assert found.status == 2 and "itself; choose another destination" in found.err
    assert dst.read_bytes() == before and text.read_text() == "words " * 200


def test_a_text_is_not_taken_for_a_partial_base_file(given: Path, tmp_path: Path, run: Run) -> None:
    text = tmp_path / "base.kld.partial"
    text.write_text("part of the words " * 200)
    words = ("perplexity", given / "model.gguf", "-f", text, "-c", "16", "--overwrite")
    found = run(*words, "--kl-divergence-base", tmp_path / "base.kld")
    assert found.status == 2 and f"is the source {text} itself" in found.err
    assert text.read_text() == "part of the words " * 200


@pytest.mark.skipif(not os.path.exists("/dev/stdin"), reason="standard input has no name here")
def test_standard_input_is_an_input(given: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("words " * 200)
    words = ["imatrix", given / "model.gguf", "-f", "-", "-c", "16", "-o", text, "--overwrite"]
    with text.open("rb") as stdin:
        found = subprocess.run(
            [sys.executable, "-m", "q4hifi", *words], stdin=stdin, capture_output=True, check=False
        )
    assert found.returncode == 2 and b"itself; choose another destination" in found.stderr
    assert text.read_text() == "words " * 200


def test_two_outputs_cannot_be_one_file(given: Path, tmp_path: Path, run: Run) -> None:
    dst = tmp_path / "out.gguf"
    found = run("quantize", given / "model.gguf", dst, "--write-tensor-types", tmp_path / "." / "out.gguf")
    assert found.status == 2 and "is given for both --write-tensor-types and DST" in found.err
    assert not dst.exists()


SPLIT = ("--split-max-size", "1M", "--overwrite")


def test_types_are_not_written_over_a_shard(tmp_path: Path, run: Run) -> None:
    shard = tmp_path / "q-00001-of-00004.gguf"
    found = run("quantize", EXAMPLE, tmp_path / "q.gguf", "Q4_K_M", *SPLIT, "--write-tensor-types", shard)
    assert found.status == 2 and "is given for --write-tensor-types" in found.err
    assert not list(tmp_path.iterdir())  # before any work


@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_shards_replace_no_rules(link: Callable[..., None] | None, tmp_path: Path, run: Run) -> None:
    """The names of shards are only known after planning."""
    rules, shard = tmp_path / "rules.txt", tmp_path / "q-00002-of-00004.gguf"
    rules.write_text("attn_v=q8_0\n")
    if link is None:
        rules = rules.rename(shard)
    else:
        link(rules, shard)
    words = ("quantize", EXAMPLE, tmp_path / "q.gguf", "Q4_K_M", *SPLIT, "--tensor-type-file", rules)
    found = run(*words)
    assert found.status == 2 and "itself, given for --tensor-type-file; choose another" in found.err
    assert rules.read_text() == "attn_v=q8_0\n" and len(list(tmp_path.iterdir())) == (
        1 if link is None else 2
    )


@pytest.mark.parametrize(
    "line",
    ["quantize {}", "quantize {e} {}", "plan {e} --imatrix {}", "imatrix {e} -f {}", "export {e} {}"],
)
def test_an_empty_file_name_is_refused(line: str, run: Run) -> None:
    """As a variable of the shell that is not set gives it."""
    words = ["" if word == "{}" else word.format(e=EXAMPLE) for word in line.split()]
    found = run(*words)
    assert found.status == 2 and re.search("file name is empty|after SRC is empty", found.err)


@pytest.mark.parametrize("src", [".", "/", "none/model.gguf", os.devnull])
def test_a_source_that_is_no_file_is_told_before_a_name_derived_from_it(src: str, run: Run) -> None:
    found = run("quantize", src)
    assert found.status == 1 and found.err.startswith(f"Error: {src}: ")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder_is_noticed_before_the_work(given: Path, tmp_path: Path, run: Run) -> None:
    tmp_path.chmod(0o500)
    found = run("imatrix", given / "model.gguf", "-f", given / "no text", "-o", tmp_path / "i.gguf")
    tmp_path.chmod(0o700)
    assert found.status == 1 and "i.gguf: cannot be written: Permission denied" in found.err


def test_every_option_that_names_a_file_says_so() -> None:
    """A new option that is neither an input nor an output nor known to be no file fails here."""
    context = click.Context(main)
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        for param in command.params:
            if param.type.name not in ("text", "file") or (name, param.name) in CHECKED_BY_THE_COMMAND:
                continue
            if param.name not in NO_FILES:
                assert isinstance(param.type, InputFile | OutputFile), f"{name} {param.name}"
