"""The examples in public docstrings run, and the page of the Python API shows every public name."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

import q4hifi
from synthetic import EXAMPLE

API = EXAMPLE.parents[1] / "docs" / "api.md"

EXAMPLES = [
    test
    for name in q4hifi.__all__
    for test in doctest.DocTestFinder().find(getattr(q4hifi, name), name, module=False, globs={})
    if test.examples
]


def test_there_are_examples() -> None:
    assert {"quantize", "dequantize", "Format"} <= {test.name for test in EXAMPLES}


@pytest.mark.parametrize("test", EXAMPLES, ids=lambda test: test.name)
def test_examples_of_docstrings_run(
    test: doctest.DocTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    failed = doctest.DocTestRunner().run(test).failed
    assert failed == 0, capsys.readouterr().out


def test_the_page_of_the_api_shows_every_public_name() -> None:
    shown = re.findall(r"^::: q4hifi\.(\w+)$", API.read_text(), re.MULTILINE)
    elsewhere = {"__version__", "open", "cuda"}  # named in the text, or a module
    assert len(shown) == len(set(shown))
    assert set(shown) - elsewhere == set(q4hifi.__all__) - elsewhere
