"""Text for counts in messages and tables: a count of one has no plural."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import q4hifi
from command import Run
from q4hifi.wording import counted, enumerated
from synthetic import EXAMPLE, random_weights, write_imatrix, write_model, write_runnable


@pytest.mark.parametrize(
    ("words", "one", "many"),
    [
        (("chunk",), "1 chunk", "3 chunks"),
        (("matrix",), "1 matrix", "3 matrices"),
        (("more matrix",), "1 more matrix", "3 more matrices"),
        (("entry", "entries"), "1 entry", "3 entries"),
        (("tensor is", "tensors are"), "1 tensor is", "3 tensors are"),
    ],
)
def test_counts_with_their_nouns(words: tuple[str, ...], one: str, many: str) -> None:
    assert (counted(1, *words), counted(3, *words)) == (one, many)
    assert counted(0, *words) == many.replace("3", "0")


def test_large_counts_and_lists() -> None:
    assert counted(5772544, "parameter", form=",") == "5,772,544 parameters"
    assert [enumerated(list("abc")[:n]) for n in (1, 2, 3)] == ["a", "a and b", "a, b and c"]


NOUNS = (
    "bytes|calls|characters|chunks|columns|cores|correlations|counts|entries|experts|files|layers|matrices"
    "|messages|models|numbers|outliers|pairs|parameters|rows|shards|sums|tensors|threads|tokens|values"
    "|warnings|weights"
)
WRONG = re.compile(rf"\b1 (more )?({NOUNS})\b")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files in which there is one of everything."""
    folder = tmp_path_factory.mktemp("ones")
    write_model(folder / "one.gguf", {"blk.0.attn_q.weight": random_weights(1, 256)})
    write_imatrix(folder / "one-imatrix.gguf", {"blk.0.attn_q.weight": (np.ones(256), np.ones(1))}, chunks=1)
    write_imatrix(folder / "wide-imatrix.gguf", {"blk.0.attn_q.weight": (np.ones(1), np.ones(1))}, chunks=1)
    write_runnable(folder / "run.gguf", "llama", n_layer=1)
    (folder / "letter.txt").write_text("a")
    (folder / "text.txt").write_text("Some words of a text. " * 40)
    (folder / "m-00001-of-00002.gguf").write_bytes((folder / "one.gguf").read_bytes())
    (folder / "cut.gguf").write_bytes((folder / "one.gguf").read_bytes()[:-1])
    (folder / "byte.gguf").write_bytes(b"G")
    (folder / "byte.dat").write_bytes(b"\1\0\0\0\0")
    return folder


LINES = [
    "inspect one.gguf",
    "inspect cut.gguf",
    "inspect byte.gguf",
    "inspect m-00001-of-00002.gguf",
    "plan one.gguf Q4_HIFI --outliers 1",
    "quantize one.gguf out.gguf Q4_HIFI --pure --outliers 1 --overwrite",
    "quantize one.gguf out.gguf Q4_K_M --imatrix wide-imatrix.gguf --overwrite",
    "imatrix --in-file one-imatrix.gguf --in-file one-imatrix.gguf -o sum.gguf --overwrite",
    "imatrix --in-file byte.dat --show-statistics",
    f"imatrix {EXAMPLE} -f text.txt -c 64 --chunks 1 -o i.gguf --overwrite",
    f"compare {EXAMPLE} {EXAMPLE} -f text.txt -c 64 --chunks 1",
    f"calibrate {EXAMPLE} -f text.txt -c 16 --chunks 1 --group 9 -o c.json",
    f"perplexity {EXAMPLE} -f letter.txt",
    f"generate {EXAMPLE} -p a -n 1 -c 1",
]


@pytest.mark.parametrize("line", LINES)
def test_one_of_a_thing_is_no_plural(
    line: str, folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    outcome = run(*line.split())
    words = " ".join((outcome.out + outcome.err).split())
    assert words and not (found := WRONG.search(words)), (found, words)


@pytest.mark.parametrize(
    "line", [f"inspect {EXAMPLE} --tensors", f"plan {EXAMPLE} Q4_K_M --tensors", *LINES[:7], LINES[10]]
)
def test_printed_lines_end_without_blanks(
    line: str, folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    outcome = run(*line.split())
    assert [text for text in outcome.out.splitlines() if text != text.rstrip()] == []


def test_errors_count_one_thing_as_one() -> None:
    model = q4hifi.Model(EXAMPLE)
    sequence = model.sequence()
    sequence.evaluate([1])
    with pytest.raises(q4hifi.BadOptionError, match="a text of 1 token cannot be cut to 2"):
        sequence.truncate(2)
